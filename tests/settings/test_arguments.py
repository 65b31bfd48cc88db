"""The keyword signatures that public functions get from their settings: at run time, in help, and for mypy."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from edit_cases import FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import Moments, prepare_edit
from fasttrace.errors import UserError
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.methods import FineTuneSettings, RomeSettings
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.trace import TraceSettings
from fasttrace.tracing import prepare_trace

ROOT = Path(__file__).parents[2]
OTHERS = Moments({}, "key", "hash", "a text", "hash", 9, 9, [0], Path("none"), ridge=0.5)


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


def test_settings_may_be_one_object(model):
    shared = {"windows": [3], "samples": 2, "sigma": 0.4, "keep": "all"}
    one = ft.trace(model, FACTS, **shared)
    two = ft.trace(model, FACTS, settings=TraceSettings(**shared))
    three = ft.trace(model, FACTS, settings=TraceSettings(windows="3", samples=2), sigma=0.4, keep="all")
    four = ft.trace(model, FACTS, settings={"windows": 3, "samples": 2}, sigma=0.4, keep="all")
    assert one.run["run_id"] == two.run["run_id"] == three.run["run_id"] == four.run["run_id"]
    assert one.cells.equals(two.cells)
    assert one.cells.equals(three.cells)


def test_an_edits_own_settings_are_an_object_or_keywords(model):
    shared = {"method": "ft-1", "layers": [1], "essence": 0}
    one = prepare_edit(model, FACTS, **shared, steps=3)
    two = prepare_edit(model, FACTS, settings=EditSettings(**shared, hyperparameters=FineTuneSettings(steps=3)))
    assert one.run["run_id"] == two.run["run_id"]
    assert one.hyperparameters == FineTuneSettings(steps=3), "the others keep the method's defaults"


@pytest.mark.parametrize(
    ("function", "given", "sentence"),
    [
        (
            ft.trace,
            {"settings": TraceSettings(samples=2), "samples": 3},
            "trace: samples: expected a value in settings",
        ),
        (ft.trace, {"settings": EditSettings()}, "trace: settings: expected TraceSettings, got EditSettings"),
        (ft.trace, {"settings": {"sampels": 3}}, "trace has no setting 'sampels'; did you mean 'samples'?"),
        (ft.trace, {"settings": 3}, "trace: settings: expected TraceSettings, got int"),
        (ft.trace, {"sampels": 3}, "trace has no setting 'sampels'; did you mean 'samples'?"),
        (ft.edit, {"hyperparameters": RomeSettings(), "steps": 3}, "edit: steps: expected a value in hyperparameters"),
        (ft.edit, {"method": "ft-1", "clamp": 3}, "ft-1 has no setting 'clamp'; expected one of"),
        (ft.edit, {"moments": object()}, "edit: moments: expected Moments, got object"),
        (
            ft.edit,
            {"moments": OTHERS, "ridge": 0.1},
            "edit: ridge: expected 0.5, as the moments have it, or no value, got 0.1",
        ),
        (ft.trace, {"seed": 2**63}, "trace: seed: expected a whole number from 0 to 92233720368547"),
        (
            ft.mass_edit,
            {"sigma": "loud"},
            "mass: sigma: expected a number above 0 and at most 1000000 or 3sd, got 'loud'",
        ),
        (ft.second_moments, {"settings": MomentSettings(), "tokns": 1}, "second_moments has no setting 'tokns'"),
    ],
)
def test_bad_keywords_are_refused_in_one_sentence(function, given, sentence, model):
    objects = [model] if function is ft.second_moments else [model, FACTS]
    with pytest.raises(UserError, match=re.escape(sentence)):
        function(*objects, **given)


def test_objects_are_given_by_position_or_by_name(model):
    by_place, by_name = prepare_trace(model, FACTS, sigma=0.4), prepare_trace(sigma=0.4, facts=FACTS, model=model)
    assert by_place.run["run_id"] == by_name.run["run_id"]
    with pytest.raises(UserError, match="trace: missing a required argument: 'facts'"):
        ft.trace(model)


def test_help_describes_every_keyword():
    text = inspect.getdoc(ft.trace)
    assert text.startswith("Causal tracing: compute the exact grid of every fact and window size in one sweep.")
    assert "    windows: Window sizes, as in 10,5,1 (layers)." in text
    assert "    progress: Called as progress(n) after n more facts; a bar by default" in text
    assert list(inspect.signature(ft.trace).parameters)[:2] == ["model", "facts"]
    assert str(inspect.signature(ft.edit).parameters["steps"]) == "steps: int = <the method's>"
    assert inspect.signature(ft.second_moments).parameters["corpus"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


SNIPPET = """
import fasttrace as ft
from fasttrace.settings.trace import TraceSettings

model, facts = ft.load_model(), ft.load_facts()
ft.trace(model, facts, windows=[5, 1], noise="philox", sigma="3sd", settings=TraceSettings(samples=3))
ft.edit(model, facts, method="memit", layers=[1], covariance_weight=2.0, key_mode="r-rome")
ft.mass_edit(model, facts, layer=3, moments=ft.second_moments(model, "text.txt", tokens=100))
reveal_type(ft.trace)
ft.trace(model, facts, sampels=3)
ft.trace(model, facts, noise="white")
ft.edit(model, facts, steps="many")
ft.mass_edit(model, facts, layer="first")
ft.second_moments(model, tokens=None)
TraceSettings(samples="x")
"""


def test_mypy_sees_the_signatures(tmp_path):
    (tmp_path / "snippet.py").write_text(SNIPPET)
    words = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "snippet.py"]
    lines = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    found = [re.search(r"snippet\.py:(\d+): error: (.*)", line) for line in lines]
    errors = {int(one[1]): one[2] for one in found if one}
    first = SNIPPET.splitlines().index("ft.trace(model, facts, sampels=3)") + 1
    assert list(errors) == list(range(first, first + 6))
    assert errors[first].startswith('Unexpected keyword argument "sampels" for "trace"; did you mean "samples"?')
    assert 'Argument "noise" to "trace" has incompatible type "Literal[\'white\']"' in errors[first + 1]
    assert 'Argument "steps" to "edit" has incompatible type "str"; expected "int"' in errors[first + 2]
    [revealed] = [line for line in lines if "Revealed type" in line]
    assert "windows: typing.Sequence[int] =, samples: int =" in revealed
    assert revealed.endswith('-> fasttrace.tracing.result.TraceResult"')
