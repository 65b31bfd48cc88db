"""The verb `stats`: what it says before it collects, files of second moments in and out, and their errors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import fasttrace as ft
from fasttrace.editing.moments_npz import NAME

MODEL = ("--model", "model")
CORPUS = ("--corpus", "text.txt", "--corpus-tokens", "1500")
EDIT = ("edit", *MODEL, "--facts", "facts.jsonl", "--layers", "1", "--contexts", "0", "--essence", "0")
LAYER_1 = "model.layers.1.mlp.down_proj_float32_mom2_100000.npz"


@pytest.fixture
def files(workplace, run):
    """The folder with the files of every layer, exported under data/."""
    folder = workplace / "data/model/wikipedia_stats"
    if not folder.exists():
        run("stats", *MODEL, *CORPUS, "--export", "data")
    return folder


def test_size_time_and_folder_are_said(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = run("stats", *MODEL, *CORPUS, "--export", str(tmp_path / "data")).stderr
    size = r"second moments of 5 layers of 80 × 80: 128 kB on disk, 256 kB of memory; about \d+ s"
    assert len(re.findall(f"^{size}$", said, re.MULTILINE)) == 1
    folder = tmp_path / "data/model/wikipedia_stats"
    assert f"5 files are in {folder}" in said
    assert len(list(folder.iterdir())) == 5


def test_nothing_is_said_where_nothing_is_collected(files, run):
    again = run("stats", *MODEL, *CORPUS, "--export", "data")
    assert "on disk" not in again.stderr
    assert "5 files in 'data/model/wikipedia_stats' were overwritten" in again.stderr


def test_an_edit_says_it_too_and_uses_imported_moments(files, workplace, run):
    own = ("--corpus", "text.txt", "--corpus-tokens", "1400", "--store", "said.duckdb")
    assert "second moments of 1 layer of 80 × 80: 26 kB on disk" in run(*EDIT, *own).stderr
    quick = (*EDIT, "--set", "steps=1", "--ridge", "1e-3", "--store", "imported.duckdb")
    imported = run(*quick, "--corpus", "data")
    assert "on disk" not in imported.stderr
    assert "nothing to compute: all 4 edits are in imported.duckdb" in run(*quick, "--corpus", "data").stderr
    [row] = ft.Store(workplace / "imported.duckdb").query("SELECT corpus, n_tokens, layers FROM moments").to_pylist()
    assert row == {"corpus": "second moments in 'data'", "n_tokens": 1500, "layers": [1]}
    settings = "SELECT settings ->> 'corpus' AS corpus FROM runs WHERE kind = 'edit'"
    assert ft.Store(workplace / "imported.duckdb").query(settings)["corpus"].to_pylist() == ["data"]


def test_files_are_imported(files, run):
    [row] = json.loads(run("stats", *MODEL, "--import", "data", "--json", "--store", "stats.duckdb").stdout)
    assert (row["layers"], row["n_tokens"], row["corpus"]) == (5, 1500, "second moments in 'data'")
    one = f"data/model/wikipedia_stats/{LAYER_1}"
    [row] = json.loads(run("stats", *MODEL, "--import", one, "--json").stdout)
    assert row["layers"] == 1
    assert json.loads(run("stats", *MODEL, "--corpus", one, "--json").stdout)[0]["path"] == row["path"]


def test_a_study_imports_them(files, workplace, run):
    (workplace / "imported.toml").write_text(
        'model = "model"\n[facts]\nfile = "facts.jsonl"\nknown = false\n[moments]\ncorpus = "data"\nridge = 1e-3\n'
        "[[edit]]\nlayers = [1]\ncontexts = 0\nessence = 0\nset = { steps = 1 }\n"
    )
    [planned] = [row for row in json.loads(run("study", "imported.toml", "--dry-run", "--json").stdout)
                 if row["what"] == "second moments"]  # fmt: skip
    assert (planned["total"], planned["flops"]) == (0, 0)
    run("study", "imported.toml", "--out", "study-imported")
    stored = ft.Store(workplace / "study-imported/study.duckdb").query("SELECT corpus FROM moments")
    assert stored["corpus"].to_pylist() == ["second moments in 'data'"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--import", "none"), "second moments 'none': expected an .npz file or a folder of them, got no such file"),
        (("--import", "text.txt"), "expected an .npz file or a folder of them, got 'text.txt'"),
        (("--import", "model"), "expected an .npz file or a folder of them, got a folder without an .npz file"),
        (("--import", "data", *CORPUS), "expected --corpus or --import, got 'text.txt' and 'data'"),
        (("--import", "data", "--layers", "7"), "expected files of layers 7 too, got only those of 0, 1, 2, 3, 4"),
        (("--import", "data", "--corpus-tokens", "7"), "tokens: expected no value with second moments from files"),
        (("--import", "other.npz"), "expected a file named as in 'model.layers.0.mlp.down_proj_float32_mom2_1"),
        (("--import", f"bad/{LAYER_1}"), "expected a complete .npz file, got one that cannot be read"),
        (("--import", "gpt2"), "expected a module of 'model', from 'model.layers.0.mlp.down_proj' to"),
        (("--corpus", "gpt2"), "expected a module of 'model', from 'model.layers.0.mlp.down_proj' to"),
        (("--export", "text.txt"), "the folder 'text.txt' cannot be written to"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(files, workplace, run, words, sentence):
    np.savez(workplace / "other.npz", a=1)
    for name in ("bad", "gpt2"):
        (workplace / name).mkdir(exist_ok=True)
    (workplace / "bad" / LAYER_1).write_bytes((files / LAYER_1).read_bytes()[:2000])
    (workplace / "gpt2" / "transformer.h.1.mlp.c_proj_float32_mom2_100000.npz").write_bytes(b"")
    said = run("stats", *MODEL, *words, code=2).stderr.strip().splitlines()
    assert sentence in said[-1]
    assert "Traceback" not in " ".join(said)


def test_the_page_names_a_file_of_the_released_code():
    page = (Path(__file__).parents[1] / "docs/how-to/second-moments.md").read_text(encoding="utf-8")
    [name] = [line.rpartition("/")[2] for line in page.splitlines() if line.startswith("data/stats/")]
    assert NAME.fullmatch(name)["module"] == "transformer.h.17.mlp.c_proj"
