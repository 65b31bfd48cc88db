"""The scripts of bench/ check where they write before they measure, and keep every row as soon as it is measured."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import harness
import pytest
from harness import Results, about, check_outputs, command, fresh

import fasttrace as ft
from fasttrace.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {path.stem: path.read_text() for path in (ROOT / "bench").glob("*.py")}
PRINT = {"compile_kernels"}
GPU = {"bench_gptj", "bench_gptj_edits", "device_ops"}  # they make the folder that they write into
SCRIPTS = sorted(name for name, text in TEXTS.items() if "def main(" in text and name not in PRINT | GPU)
RECORDED = sorted((ROOT / "bench/results/cpu-amd-epyc").glob("*.json"))
OLD = ROOT / "bench/results/cpu-epyc/2026-11-22.json"
# Other arguments that a script needs. bench_peers gets no peers, as they are not installed here.
GIVEN = {"record": [str(RECORDED[0])], "bench_peers": ["--peers"]}
GIVEN |= {script: ["--dtype", "float32"] for script in ("bench_gptj", "bench_gptj_edits")}
ROW = {"benchmark": "b", "case": "c", "impl": "i", "n": 3, "seconds": 0.123456789, "quartiles": [0.1, 0.2]}


class Measured(BaseException):
    """Raised where a script would begin to measure, or to write."""


def options(script):
    return [name for name in ("--out", "--store") if "writes(parser" in TEXTS[script] or f'"{name}"' in TEXTS[script]]


BAD = {
    "a folder": ("folder", "folder"),
    "below a file": ("text/x", "text"),
    "no folder": ("none/x", "none"),
    "nobody's": ("/proc/x", "/proc"),
}
BAD_OUT = BAD | {"a device": ("/dev/null", "/dev/null")}
BAD_STORE = BAD | {
    "a text": ("text", "not a DuckDB file"),
    "another database": ("other.duckdb", "not a fasttrace store"),
    "another schema": ("old.duckdb", "schema version"),
}
PLACES = {"--out": BAD_OUT, "--store": BAD_STORE}

CASES = [(script, option, place) for script in SCRIPTS for option in options(script) for place in PLACES[option]]
CASES += [(script, "--out", place) for script in sorted(GPU) for place in PLACES["--out"] if place != "no folder"]


def run(script, *arguments, monkeypatch, capsys):
    """(exit code or Measured, stdout, stderr) of a script's main."""

    def measured(*_):
        raise Measured

    monkeypatch.setattr(sys, "argv", [f"{script}.py", *GIVEN.get(script, []), *map(str, arguments)])
    monkeypatch.setattr(Results, "__enter__", measured)
    monkeypatch.setattr(ft.Store, "add", measured)
    monkeypatch.setattr(harness, "PATIENCE", 0.05)
    with pytest.raises((SystemExit, Measured)) as stopped:
        importlib.import_module(script).main()
    code = stopped.value.code if isinstance(stopped.value, SystemExit) else Measured
    return code, *capsys.readouterr()


