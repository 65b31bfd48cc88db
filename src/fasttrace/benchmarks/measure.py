"""One op at one shape: how long each way of computing it takes, and what part of the machine's ceiling that is."""

import inspect
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load, Way
from fasttrace.benchmarks.loads import (
    adam_linf,
    gelu_tanh,
    linear,
    noised_embed,
    prefix_attention,
    rank_one,
    rank_one_add,
    rank_one_linear,
    rms_norm,
    rotary,
    second_moment,
    silu_mul,
    target_logprob,
    window_restore,
)
from fasttrace.benchmarks.result import BenchRow, spread
from fasttrace.errors import UserError
from fasttrace.ops.dispatch import IMPLEMENTATIONS

OPS = {
    "noised_embed": noised_embed, "window_restore": window_restore, "prefix_attention": prefix_attention,
    "target_logprob": target_logprob, "linear": linear, "rms_norm": rms_norm, "rotary_": rotary, "silu_mul_": silu_mul,
    "gelu_tanh_": gelu_tanh,
    "second_moment_": second_moment, "rank_one_": rank_one, "rank_one_linear": rank_one_linear,
    "rank_one_add_": rank_one_add, "adam_linf_": adam_linf,
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILED = "torch.compile"
ENOUGH = 0.4  # seconds that one way is timed for, once it has been called five times


def sizes_of(op: str) -> dict[str, int]:
    """The sizes of an op's load and what they are if not given. Raises UserError for an unknown op."""
    if op not in OPS:
        raise UserError(f"there is no op '{op}' to time; there are {', '.join(OPS)}")
    given = list(inspect.signature(OPS[op].load).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in given}


def checked(op: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """All sizes of an op's load, these among them. Raises UserError for an unknown op or size, and one that is no
    number of things."""
    known = sizes_of(op)
    for name, value in sizes.items():
        if name not in known:
            raise UserError(f"{op} has no size '{name}'; there are {', '.join(known)}")
        if value < (0 if known[name] == 0 else 1):
            raise UserError(f"{op}: size {name} is {value}, a positive number was wanted")
    return {**known, **sizes}


def prepare(op: str, sizes: Mapping[str, int], dtype: str, device: str) -> tuple[str, Load]:
    """(what the load is, in words; the load). Raises UserError as `checked`, and for an unknown dtype or device."""
    shape = checked(op, sizes)
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device '{device}' cannot be used: torch sees no GPU here")
    try:
        draw = Draw.on(DTYPES[dtype], device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error
    case = ", ".join([*(f"{name} {value}" for name, value in shape.items()), dtype])
    load: Load = OPS[op].load(draw, **shape)
    return case, load


def ways(load: Load) -> dict[str, Way]:
    """Every way a load can be computed, "auto" and "reference" first; those of `IMPLEMENTATIONS` may refuse."""
    named: dict[str, Way] = {"auto": load.op, "reference": partial(load.op, impl="reference")}
    if load.definition is not None:
        named[COMPILED] = load.definition
    return named | {f"torch {name}": way for name, way in (*load.rivals.items(), *load.yardsticks.items())}


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at its best, measured: bytes copied (read and written) and products, a second."""

    gigabyte: float
    gigaflop: float

    def seconds(self, load: Load) -> float:
        """No way can be faster, if the data come from memory: what is small enough comes from caches and is."""
        return max(load.gigabyte / self.gigabyte, load.gigaflop / self.gigaflop)


@cache
def ceilings(dtype: str, device: str) -> Ceilings:
    """Copying 256 MB (1 GB on a GPU), and a square product (2048 wide; 8192 on a GPU): the best of three medians."""
    cuda = torch.device(device).type == "cuda"
    draw = Draw.on(DTYPES[dtype], device)
    source = torch.zeros((1 << 30 if cuda else 1 << 28) // 4, device=device)
    target, width = torch.empty_like(source), 8192 if cuda else 2048
    a, b = draw.normal(width, width), draw.normal(width, width)
    with torch.inference_mode():
        copied = min(_timed(lambda: target.copy_(source), device)["seconds"] for _ in range(3))
        product = min(_timed(lambda: torch.mm(a, b), device)["seconds"] for _ in range(3))
    return Ceilings(2 * source.nbytes / copied / 1e9, 2 * width**3 / product / 1e9)


def bench(
    op: str,
    sizes: Mapping[str, int] | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    only: Collection[str] = (),
    compiled: bool = True,
) -> Iterator[BenchRow]:
    """Time every way of computing an op, its result first compared with the reference's; a row a way, as it is done.

    sizes: of the load, by name, the others as `sizes_of`. dtype: "float32", "bfloat16" or "float16". only: ways, by
    name; an implementation that is asked for by name ("native", "triton") and cannot run here is a UserError.
    compiled: torch.compile of the definition too.

    A row has seconds and quartiles of n calls, GB/s and GFLOP/s of the least that must be moved and computed,
    fraction_of_ceiling (the time that takes at the measured ceilings over the time taken; above 1 where caches hold
    the data), relative_difference (largest, over the reference's largest; None for a yardstick, which computes less)
    and, on a GPU, the bytes allocated on the way; or "error", why it could not be run.
    Raises UserError as `prepare`, and for ways that there are not.
    """
    case, load = prepare(op, sizes or {}, dtype, device)
    there = ways(load)
    wanted = list(only) or [name for name in there if compiled or name != COMPILED]
    for name in wanted:
        if name in IMPLEMENTATIONS and name not in there:
            there[name] = partial(load.op, impl=name)
        if name not in there:
            raise UserError(f"{op} has no way '{name}'; there are {', '.join([*there, *IMPLEMENTATIONS[2:]])}")
    peak = ceilings(dtype, device)
    with torch.inference_mode(not load.grad):
        expected = _result(there["reference"], load)
        for name in wanted:
            row: BenchRow = {"benchmark": op, "case": case, "impl": name}
            way = there[name]
            if name == COMPILED:
                torch.compiler.reset()  # shapes of other loads would count against the limit of recompilations
                way = torch.compile(way, dynamic=False)
            try:
                found = _result(way, load)
            except UserError:
                raise
            except Exception as error:
                if name != COMPILED:
                    raise
                yield {**row, "error": str(error).strip().splitlines()[0], "n": 1}
                continue
            less = name.removeprefix("torch ") in load.yardsticks
            row["relative_difference"] = None if less else _difference(found, expected)
            call = partial(way, *_copies(load))
            row |= _timed(call, device)
            if load.gigabyte:
                row["GB/s"] = load.gigabyte / row["seconds"]
            if load.gigaflop:
                row["GFLOP/s"] = load.gigaflop / row["seconds"]
            row["fraction_of_ceiling"] = peak.seconds(load) / row["seconds"]
            if torch.device(device).type == "cuda":
                row["bytes"] = _allocated(call)
            yield row


def _copies(load: Load) -> list[Any]:
    """The arguments again, tensors as copies: ways may write to them."""
    return [
        value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for value in load.args
    ]


def _result(way: Way, load: Load) -> Tensor:
    found = way(*_copies(load))
    assert isinstance(found, Tensor)
    return found.detach()


def _difference(found: Tensor, expected: Tensor) -> float:
    gap = (found.double() - expected.double()).abs().max()
    return float(gap / expected.double().abs().max().clamp_min(1e-300))


def _timed(call: Callable[[], object], device: str) -> BenchRow:
    """Seconds, quartiles and n of a call; on a GPU by events, with a cold L2 cache (triton.testing.do_bench)."""
    call()
    if torch.device(device).type == "cuda":
        from triton.testing import do_bench

        return spread([ms / 1e3 for ms in do_bench(call, warmup=25, rep=200, return_mode="all")])
    begun = time.perf_counter()
    call()
    # Of a call of microseconds, several are timed as one: the clock and the loop take their part.
    together = max(1, round(1e-3 / max(time.perf_counter() - begun, 1e-7)))
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) * together < ENOUGH:
        begun = time.perf_counter()
        for _ in range(together):
            call()
        taken.append((time.perf_counter() - begun) / together)
    return spread(taken)


def _allocated(call: Callable[[], object]) -> int:
    """Bytes that a call allocates on the GPU, at the most at once."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before
