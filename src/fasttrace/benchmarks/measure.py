"""One op at one shape: how long each way of computing it takes, and how close that comes to the machine's ceiling."""

import inspect
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load, Way
from fasttrace.benchmarks.loads import (
    adam_linf,
    bit_sums,
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
from fasttrace.errors import UserError, did_you_mean
from fasttrace.ops.dispatch import IMPLEMENTATIONS

# Name of an op → its module of loads, which has `load`, and `SHAPES` for `make bench`.
OPS: dict[str, Any] = {
    "noised_embed": noised_embed,
    "window_restore": window_restore,
    "prefix_attention": prefix_attention,
    "target_logprob": target_logprob,
    "linear": linear,
    "rms_norm": rms_norm,
    "rotary_": rotary,
    "silu_mul_": silu_mul,
    "gelu_tanh_": gelu_tanh,
    "second_moment_": second_moment,
    "rank_one_": rank_one,
    "rank_one_linear": rank_one_linear,
    "rank_one_add_": rank_one_add,
    "adam_linf_": adam_linf,
    "bit_sums": bit_sums,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILED = "torch.compile"
ENOUGH = 0.4  # a way is timed for this many seconds and at least five calls


SHIPPED = frozenset(OPS)


def add_op(name: str, load: Callable[..., Load]) -> None:
    """Add an op that is not in the package, so that `bench` times it in this process. An added op is replaced.

    load: draws the arguments, as load(draw, rows=1024, …): the first parameter is a `Draw`, and each of the others is a
        size with a whole number as its default.

    Raises UserError for the name of a shipped op, and for parameters that differ from these.
    """
    if name in SHIPPED:
        raise UserError(f"add_op: expected a name of its own, got '{name}', which fasttrace has")
    parameters = list(inspect.signature(load).parameters.values())
    if not parameters or any(type(one.default) is not int for one in parameters[1:]):
        raise UserError(
            f"add_op: expected load(draw, size=1024, …) with whole numbers as defaults, got {load.__name__}"
            f"{inspect.signature(load)}"
        )
    OPS[name] = SimpleNamespace(load=load, SHAPES=({},))


def sizes_of(op: str) -> dict[str, int]:
    """The sizes of an op's load with their defaults. Raises UserError for an unknown op."""
    if op not in OPS:
        raise UserError(f"op: expected one of {', '.join(OPS)}, got '{op}'{did_you_mean(op, OPS)}")
    given = list(inspect.signature(OPS[op].load).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in given}


def checked(op: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """All sizes of an op's load, with these instead of the defaults. Raises UserError for an unknown op or size, and
    for a size that is not positive."""
    known = sizes_of(op)
    for name, value in sizes.items():
        if name not in known:
            raise UserError(f"{op} has no size '{name}'; there are {', '.join(known)}{did_you_mean(name, known)}")
        if value < (0 if known[name] == 0 else 1):
            raise UserError(f"{op}: expected size {name} to be a positive number, got {value}")
    return {**known, **sizes}


def prepare(op: str, sizes: Mapping[str, int], dtype: str, device: str) -> tuple[str, Load]:
    """(description of the load, the load). Raises UserError as `checked` does, and for an unknown dtype or device."""
    shape = checked(op, sizes)
    if dtype not in DTYPES:
        raise UserError(f"dtype: expected one of {', '.join(DTYPES)}, got '{dtype}'")
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
    """Every way to compute a load, "auto" and "reference" first. Those in `IMPLEMENTATIONS` may raise UserError."""
    named: dict[str, Way] = {"auto": load.op, "reference": partial(load.op, impl="reference")}
    if load.definition is not None:
        named[COMPILED] = load.definition
    return named | {f"torch {name}": way for name, way in (*load.rivals.items(), *load.yardsticks.items())}


@dataclass(frozen=True)
class Ceilings:
    """The machine's measured ceilings, per second: gigabytes copied (read and written) and gigaflops of products."""

    gigabyte: float
    gigaflop: float

    def seconds(self, load: Load) -> float:
        """The least time of any way whose data come from memory. Data in caches can be faster."""
        return max(load.gigabyte / self.gigabyte, load.gigaflop / self.gigaflop)


@cache
def ceilings(dtype: str, device: str) -> Ceilings:
    """Measure the ceilings by copying 256 MB (1 GB on a GPU) and multiplying square matrices (2048 wide, 8192 on a GPU,
    or the widest whose product takes about a second). Each is the best of three medians."""
    cuda = torch.device(device).type == "cuda"
    draw = Draw.on(DTYPES[dtype], device)
    source = torch.zeros((1 << 30 if cuda else 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        a, b = squares(draw, 8192 if cuda else 2048)
        width = len(a)
        copied = min(_timed(lambda: target.copy_(source), device)["seconds"] for _ in range(3))
        product = min(_timed(lambda: torch.mm(a, b), device)["seconds"] for _ in range(3))
    return Ceilings(2 * source.nbytes / copied / 1e9, 2 * width**3 / product / 1e9)


def squares(draw: Draw, widest: int) -> tuple[Tensor, Tensor]:
    """Two square matrices, `widest` wide, or less if their product would take more than about a second."""
    width = 256
    while True:
        a, b = draw.normal(width, width), draw.normal(width, width)
        torch.mm(a, b)
        begun = time.perf_counter()
        torch.mm(a, b)
        # A processor without AVX-512 multiplies bfloat16 at 0.6 GFLOP/s: 30 s for matrices 2048 wide.
        if width >= widest or 8 * (time.perf_counter() - begun) > 1.0:
            return a, b
        width *= 2


def bench(
    op: str,
    sizes: Mapping[str, int] | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    only: Collection[str] = (),
    compiled: bool = True,
) -> Iterator[BenchRow]:
    """Time every way of computing an op, after its result is compared with the reference's. Yields a row per way.

    sizes: sizes of the load by name; the others are those of `sizes_of`. dtype: "float32", "bfloat16" or "float16".
    only: ways, by name. An implementation given by name ("native", "triton") that cannot run here is a UserError.
    compiled: whether torch.compile of the definition is timed too.

    A row has:
    seconds, quartiles: of n calls. GB/s, GFLOP/s: of the least that must be moved and computed.
    fraction_of_ceiling: the least time at the measured ceilings over the time taken. It can be above 1 if the data are
        in caches.
    relative_difference: the largest difference over the reference's largest value, None for a yardstick.
    bytes: on a GPU, the bytes allocated by a call.
    error: why the way could not run, instead of all these.
    Raises UserError as `prepare` does, and for unknown ways.
    """
    case, load = prepare(op, sizes or {}, dtype, device)
    known = ways(load)
    names = list(only) or [name for name in known if compiled or name != COMPILED]
    for name in names:
        if name in IMPLEMENTATIONS and name not in known:
            known[name] = partial(load.op, impl=name)
        if name not in known:
            ways_there = [*known, *IMPLEMENTATIONS[2:]]
            hint = did_you_mean(name, ways_there)
            raise UserError(f"{op}: expected one of {', '.join(ways_there)}, got '{name}'{hint}")
    peak = ceilings(dtype, device)
    with torch.inference_mode(not load.grad):
        expected = _result(known["reference"], load)
        for name in names:
            row: BenchRow = {"benchmark": op, "case": case, "impl": name}
            way = known[name]
            if name == COMPILED:
                torch.compiler.reset()  # the shapes of other loads would count towards the limit of recompilations
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
    """Copies of the arguments, because ways may overwrite them."""
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
    """Seconds, quartiles and n of a call. On a GPU it uses events and a cold L2 cache (triton.testing.do_bench)."""
    call()
    if torch.device(device).type == "cuda":
        from triton.testing import do_bench

        return spread([ms / 1e3 for ms in do_bench(call, warmup=25, rep=200, return_mode="all")])
    begun = time.perf_counter()
    call()
    # Calls of microseconds are timed several at a time, so that the clock and the loop cost little.
    together = max(1, round(1e-3 / max(time.perf_counter() - begun, 1e-7)))
    seconds: list[float] = []
    while len(seconds) < 5 or sum(seconds) * together < ENOUGH:
        begun = time.perf_counter()
        for _ in range(together):
            call()
        seconds.append((time.perf_counter() - begun) / together)
    return spread(seconds)


def _allocated(call: Callable[[], object]) -> int:
    """The peak of the bytes that a call allocates on the GPU."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before