def held(folder):
    """{path: contents of a file, None for a folder} of everything in a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with everything that can be in the way of a result."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "folder").mkdir()
    (folder / "text").write_text("text")
    duckdb.connect(str(folder / "other.duckdb")).execute("CREATE TABLE t (x INT)").close()
    for name in ("store", "old"):
        ft.Store(folder / f"{name}.duckdb").create()
    duckdb.connect(str(folder / "old.duckdb")).execute("UPDATE store_schema SET version = 4").close()
    return folder


@pytest.fixture
def places(made, tmp_path):
    """A copy of that folder for every test."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("script", "option", "place", "words"),
    [
        pytest.param(script, option, *PLACES[option][name], id=f"{script} {option} {name}")
        for script, option, name in CASES
    ],
)
def test_a_bad_path_is_refused_before_anything_is_measured(script, option, place, words, places, monkeypatch, capsys):
    before = held(places)
    code, out, err = run(script, option, places / place, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith(f"{script}.py: ")
    assert len(err.splitlines()) == 1
    assert words in err
    assert held(places) == before


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "--store" in options(script)])
def test_a_store_that_another_process_holds(script, places, monkeypatch, capsys):
    path = places / "store.duckdb"
    hold = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        code, out, err = run(script, "--store", path, monkeypatch=monkeypatch, capsys=capsys)
        holder.stdin.close()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "stayed locked" in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_with_good_paths_a_script_begins_to_measure(script, places, monkeypatch, capsys):
    """This shows that in the tests above it is the path that stops a script."""
    monkeypatch.setattr(harness, "MADE", (places / "build",))
    for name in ("store.duckdb", "new.duckdb", "build/deep/new.duckdb"):
        files = {"--out": places / "build" / "deep" / "x.json", "--store": places / name}
        words = [word for option in options(script) for word in (option, files[option])]
        before = held(places)
        assert run(script, *words, monkeypatch=monkeypatch, capsys=capsys) == (Measured, "", "")
        made = set(held(places)) - set(before)
        assert made <= {places / "build", places / "build" / "deep"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_what_is_written(script, monkeypatch, capsys):
    code, out, err = run(script, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    assert re.findall(r"^  (--out|--store) FILE", out, re.MULTILINE) == options(script) != []


def test_no_script_is_forgotten():
    writing = re.compile(r"\"--(out|store)\"|(?<![.\w])writes?\(|\bResults\(")
    assert {name for name, text in TEXTS.items() if writing.search(text)} == {"conftest", "harness", *SCRIPTS, *GPU}


def test_the_default_path_is_checked_too(places, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", places / "text")
    monkeypatch.setattr(harness, "MADE", (places / "text",))
    code, _, err = run("bench_sweep", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert f"'{places / 'text'}' is not a folder" in err


def test_one_path_for_both_outputs(places, monkeypatch):
    monkeypatch.chdir(places)
    with pytest.raises(UserError, match="expected two files"):
        check_outputs(Path("x"), places / "x")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        check_outputs(tmp_path / ("x" * 300))


def test_as_a_process(tmp_path):
    told = subprocess.run(
        [sys.executable, ROOT / "bench/bench_sweep.py", "--out", tmp_path], capture_output=True, text=True
    )
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f"bench_sweep.py: '{tmp_path}' cannot be written: expected a file, got a folder\n"


def pytest_in_bench(*arguments):
    chosen = ["bench/bench_ops.py", "-k", "window_restore and auto and 8192"]
    # Under pytest-xdist, pytest-benchmark would time nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *arguments], cwd=ROOT, env=alone, capture_output=True, text=True
    )


def test_pytest_checks_paths_first_too(tmp_path):
    told = pytest_in_bench("--out", tmp_path / "x.json", "--store", tmp_path / "none" / "x.duckdb")
    assert told.returncode == 2
    assert told.stderr == f"Exit: the folder {tmp_path}/none of the store x.duckdb does not exist: create it first\n"


def test_pytest_writes_a_row_a_benchmark(tmp_path):
    out, store = tmp_path / "x.json", tmp_path / "x.duckdb"
    told = pytest_in_bench("--out", out, "--store", store)
    assert told.returncode == 0, told.stdout
    rows = json.loads(out.read_text())["rows"]
    assert {row["benchmark"] for row in rows} == {"window_restore"}
    assert len(rows) == 2
    assert f"2 rows in {out} and {store}" in told.stdout
    times = ft.Store(store).query("SELECT * FROM benches WHERE metric = 'time' ORDER BY value").to_pylist()
    assert [row["value"] for row in times] == sorted(row["seconds"] for row in rows)


def test_rows_are_kept_as_they_come(tmp_path, capsys):
    out, store = tmp_path / "x.json", tmp_path / "x.duckdb"
    link = tmp_path / "link.json"
    link.symlink_to(out)
    with Results("kind", about(settings={"sigma": 0.1 + 0.2}), link, store) as results:
        for number in range(1, 4):
            results.add({**ROW, "case": str(number)})
            read = json.loads(out.read_text())
            assert [row["case"] for row in read["rows"]] == [str(n + 1) for n in range(number)]
            assert len(ft.Store(store).query("FROM benches")) == number
        with pytest.raises(TypeError):
            results.add({**ROW, "case": object()})
    assert json.loads(out.read_text()) == read
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "x.duckdb", "x.json"]
    assert f"rows in {link} and {store}" in capsys.readouterr().out
    # The file has the same run as the rows that were added to the store one by one.
    assert ft.Store(store).add(importlib.import_module("record").result_of(out)) == 0
    [run] = ft.Store(store).query("SELECT seconds FROM runs").to_pylist()
    assert run["seconds"] == pytest.approx(3 * 3 * 0.123457)


def test_a_folder_that_vanishes_while_measuring(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    results = Results("kind", about(), folder / "x.json")
    folder.rmdir()
    with pytest.raises(UserError, match=r"x\.json' cannot be written: No such file or directory"):
        results.add(ROW)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_results_of_the_repository_are_recorded(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["record.py", str(path), "--store", str(tmp_path / "x.duckdb")])
    importlib.import_module("record").main()
    added = len(ft.Store(tmp_path / "x.duckdb").query("FROM benches"))
    assert added >= len(json.loads(path.read_text())["rows"]) > 0
    assert capsys.readouterr().out == f"{added} rows of {path} into {tmp_path / 'x.duckdb'}\n"


@pytest.mark.parametrize("text", [OLD.read_text(), "[1]", "{", '{"about": {}, "rows": []}', '{"about": 1, "rows": 2}'])
def test_a_file_that_is_no_result(text, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.json").write_text(text)
    words = ["record.py", str(RECORDED[0]), str(tmp_path / "x.json"), "--store", str(tmp_path / "x.duckdb")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("record").main()
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"record.py: {tmp_path / 'x.json'}: expected a benchmark's JSON")
    assert not (tmp_path / "x.duckdb").exists()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("expected this, got that"), 2, "expected this, got that"),
        (KeyboardInterrupt(), 130, "stopped; the rows that were done are kept"),
        (RuntimeError("Query interrupted"), 130, "stopped; the rows that were done are kept"),
    ],
)
def test_how_a_command_ends(error, code, words, monkeypatch, capsys):
    @command
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["folder/script.py"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == code
    assert capsys.readouterr().err == f"script.py: {words}\n"


def test_an_unexpected_error_is_not_caught():
    @command
    def main():
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        main()


def test_a_fresh_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nif sys.argv[1] == 'no': sys.exit('a sentence')\nprint('…\\n{\"bytes\": 3}')")
    assert fresh(str(script), "yes") == {"bytes": 3}
    assert fresh(str(script), "no") == {"error": "a sentence"}


def test_harness_needs_no_duckdb(tmp_path):
    text = (
        "import sys; import harness; from pathlib import Path\n"
        "try: harness.check_outputs(None, Path(sys.argv[1]))\n"
        "except harness.UserError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["bench/bare", "bench"])}
    words = [sys.executable, "-c", text, str(tmp_path / "x.duckdb")]
    told = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "duckdb" in told.stdout
    assert len(told.stdout.splitlines()) == 1
