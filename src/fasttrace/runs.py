"""Runs. The name of a run is a hash of every setting that changes a number. The same command therefore continues
where it stopped, and different settings never share rows."""

import datetime
import hashlib
import json
from typing import Any, NotRequired, TypedDict

import torch

from fasttrace.models.adapter import Decoder
from fasttrace.version import VERSION


class Run(TypedDict):
    """A row of the store's relation `runs`. schema/runs.sql describes its columns.

    A benchmark has no model, seed or protocol. Only a tracing sweep has flops.
    """

    run_id: str
    kind: str
    model: NotRequired[str]
    model_hash: NotRequired[str]
    dtype: NotRequired[str]
    device: str
    seed: NotRequired[int]
    protocol: NotRequired[str]
    settings: str
    fasttrace_version: str
    torch_version: str
    created_at: datetime.datetime | str
    seconds: float
    flops: NotRequired[float]


def describe_run(kind: str, model: Decoder, settings: dict[str, Any], *, seed: int, protocol: str) -> Run:
    """The `runs` row of a computation.

    Its run_id is the first 16 hex digits of SHA-256 over kind, model hash, dtype, protocol, seed, settings and
    fasttrace's version. The device, torch's version and the times are recorded, but do not change the run_id.

    settings: those that `settings.base.run_settings` selects, so that a new setting renames no older run.
    """
    text, model_hash = json.dumps(settings, sort_keys=True), model.model_hash
    identity = json.dumps([kind, model_hash, model.dtype_name, protocol, seed, text, VERSION])
    return {
        "run_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "kind": kind,
        "model": model.name,
        "model_hash": model_hash,
        "dtype": model.dtype_name,
        "device": str(model.device),
        "seed": seed,
        "protocol": protocol,
        "settings": text,
        "fasttrace_version": VERSION,
        "torch_version": torch.__version__,
        "created_at": datetime.datetime.now(datetime.UTC),
        "seconds": 0.0,
    }
