"""Builds the compiled extension: flags for the stable ABI, and the CUDA module if nvcc and torch have one CUDA version.

pyproject.toml names this class in [tool.setuptools.cmdclass] and lists fasttrace._C; fasttrace._C_cuda is
added here. `python csrc/build_ext.py check-cuda` compiles the sources of fasttrace._C_cuda and links nothing.

Two environment variables are read as torch reads them. TORCH_CUDA_ARCH_LIST="9.0" compiles for those architectures
only. MAX_JOBS is the number of sources compiled at once, by default the number of cores.
"""

import functools
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
TORCH_WANTED = "torch>=2.11"
MACROS = [
    ("TORCH_TARGET_VERSION", "0x020b000000000000"),  # 2.11, the oldest torch into which a build must load
    ("Py_LIMITED_API", "0x030b0000"),  # Python 3.11
]
CUDA_ARCHITECTURES = "8.0;9.0;10.0;12.0"
COMPILER_WANTED = "GCC 12 or later, or Clang 14 or later"
NEW_ENOUGH = "__clang_major__ >= 14 || __GNUC__ >= 12 || defined(__apple_build_version__)"


def folders_of_packages() -> Iterator[Path]:
    """Where a torch may be installed: for this process, and for whoever started the build.

    pip hides the user's packages from a build, but runs the user's Python. uv runs another one, and says nothing of the
    user's environment; that is the active one, whose programs are on the path, or .venv.
    """
    yield from (Path(entry) for entry in sys.path if entry)
    yield from (Path(sysconfig.get_path(name)) for name in ("platlib", "purelib"))
    programs = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    for prefix in (Path(".venv"), *(folder.parent for folder in programs if folder.name == "bin")):
        yield from sorted(prefix.glob("lib/python3*/site-packages"))


def find_torch() -> Path | None:
    """The folder of the first torch from 2.11 on, or None. It is not imported: a build needs headers, not drivers."""
    for folder in folders_of_packages():
        torch = folder / "torch"
        if (torch / "include/torch/csrc/stable/library.h").is_file() and release_of(torch) >= OLDEST_TORCH:
            return torch.resolve()
    return None


def release_of(torch: Path) -> tuple[int, ...]:
    """(major, minor) of an installed torch."""
    return tuple(int(part) for part in str(about_torch(torch)["__version__"]).split(".")[:2])


def about_torch(torch: Path) -> dict[str, Any]:
    """torch's version module: __version__, and the CUDA version that it was built with, as cuda."""
    return runpy.run_path(str(torch / "version.py"))


@functools.cache
def the_torch() -> Path:
    """As `find_torch`. Raises SystemExit where there is none."""
    if (found := find_torch()) is None:
        raise SystemExit(f"fasttrace builds against the headers of {TORCH_WANTED}, and found none: install torch first")
    return found


