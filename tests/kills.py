"""Kill commands at random moments, run them again, and compare everything that they wrote with an undisturbed run.

python tests/kills.py [--kills 200] [--seed 0] [--only COMMAND …]      (make test-all)

A round starts in a new folder. The command is killed (-9) one to four times, each time at a random moment of its run,
and then runs to its end. Every relation of the store then has the rows of the undisturbed run, bit for bit. So do the
other files that it wrote and the cache, and nothing else is left. Only times differ.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent / "support")]
from command_line import FACTS  # noqa: E402
from fork_server import ForkServer  # noqa: E402

OTHERS = [("France", "Paris", "Rome"), ("the New Tower", "Rome", "York"), ("of Rome", "York", "Paris")]
STUDY = """
model = "model"
memory = "3MB"
[facts]
file = "facts.jsonl"
limit = 4
known = false
[moments]
corpus = "text.txt"
tokens = 1500
sequence_length = 40
ridge = 1e-2
[[trace]]
windows = [2]
samples = 2
[[edit]]
problems = ["error-injection"]
methods = ["rome", "ft-1"]
layers = [0, 3]
contexts = 1
essence = 1
set = {steps = 2}
"""
TIMES = ("created_at", "seconds", "edit_seconds")  # columns that differ from run to run
SHARED = ("--model", "model", "--facts", "facts.jsonl")
CORPUS = ("--corpus", "text.txt", "--corpus-tokens", "1500", "--ridge", "1e-2")
EDIT = ("--contexts", "1", "--essence", "1", "--set", "steps=2", "--memory", "3MB")


class Command(NamedTuple):
    """words: the command line. kills: how many of 200. fills: what it must write. before: commands that run first."""

    words: tuple[str, ...]
    kills: int
    fills: tuple[str, ...]
    before: tuple[str, ...] = ()


STORE = ("--store", "s.duckdb")
SMALL = ("--keep", "all", "--samples", "2", "--memory", "3MB")
SCREEN = ("--method", "attribution", "--verify-top", "3")
COMMANDS = {
    "trace": Command(("trace", *SHARED, *SMALL, "--windows", "2,1", *STORE), 40, ("s.duckdb: trace_cells",)),
    "screen": Command(("trace", *SHARED, *SMALL, *SCREEN, *STORE), 20, ("s.duckdb: trace_cells",)),
    "edit": Command(("edit", *SHARED, "--layers", "0,3", *CORPUS, *EDIT, *STORE), 40, ("s.duckdb: edits",)),
    "mass": Command(
        ("mass", *SHARED, "--method", "memit", "--layer", "2", *CORPUS, *EDIT, *STORE), 20, ("s.duckdb: mass_edits",)
    ),
    "stats": Command(
        ("stats", "--model", "model", "--corpus-tokens", "2000", "--sequence-length", "40", *STORE),
        20,
        ("s.duckdb: moments",),
    ),
    "study": Command(
        ("study", "study.toml", "--out", "out"), 30, ("out/study.duckdb: edits", "out/study.duckdb: trace_cells")
    ),
    "export": Command(
        ("export", "many.safetensors", "exported", "--model", "model"), 15, ("exported/model.safetensors",), ("delta",)
    ),
    "report": Command(("report", *STORE, "--out", "report.html"), 15, ("report.html",), ("trace", "edit")),
}
BEFORE = {name: one.words for name, one in COMMANDS.items()}
BEFORE["delta"] = ("mass", *SHARED, "--layer", "2", *CORPUS, *EDIT, "--delta", "many.safetensors")


def make_workplace(folder: Path) -> None:
    """Write a small Llama, facts, a corpus and a study file."""
    import torch
    from small_models import small_model, trained_tokenizer

    tokenizer = trained_tokenizer()
    model = small_model("llama", tokenizer, torch.float32)
    model.hf.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    more = [{**FACTS[0], "subject": s, "target_true": true, "target_false": false} for s, true, false in OTHERS]
    facts = [*FACTS, *({**one, "paraphrases": [f"{one['subject']} is in"]} for one in more)]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    (folder / "text.txt").write_text(" ".join(f"{one['prompt']} {one['subject']}" for one in facts) * 60)
    (folder / "study.toml").write_text(STUDY)


INPUTS = ("model", "facts.jsonl", "text.txt", "study.toml")
OUTPUT = ("stdout", "stderr")


def written(folder: Path) -> dict[str, object]:
    """Everything that commands have written in a folder: a store's rows, and the bytes of other files."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/")[0] in (*INPUTS, *OUTPUT) or (path.is_dir() and any(path.iterdir())):
            continue
        if path.suffix == ".duckdb":
            found |= {f"{name}: {relation}": rows for relation, rows in stored(path).items()}
        else:
            found[name] = None if path.is_dir() else without_times(path)
    return found


