"""Computations with workers have the rows of one process, bit for bit.

A cluster has as many CPUs as there are workers, so that each computes with one thread, as the one process does.
"""

import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from command_line import FACTS
from ray_nodes import Nodes, environment
from small_models import EVERY_FAMILY, small_model

import fasttrace as ft

pytest.importorskip("ray")
spec = spec_from_file_location("kills", Path(__file__).parents[1] / "kills.py")
kills = module_from_spec(spec)
spec.loader.exec_module(kills)

SMALL = ("--windows", "2,1", "--samples", "2", "--memory", "3MB")
SHARED = kills.SHARED
COMMANDS = {
    "all": ("trace", *SHARED, *SMALL, "--keep", "all"),
    "known": ("trace", *SHARED, *SMALL, "--sigma", "0.3"),
    "rome": ("edit", *SHARED, "--layers", "0,3", *kills.CORPUS, *kills.EDIT),
    "ft-1": ("edit", *SHARED, "--layers", "1,2", "--method", "ft-1", *kills.EDIT[2:]),
    "check": ("facts", *SHARED, "--check"),
    "study": ("study", "study.toml"),
}
OTHERS = ("gpt2", "gptj", "qwen3", "gemma2", "falcon-rw", "bloom")


@pytest.fixture(scope="module")
def clusters():
    """A function that returns a cluster with some CPUs."""
    made = {}

    def of(cpus):
        if cpus not in made:
            made[cpus] = Nodes(cpus).__enter__()
        return made[cpus]

    yield of
    for one in made.values():
        one.__exit__()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    kills.make_workplace(folder)
    return folder


@pytest.fixture
def on(clusters, monkeypatch):
    """A function that has workers found on a cluster with some CPUs."""

    def use(cpus):
        nodes = clusters(cpus)
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, nodes.env[name])
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)

    return use


@pytest.fixture
def stored(place, small_tokenizer, command, monkeypatch):
    """A function that runs a command and returns the rows that it stores. Every run has an empty cache."""
    monkeypatch.chdir(place)

    def of(name, *more):
        label = "-".join([name, *(word.strip("-") for word in more)])
        shutil.rmtree(place / "cache", ignore_errors=True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        store = place / label / "study.duckdb" if name == "study" else place / f"{label}.duckdb"
        if not store.exists():
            command(*COMMANDS[name], *(("--out", label) if name == "study" else ("--store", str(store))), *more)
        return kills.stored(store)

    return of


# test_faults.py has a quick test of a command's rows.
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_store_has_the_same_rows(stored, on, name, workers):
    alone = stored(name)
    on(workers)
    assert stored(name, "--workers", str(workers)) == alone
    filled = {"facts": "known", "trace": "traces", "edit": "edits", "study": "edits"}[COMMANDS[name][0]]
    assert alone[filled]


def saved(folder, family, tokenizer, dtype):
    """A small model, as it is loaded."""
    small_model(family, tokenizer, dtype).hf.save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
    return ft.load_model(str(folder / family), dtype=str(dtype).removeprefix("torch."))


PYTHON = [("llama", torch.float32)]
MORE = [("llama", torch.bfloat16), *((family, torch.float32) for family in OTHERS)]


@pytest.mark.parametrize(("family", "dtype"), PYTHON + [pytest.param(*one, marks=pytest.mark.slow) for one in MORE])
def test_python_has_the_same_values(tmp_path, small_tokenizer, on, monkeypatch, family, dtype):
    assert family in EVERY_FAMILY
    model = saved(tmp_path, family, small_tokenizer, dtype)
    facts = [ft.Fact(**one) for one in FACTS]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{one['prompt']} {one['subject']}" for one in FACTS) * 60)
    on(2)

    def computed(workers):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{workers}"))
        traced = ft.trace(model, facts, keep="all", windows=[2], samples=2, sigma=0.3, memory="3MB", workers=workers)
        edited = ft.edit(model, facts, method="ft-1", layers=[0, 2], essence=0, memory="3MB", steps=2, workers=workers)
        moments = ft.second_moments(model, corpus=text, tokens=1500, layers=[1, 3], workers=workers)
        return traced, edited, moments

    alone, many = computed(None), computed(2)
    assert many[0].facts.equals(alone[0].facts)
    assert many[0].cells.equals(alone[0].cells)
    assert many[1].scores.equals(alone[1].scores)
    assert many[1].prompts.equals(alone[1].prompts)
    for ours, theirs in zip(many[1].edits, alone[1].edits, strict=True):
        assert (ours.fact_id, ours.layer, [*ours.updates]) == (theirs.fact_id, theirs.layer, [*theirs.updates])
        assert all(torch.equal(ours.updates[at].change, theirs.updates[at].change) for at in theirs.updates)
    for layer in (1, 3):
        assert torch.equal(many[2].matrix(layer), alone[2].matrix(layer))


def test_a_connection_that_a_process_has_is_used_and_kept(place):
    code = (
        "import ray, fasttrace as ft\n"
        "ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "model, facts = ft.load_model('model'), ft.load_facts('facts.jsonl')\n"
        "asked = {'windows': [2], 'samples': 2, 'keep': 'all', 'sigma': 0.4}\n"
        "alone, shared = ft.trace(model, facts, **asked), ft.trace(model, facts, workers=1, **asked)\n"
        "assert alone.cells.equals(shared.cells) and len(alone.cells)\n"
        "assert ray.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