def check_compiler() -> None:
    """Raise SystemExit, with one sentence, where this machine cannot compile the extension."""
    compiler = new_compiler()
    customize_compiler(compiler)
    name = compiler.compiler_so_cxx[0]
    if shutil.which(name) is None:
        raise SystemExit(
            f"fasttrace compiles an extension, and found no C++ compiler ('{name}'): install {COMPILER_WANTED} "
            "(Debian: apt install g++), or name yours with CXX"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise SystemExit(
            f"fasttrace compiles an extension, and {sys.executable} has no headers (Python.h): install them (Debian: "
            "apt install python3-dev)"
        )
    probe = f"#if !({NEW_ENOUGH})\n#error\n#endif\n"
    command = [name, "-std=c++20", "-E", "-x", "c++", "-"]
    if subprocess.run(command, input=probe, capture_output=True, text=True).returncode:
        said = subprocess.run([name, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
        raise SystemExit(f"fasttrace compiles an extension: expected {COMPILER_WANTED}, got '{said or name}' (CXX)")


def nvcc() -> str | None:
    """nvcc's path, or None."""
    return shutil.which("nvcc")


def cuda_builds() -> bool:
    """Whether nvcc is installed and has the CUDA major version that torch was built with."""
    torch_cuda = about_torch(the_torch())["cuda"]
    if torch_cuda is None or nvcc() is None:
        return False
    text = subprocess.run([str(nvcc()), "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.", text)
    if found is None or found[1] != torch_cuda.split(".")[0]:
        print(f"nvcc is not of CUDA {torch_cuda}, which torch was built with: fasttrace._C_cuda is left out")
        return False
    return True


def toolkit() -> Path:
    """The folder of the CUDA toolkit, as nvcc itself reports it: the nvcc on the path may be a script elsewhere."""
    plan = subprocess.run([str(nvcc()), "--dryrun", "-c", cuda_sources()[0]], capture_output=True, text=True)
    found = re.search(r"TOP=(.+)", plan.stderr)
    if found is None:
        raise SystemExit("nvcc --dryrun: expected a line with TOP=, the folder of its CUDA toolkit, got none")
    return Path(found[1].strip()).resolve()


def cuda_sources() -> list[str]:
    """Every CUDA source, by path."""
    return [str(path) for path in sorted(HERE.glob("*.cu"))]


def cuda_architectures() -> list[str]:
    """The architectures in TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX" or "9.0 9.0a") in nvcc's form: "80", "90+PTX", "90a"."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    found = []
    for one in re.split(r"[;\s]+", given.strip("; ")):
        parts = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", one)
        if parts is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected architectures such as 9.0 or 8.0;9.0+PTX, got '{given}'")
        found.append(f"{parts[1]}{parts[2]}{parts[3] or ''}")
    return found


def jobs() -> int:
    """How many sources are compiled at once."""
    given = os.environ.get("MAX_JOBS", "")
    if given and not given.isdecimal():
        raise SystemExit(f"MAX_JOBS: expected a number of sources to compile at once, got '{given}'")
    return int(given or 0) or os.cpu_count() or 1


def nvcc_command(source: str, target: str, architectures: Sequence[str]) -> list[str]:
    """The command that compiles one source to an object, for architectures as `cuda_architectures` returns them."""
    command = [nvcc() or "nvcc", "-c", source, "-o", target, "-std=c++20", "-O3", "-DUSE_CUDA"]
    for one in architectures:
        number = one.removesuffix("+PTX")
        code = f"sm_{number}" if number == one else f"[sm_{number},compute_{number}]"
        command.append(f"-gencode=arch=compute_{number},code={code}")
    command += ["--threads", "0", *(f"-D{name}={value}" for name, value in MACROS)]
    command += [f"-I{path}" for path in (the_torch() / "include", sysconfig.get_path("include"))]
    return [*command, "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def compile_cuda(sources: Sequence[str], folder: Path, architectures: Sequence[str], pool: Executor) -> dict[str, str]:
    """Compile all sources at once. Returns source → object, or "" where nvcc failed and printed why."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = [str(folder / (Path(source).name + ".o")) for source in sources]
    commands = [nvcc_command(*one, architectures) for one in zip(sources, targets, strict=True)]
    codes = pool.map(lambda command: subprocess.run(command).returncode, commands)
    return {source: "" if code else target for source, target, code in zip(sources, targets, codes, strict=True)}


class build_ext(_build_ext):
    """setuptools' build_ext, with torch's headers and libraries, and nvcc for .cu files."""

    def finalize_options(self) -> None:
        """Add fasttrace._C_cuda where it can be built. A source distribution is made without any torch."""
        modules = self.distribution.ext_modules
        if find_torch() is not None and not any(m.name == "fasttrace._C_cuda" for m in modules) and cuda_builds():
            sources = ["csrc/library_cuda.cpp", *(f"csrc/{Path(s).name}" for s in cuda_sources())]
            modules.append(Extension("fasttrace._C_cuda", sources, py_limited_api=True, language="c++"))
        super().finalize_options()

    def run(self) -> None:
        """Give every extension torch's paths, and the flags for this compiler."""
        for module in self.extensions:
            module.include_dirs.append(str(the_torch() / "include"))
            module.define_macros += MACROS
            module.library_dirs.append(str(the_torch() / "lib"))
            module.libraries += ["torch_cpu", "c10"]
            if sys.platform.startswith("linux"):
                # A square root that must set errno is never vectorised.
                module.extra_compile_args += ["-fno-math-errno"]
                module.extra_compile_args += ["-include", str(HERE / "older_glibc.h")]
                # -Wno-psabi: GCC warns about passing 64-byte vectors; kernel bodies are inlined, so none is passed.
                module.extra_compile_args += ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi"]
                # If g++ links its own libstdc++ into the module, the process must not see that copy's symbols. The two
                # copies number their locale facets differently, so writing a number to a stream would crash.
                module.extra_link_args += ["-Wl,--as-needed", "-Wl,--exclude-libs,ALL"]
            else:
                module.extra_compile_args += ["-std=c++20", "-O3", "-fvisibility=hidden"]
        super().run()

    def build_extensions(self) -> None:
        """Compile all sources of all extensions at once. setuptools would compile them one after another."""
        compile_several: Callable[..., list[str]] = self.compiler.compile

        def compile_each(sources: list[str], **how: object) -> list[str]:
            made = self.pool.map(lambda source: compile_several([source], **how), sources)
            return [target for targets in made for target in targets]

        self.parallel = max(len(self.extensions), 1)
        with ThreadPoolExecutor(jobs()) as self.pool:
            self.compiler.compile = compile_each
            super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compile .cu sources with nvcc, then leave the others to setuptools."""
        kernels = [source for source in ext.sources if source.endswith(".cu")]
        if kernels:
            ext.sources = [source for source in ext.sources if not source.endswith(".cu")]
            ext.define_macros.append(("USE_CUDA", None))
            ext.include_dirs.append(str(toolkit() / "include"))
            ext.library_dirs += [str(toolkit() / "lib64"), str(toolkit() / "lib")]
            ext.libraries += ["torch_cuda", "c10_cuda", "cudart"]
            made = compile_cuda(kernels, Path(self.build_temp), cuda_architectures(), self.pool)
            if "" in made.values():
                raise CompileError("nvcc failed on " + ", ".join(s for s, target in made.items() if not target))
            ext.extra_objects += made.values()
        super().build_extension(ext)


def check_cuda() -> int:
    """Compile the sources of fasttrace._C_cuda and discard the objects. Returns 1 if one fails, 0 also without nvcc."""
    if nvcc() is None:
        print("no nvcc on the path: CUDA sources not compiled")
        return 0
    sources = [*cuda_sources(), str(HERE / "library_cuda.cpp")]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs()) as pool:
        made = compile_cuda(sources, Path(folder), ["90"], pool)
    for source, target in made.items():
        print(f"{Path(source).name}: {'compiled' if target else 'failed'} for sm_90")
    return int("" in made.values())


if __name__ == "__main__":
    if sys.argv[1:] != ["check-cuda"]:
        raise SystemExit("usage: python csrc/build_ext.py check-cuda")
    raise SystemExit(check_cuda())