def stored(path: Path) -> dict[str, list[str]]:
    """The rows of every relation in order, without times. Floating-point numbers are given bit for bit."""
    import duckdb

    def text(value: object) -> str:
        return value.hex() if isinstance(value, float) else str(value)

    rows = {}
    with duckdb.connect(str(path), read_only=True) as con:
        for (relation,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            timed = [name for name in con.table(relation).columns if name in TIMES]
            without = f"EXCLUDE ({', '.join(timed)})" if timed else ""
            kept = con.execute(f"SELECT * {without} FROM {relation}").fetchall()
            rows[relation] = sorted(" | ".join(map(text, row)) for row in kept)
    return rows


def without_times(path: Path) -> bytes:
    """The bytes of a file, without the times in a report and in a figure, and without a figure's random names."""
    content = path.read_bytes()
    if path.suffix in (".html", ".svg"):
        moment = rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?"
        content = re.sub(rb'(<td class="n">[\d.]+</td><td>)?' + moment, b"TIME", content)
        content = re.sub(rb"\b[mp][0-9a-f]{10}\b", b"NAME", content)
    return content


class Matrix:
    """Kills commands of `server`. place: a folder with the inputs. seed: seed of the moments."""

    def __init__(self, server: ForkServer, place: Path, seed: int) -> None:
        self.server, self.place, self.random, self.kills = server, place, random.Random(seed), 0
        make_workplace(place)

    def folder(self, command: Command) -> Path:
        """The folder of a run, made new. The commands that this one needs have run there."""
        folder = self.place / "run"
        shutil.rmtree(folder, ignore_errors=True)
        start = self.place / f"before {'+'.join(command.before)}"
        if not start.exists():
            self._fill(start)
            for other in command.before:
                self.run(BEFORE[other], start)
        shutil.copytree(start, folder, symlinks=True)
        return folder

    def _fill(self, folder: Path) -> None:
        folder.mkdir()
        for one in INPUTS:
            (folder / one).symlink_to(self.place / one)

    def run(self, words: tuple[str, ...], folder: Path) -> None:
        """Run a command to its end."""
        code = self.server.wait(self.server.start(*words, cwd=folder))
        assert code == 0, f"{' '.join(words)}: exit code {code}\n{(folder / 'stderr').read_text()[-3000:]}"

    def killed(self, words: tuple[str, ...], folder: Path, after: float) -> bool:
        """Whether a kill `after` seconds came before the end of the command."""
        pid = self.server.start(*words, cwd=folder)
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        return self.server.wait(pid) == -signal.SIGKILL

    def rounds(self, name: str, kills: int) -> Iterator[tuple[int, list[str]]]:
        """Yield (kills, what differs) of each round of a command, until there were so many kills."""
        command = COMMANDS[name]
        whole = self.folder(command)
        begun = time.perf_counter()
        self.run(command.words, whole)
        seconds = time.perf_counter() - begun
        wanted, done = written(whole), 0
        assert all(wanted[one] for one in command.fills), "the command computes nothing"
        print(f"{name}: {seconds:.1f} s undisturbed, {len(wanted)} relations and files", flush=True)
        while done < kills:
            cut, here = self.folder(command), 0
            for _ in range(min(self.random.randint(1, 4), kills - done)):
                here += self.killed(command.words, cut, self.random.uniform(0.0, seconds))
            if name != "export" or not (cut / "exported").exists():
                self.run(command.words, cut)
            found = written(cut)
            done += here
            self.kills += here
            yield here, [one for one in sorted({*wanted, *found}) if wanted.get(one, "") != found.get(one, "")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--keep", type=Path, help="folder to work in, which is kept")
    options = parser.parse_args()
    bad, begun = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, ForkServer() as server:
        place = options.keep or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        matrix = Matrix(server, place, options.seed)
        share = options.kills / sum(COMMANDS[name].kills for name in options.only)
        for name in options.only:
            before, rounds = matrix.kills, 0
            for kills, differ in matrix.rounds(name, max(1, round(COMMANDS[name].kills * share))):
                rounds += 1
                if differ:
                    bad.append(name)
                    print(f"{name}: after {kills} kills, these differ: {', '.join(differ)}", flush=True)
            print(f"{name}: {matrix.kills - before} kills in {rounds} rounds", flush=True)
    print(f"{matrix.kills} kills, {len(bad)} rounds that differ, {time.perf_counter() - begun:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
