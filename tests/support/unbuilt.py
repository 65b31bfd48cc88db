"""Print as JSON what fasttrace computes when neither installed nor compiled. Run by tests/ops/test_unbuilt.py."""

import json
from importlib.metadata import PackageNotFoundError, version

import torch
from device_ops import SMALL
from small_models import small_model, trained_tokenizer

import fasttrace as ft
from fasttrace.benchmarks import OPS, about
from fasttrace.benchmarks.load import Draw, Load


def installed() -> bool:
    try:
        version("fasttrace")
    except PackageNotFoundError:
        return False
    return True


def called(load: Load, impl: str) -> torch.Tensor | str:
    """Return an op's result, or the message of the error that it raises."""
    args = [x.clone() if isinstance(x, torch.Tensor) else x for x in load.args]
    try:
        return load.op(*args, impl=impl)
    except ft.UserError as error:
        return str(error)


def main() -> None:
    off, native = {}, {}
    for op, sizes in SMALL.items():
        load = OPS[op].load(Draw.on(torch.float32, "cpu"), **sizes)
        reference = called(load, "reference")
        off[op] = float((called(load, "auto") - reference).abs().max() / reference.abs().max())
        native[op] = str(called(load, "native"))
    model = small_model("gptj", trained_tokenizer(), torch.float32)
    fact = ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris")
    cells = ft.trace(model, [fact], sigma=0.4, samples=2, keep="all").cells
    told = {"file": ft.__file__, "installed": installed(), "version": about("cpu")["versions"]["fasttrace"]}
    print(json.dumps({**told, "off": off, "native": native, "cells": cells.num_rows}))


if __name__ == "__main__":
    main()
