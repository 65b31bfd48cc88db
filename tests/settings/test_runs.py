"""Names of runs: the runs of a version keep their names when settings are added."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import prepare_edit, prepare_mass_edit
from fasttrace.runs import describe_run
from fasttrace.settings.base import run_settings, setting, settings, settings_of
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.mass import MassSettings
from fasttrace.settings.methods import hyperparameters
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.trace import TraceSettings
from fasttrace.tracing import prepare_trace

# Runs recorded at version 0.2.0, whose numbers differ from those of 0.1.0: keywords, settings and run_id of each, for a
# model with the hash below. That of the second moments was recorded again with format 2, whose sums have another order.
# Values that depend on the installed tokenizers and transformers are compared only through `run_id`.
FIRST_RUNS = json.loads((Path(__file__).parent / "first_runs.json").read_text())
MODEL = SimpleNamespace(model_hash="f180fc78dc7acd68", dtype_name="float32", name="llama", device="cpu")
OF_THE_MACHINE = {"moments", "model", "ids", "corpus", "n_tokens"}
PREPARE = {"trace": prepare_trace, "edit": prepare_edit, "mass": prepare_mass_edit}

# Settings that every run stores. They are those of the first release, and no later one may be added.
ALWAYS = {
    TraceSettings: {"windows", "samples", "module", "method", "tokens", "scored", "keep", "noise", "sigma"},
    EditSettings: {
        "method", "problem", "window_size", "contexts", "essence", "noise", "sigma", "noise_sample", "corpus",
        "corpus_tokens", "ridge",
    },
    MomentSettings: {"layers", "sequence_length", "ridge"},
}  # fmt: skip
ALWAYS[MassSettings] = ALWAYS[EditSettings] | {"layer", "at_once", "score_every"}


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"{fact.text} {fact.target_true}" for fact in FACTS * 40))
    return path


@pytest.fixture(scope="module")
def moments(model, text):
    return ft.second_moments(
        model, text, tokens=1500, sequence_length=32, layers=[3, 1, 2], cache_dir=text.parent, ridge=0.001
    )


@pytest.mark.parametrize("first", FIRST_RUNS, ids=[run["case"] for run in FIRST_RUNS])
def test_the_first_releases_runs_keep_their_names(first, model, text, moments):
    if first["kind"] == "moments":
        run = ft.second_moments(model, text, cache_dir=text.parent, **first["given"]).run
    elif first["kind"] == "trace":
        run = prepare_trace(model, FACTS, **first["given"]).run
    else:
        layers = {"layers": [2]} if first["kind"] == "edit" else {}
        tuned = first["given"].get("method") in ("ft-1", "ft-5")
        shared = {} if tuned else {"moments": moments, "contexts": CONTEXTS}
        run = PREPARE[first["kind"]](model, FACTS, **shared, **layers, **first["given"]).run
    made, was = json.loads(run["settings"]), first["settings"]
    assert made.keys() == was.keys()
    assert {name: made[name] for name in made.keys() - OF_THE_MACHINE} == {
        name: was[name] for name in was.keys() - OF_THE_MACHINE
    }
    assert (run["kind"], run["seed"], run["protocol"]) == (first["kind"], first["seed"], first["protocol"])
    again = describe_run(first["kind"], MODEL, was, seed=run["seed"], protocol=run["protocol"])
    assert again["run_id"] == first["run_id"]


@settings("trace")
class Later(TraceSettings):
    """Settings of a later release, which has one more."""

    toy: int = setting(default=3, help="A toy")


def test_a_later_setting_names_only_the_runs_that_change_it():
    assert run_settings(Later()) == run_settings(TraceSettings())
    assert run_settings(Later(toy=3, samples=2)) == run_settings(TraceSettings(samples=2))
    assert run_settings(Later(toy=4)) == run_settings(TraceSettings()) | {"toy": 4}


@pytest.mark.parametrize("kind", ALWAYS, ids=lambda kind: kind.__name__)
def test_only_the_first_releases_settings_are_in_every_run(kind):
    assert {name for name, one in settings_of(kind).items() if one.names_run == "always"} == ALWAYS[kind]


def test_hyperparameters_are_in_every_run():
    own = hyperparameters()
    del own["projections"]  # a file, which names runs by its content
    del own["norm_weight"]  # younger than MEMIT's runs, which it names where it is not 0
    assert all(one.names_run == "always" for one in own.values())
