"""Builds the compiled extension: flags for the stable ABI, and the CUDA module where nvcc and torch agree.

pyproject.toml names this class in [tool.setuptools.cmdclass] and lists fasttrace._C; fasttrace._C_cuda is
added here. `python csrc/build_ext.py check-cuda` compiles every .cu file to an object and links nothing.
"""

import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext as _build_ext


def find_torch() -> Path:
    """torch's folder, found without importing it: a build needs its headers, not its drivers."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("fasttrace builds against torch, which is not installed: pip install torch==2.13.0")
    return Path(spec.origin).resolve().parent


HERE = Path(__file__).resolve().parent
TORCH = find_torch()
VERSION = runpy.run_path(str(TORCH / "version.py"))
MACROS = [
    ("TORCH_TARGET_VERSION", "0x020b000000000000"),  # 2.11: the oldest torch one build must load into
    ("Py_LIMITED_API", "0x030b0000"),  # Python 3.11
]
INCLUDES = [str(TORCH / "include")]
CUDA_ARCHITECTURES = ("80", "90", "100", "120")
OLDEST_TORCH = (2, 11)


def nvcc() -> str | None:
    """nvcc's path, or None."""
    return shutil.which("nvcc")


def cuda_builds() -> bool:
    """Whether nvcc is there and of the CUDA major version that torch was built with."""
    wanted = VERSION["cuda"]
    if wanted is None or nvcc() is None:
        return False
    text = subprocess.run([str(nvcc()), "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.", text)
    if found is None or found[1] != wanted.split(".")[0]:
        print(f"nvcc is not of CUDA {wanted}, which torch was built with: fasttrace._C_cuda is left out")
        return False
    return True


def toolkit() -> Path:
    """CUDA's folder as nvcc itself names it: the nvcc on the path may be a script elsewhere."""
    plan = subprocess.run([str(nvcc()), "--dryrun", "-c", cuda_sources()[0]], capture_output=True, text=True)
    found = re.search(r"TOP=(.+)", plan.stderr)
    if found is None:
        raise SystemExit("nvcc --dryrun does not say where its CUDA toolkit is (a line with TOP= was wanted)")
    return Path(found[1].strip()).resolve()


def cuda_sources() -> list[str]:
    """Every CUDA source, by path."""
    return [str(path) for path in sorted(HERE.glob("*.cu"))]


def nvcc_command(source: str, target: str, architectures: tuple[str, ...]) -> list[str]:
    """The command that compiles one .cu file to an object."""
    command = [nvcc() or "nvcc", "-c", source, "-o", target, "-std=c++20", "-O3", "-DUSE_CUDA"]
    if len(architectures) == 1:
        command.append(f"-arch=sm_{architectures[0]}")
    else:
        command += ["--threads", "0", *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures)]
    command += [f"-D{name}={value}" for name, value in MACROS]
    command += [f"-I{path}" for path in INCLUDES]
    return [*command, "-Xcompiler", "-fPIC,-fvisibility=hidden"]


class build_ext(_build_ext):
    """setuptools' build_ext, with torch's headers and libraries, and nvcc for .cu files."""

    def finalize_options(self) -> None:
        """Gives every extension torch's paths, and adds fasttrace._C_cuda where it can be built."""
        version = VERSION["__version__"]
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
            raise SystemExit(f"fasttrace builds against torch 2.11 or later, and here is {version}")
        modules = self.distribution.ext_modules
        if not any(m.name == "fasttrace._C_cuda" for m in modules) and cuda_builds():
            sources = ["csrc/library_cuda.cpp", *(f"csrc/{Path(s).name}" for s in cuda_sources())]
            modules.append(Extension("fasttrace._C_cuda", sources, py_limited_api=True, language="c++"))
        super().finalize_options()
        for module in self.extensions:
            module.include_dirs += INCLUDES
            module.define_macros += MACROS
            module.library_dirs.append(str(TORCH / "lib"))
            module.libraries += ["torch_cpu", "c10"]
            if sys.platform.startswith("linux"):
                # A square root that must set errno is never vectorised.
                module.extra_compile_args += ["-fno-math-errno"]
                # GCC says how 64-byte vectors are passed; none are, every kernel body is inlined.
                module.extra_compile_args += ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi"]
                module.extra_link_args += ["-Wl,--as-needed"]
            else:
                module.extra_compile_args += ["-std=c++20", "-O3", "-fvisibility=hidden"]

    def build_extension(self, ext: Extension) -> None:
        """Compiles .cu sources with nvcc, then leaves the rest to setuptools."""
        kernels = [source for source in ext.sources if source.endswith(".cu")]
        if kernels:
            ext.sources = [source for source in ext.sources if not source.endswith(".cu")]
            ext.define_macros.append(("USE_CUDA", None))
            ext.include_dirs.append(str(toolkit() / "include"))
            ext.library_dirs += [str(toolkit() / "lib64"), str(toolkit() / "lib")]
            ext.libraries += ["torch_cuda", "c10_cuda", "cudart"]
            for source in kernels:
                target = Path(self.build_temp) / (Path(source).name + ".o")
                target.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(nvcc_command(source, str(target), CUDA_ARCHITECTURES), check=True)
                ext.extra_objects.append(str(target))
        super().build_extension(ext)


def check_cuda() -> int:
    """Compiles every CUDA source to an object and throws it away; 0 also where there is no nvcc."""
    if nvcc() is None:
        print("no nvcc on the path: CUDA sources not compiled")
        return 0
    INCLUDES.append(sysconfig.get_path("include"))
    with tempfile.TemporaryDirectory() as folder:
        for source in cuda_sources():
            target = str(Path(folder) / (Path(source).name + ".o"))
            failed = subprocess.run(nvcc_command(source, target, ("90",))).returncode
            print(f"{Path(source).name}: {'failed' if failed else 'compiled'} for sm_90")
            if failed:
                return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:] != ["check-cuda"]:
        raise SystemExit("usage: python csrc/build_ext.py check-cuda")
    raise SystemExit(check_cuda())
