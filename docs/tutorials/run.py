"""Execute the tutorials in an empty folder, from an empty cache, and write them back with their outputs.

    python docs/tutorials/run.py [--check] [--jobs N] [NAME …]

NAME is the beginning of a notebook's name, such as 3; by default all run. --check writes nothing, and also looks at the
notebooks as they are. A fault (`faults`), such as an error or words on stderr, makes the exit code 1. The extra `docs`
has what it needs.
"""

import argparse
import copy
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).resolve().parent
MOST_BYTES = 400_000  # of a notebook's file
SECONDS = 600  # for one cell
# A path of the machine that ran it, in an output.
PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt|var|private|mnt)/[\w.-]+")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
Notebook = nbformat.NotebookNode


def notebooks(names: list[str]) -> list[Path]:
    """The tutorials whose names begin with one of these, or all, in order."""
    found = sorted(HERE.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            sys.exit(f"run.py: expected the beginning of one of {', '.join(path.stem for path in found)}, got '{name}'")
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def outputs(notebook: Notebook) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the cell, from 1, output) of every output."""
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", ()):
            yield number, output


def faults(notebook: Notebook) -> list[str]:
    """What a reader should not see, or would miss, in an executed notebook."""
    found = []
    for number, output in outputs(notebook):
        if output.output_type == "error":
            found.append(f"cell {number} raised {output.ename}: {output.evalue}")
        if output.get("name") == "stderr":
            found.append(f"cell {number} wrote to stderr: {output.text.strip()[:300]}")
        words = {kind: one for kind, one in output.get("data", {}).items() if not kind.startswith("image/png")}
        if paths := sorted(set(PATH.findall(json.dumps([words, output.get("text", "")])))):
            found.append(f"cell {number} shows a path of this machine: {', '.join(paths)}")
        if "application/vnd.jupyter.widget-view+json" in words:
            found.append(f"cell {number} shows a widget: expected an output that a page can show")
    if not any("image/png" in output.get("data", {}) for _, output in outputs(notebook)):
        found.append("no cell has a picture")
    if any(cell.cell_type == "code" and cell.source.strip() and not cell.execution_count for cell in notebook.cells):
        found.append("a cell was not executed")
    if (size := len(text_of(notebook).encode())) > MOST_BYTES:
        found.append(f"its file would have {size:,} bytes, more than {MOST_BYTES:,}")
    return found


def stripped(notebook: Notebook) -> Notebook:
    """A copy without times, widgets, and other metadata of the machine or of an editor."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in ("tags",) if name in cell.metadata})
        cell.id = f"cell-{number}"
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def text_of(notebook: Notebook) -> str:
    """The text of a notebook's file."""
    return str(nbformat.writes(notebook)).rstrip("\n") + "\n"


def executed(path: Path, cache: Path, threads: int) -> Notebook:
    """The notebook, executed in an empty folder. A cell that fails ends it, and is among its `faults`."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    beside = str(Path(sys.executable).parent)  # of the command `fasttrace`
    env = os.environ | {
        "PATH": os.pathsep.join([beside, os.environ["PATH"]]),
        "XDG_CACHE_HOME": str(cache),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            allow_errors=True,
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
            startup_timeout=SECONDS,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
        client.execute(env=env)
    return notebook


def seconds_of(notebook: Notebook) -> str:
    """The cells that took a second or more: the number of each and its seconds."""
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        times = cell.metadata.get("execution", {})
        if "shell.execute_reply" in times and "iopub.status.busy" in times:
            begun, done = (datetime.fromisoformat(times[name]) for name in ("iopub.status.busy", "shell.execute_reply"))
            if (seconds := (done - begun).total_seconds()) >= 1:
                found.append(f"{number}: {seconds:.0f}")
    return ", ".join(found)


def main() -> int:
    """Run the tutorials. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginning of a notebook's name; by default all")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at once (default: %(default)s)")
    options = parser.parse_args()
    chosen, failed = notebooks(options.names), 0
    jobs = max(1, min(options.jobs, len(chosen)))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(jobs) as pool:

        def timed(path: Path) -> tuple[Notebook, float]:
            start = time.monotonic()
            return executed(path, Path(cache), threads), time.monotonic() - start

        for path, (made, seconds) in zip(chosen, pool.map(timed, chosen), strict=True):
            notebook = stripped(made)
            wrong = faults(notebook)
            if options.check:
                wrong += [f"as committed: {fault}" for fault in faults(nbformat.read(path, as_version=4))]
            else:
                path.write_text(text_of(notebook), encoding="utf-8")
            failed += bool(wrong)
            lines = [f"{path.name}: {seconds:.0f} s (cell: seconds {seconds_of(made)})", *wrong]
            print(*lines, sep="\n  ", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} tutorials are right, in {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
