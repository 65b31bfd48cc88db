"""Compiles every GPU kernel and prints registers, stack, shared memory and blocks per multiprocessor. Needs no GPU.

python bench/compile_kernels.py [--capability 90] [--json]

Triton's kernels are compiled through their launchers, at the shapes of device_ops.py and with every tile of their sets.
The CUDA sources are compiled by nvcc, if it is installed.
"""

import argparse
import importlib
import json
import re
import runpy
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import triton
from device_ops import SHAPES
from harness import ROOT
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from fasttrace.benchmarks import OPS, TILED
from fasttrace.benchmarks.load import Draw
from fasttrace.benchmarks.measure import DTYPES
from fasttrace.kernels import tiles
from fasttrace.ops import dispatch

Row = dict[str, Any]
REGISTERS, THREADS, SHARED, BLOCKS = 65536, 2048, 227 * 1024, 32  # limits of a multiprocessor of capability 9.0
# Sizes that no tile and no compiled constant depends on. They are reduced because the operands are allocated.
SMALLER = {"noised_embed": {"vocab": 1024}, "target_logprob": {"vocab": 1024}, "adam_linf_": {"items": 1}}
# A line of cuobjdump. The stack holds spilled registers, and arrays whose index is known only at run time.
RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
CUDA_THREADS = 256


class NoDevice(GPUDriver):
    """A Triton driver without a device, which only names the target of the compilation."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    is_active = classmethod(lambda cls: True)
    get_active_torch_device = get_benchmarker = map_python_to_cpp_type = None


def resources(cubin: Path) -> list[tuple[str, int, int, int]]:
    """(function, registers per thread, bytes of stack per thread, bytes of static shared memory) of machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "-res-usage", str(cubin)], check=True, capture_output=True, text=True).stdout
    return [(name, *map(int, numbers)) for name, *numbers in RESOURCES.findall(report)]


def row(kernel: str, case: str, registers: int, stack: int, shared: int, threads: int) -> Row:
    room = (REGISTERS // (-(-registers // 8) * 8 * threads), THREADS // threads, SHARED // max(shared, 1), BLOCKS)
    numbers = {"registers": registers, "stack": stack, "shared": shared, "threads": threads, "blocks": min(room)}
    return {"kernel": kernel, "case": case, **numbers}


def triton_kernels(capability: int) -> Iterator[Row]:
    """Yield a row for every kernel that a launcher starts, for every dtype and tile."""
    driver.set_active(NoDevice(capability))
    compiled: list[Any] = []

    def compile_only(self: JITFunction[Any], grid: Any) -> Any:
        return lambda *args, **kwargs: compiled.append(self.run(*args, grid=grid, warmup=True, **kwargs))

    def no_reason(*_: Any) -> None:
        """No implementation is refused, because none runs."""

    launch, refuse = (JITFunction, "__getitem__", compile_only), (dispatch, "_unusable_reason", no_reason)
    for op in TILED:
        module = importlib.import_module(f"fasttrace.kernels.{op.removesuffix('_')}")
        for dtype in ("bfloat16", "float32"):
            for tile in tiles.tiles_of(module.TILES, DTYPES[dtype]):
                with patch.object(*launch), patch.object(*refuse), tiles.trying(op.removesuffix("_"), tile):
                    for device in ("meta", "cpu"):  # a custom op starts no kernel for tensors on "meta"
                        if not compiled:
                            load = OPS[op].load(Draw.on(DTYPES[dtype], device), **SHAPES[op] | SMALLER.get(op, {}))
                            load.op(*load.args, impl="triton")
                for kernel in compiled:
                    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                        Path(file.name).write_bytes(kernel.asm["cubin"])
                        [(name, registers, stack, _)] = resources(Path(file.name))
                    case = " ".join([dtype, *(f"{part}={value}" for part, value in tile.items())])
                    shared, threads = kernel.metadata.shared, 32 * kernel.metadata.num_warps
                    yield row(op if len(compiled) == 1 else f"{op} {name}", case, registers, stack, shared, threads)
                compiled.clear()


def staged(size: int) -> int:
    """Bytes of shared memory that second_moment_ requests at its launch, for key entries of `size` bytes."""
    text = (ROOT / "csrc" / "moments.cuh").read_text()
    [(tile, pad, rows, together)] = re.findall(
        r"tile = (\d+), padded = tile \+ (\d+);.*?rows = (\d+);.*?stages = (\d+) / sizeof\(TK\);", text, re.S
    )
    return int(together) // size * 2 * int(rows) * (int(tile) + int(pad)) * size


def cuda_kernels(capability: int) -> Iterator[Row]:
    """Yield a row for every instance of the kernels in csrc, or none without nvcc."""
    build = runpy.run_path(str(ROOT / "csrc" / "build_ext.py"))
    if build["nvcc"]() is None:
        return
    for source in build["cuda_sources"]():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            command = build["nvcc_command"](source, file.name, (str(capability),))
            subprocess.run([*command, "-cubin"], check=True)
            stem = Path(source).stem
            for name, registers, stack, shared in resources(Path(file.name)):
                plain = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout
                [types] = re.findall(r"<(.*?)>", plain.replace("__nv_", ""))
                if stem == "moments":
                    shared += staged(2 if types.endswith("bfloat16") else 4)
                yield row(f"{stem}.cu", types, registers, stack, shared, CUDA_THREADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [*triton_kernels(options.capability), *cuda_kernels(options.capability)]
    if options.json:
        return print(json.dumps(rows, indent=1))
    line = "{kernel:30}{case:60}{registers:>9}{stack:>7}{shared:>8}{threads:>8}{blocks:>7}"
    print(line.format(**{name: name for name in rows[0]}))
    for one in rows:
        print(line.format(**one))


if __name__ == "__main__":
    main()
