"""Default hyperparameters of each model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.csv import read_csv

from fasttrace.editing.hyperparameters import say_whose, settings_for
from fasttrace.editing.problems import PROBLEMS
from fasttrace.editing.tune import choose
from fasttrace.settings.methods import METHODS


def model(model_type, n_layers, width, key_width):
    config = SimpleNamespace(model_type=model_type)
    return SimpleNamespace(config=config, n_layers=n_layers, width=width, key_width=key_width)


SMOLLM2, GPTJ, GPT2_XL = model("llama", 30, 576, 1536), model("gptj", 28, 4096, 16384), model("gpt2", 48, 1600, 6400)
ANOTHER = model("qwen3", 36, 2560, 9728)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_model_of_another_width_gets_the_general_defaults(method, problem):
    default = settings_for(ANOTHER, method, problem, "paper")
    for stranger in (model("llama", 32, 4096, 11008), model("gptj", 28, 64, 256), model("gpt2", 48, 768, 3072)):
        assert settings_for(stranger, method, problem, "paper") == default


def test_a_model_without_values_of_its_own_says_whose_it_takes(caplog):
    llama, llama2 = ("llama", 32, 4096, 14336), ("llama", 32, 4096, 11008)
    for name, method, shape in (
        ("listed", "memit", ("gptj", 28, 4096, 16384)),
        ("listed", "ft-1", ("gpt2", 48, 1600, 6400)),
        ("listed", "alphaedit", ("llama", 30, 576, 1536)),
        ("listed", "alphaedit", llama),
        ("unlisted", "ft-1", llama),
        ("other", "alphaedit", llama2),
        ("other", "alphaedit", llama2),
        ("xl", "pmet", ("gpt2", 48, 1600, 6400)),
        ("listed", "pmet", ("gpt_neox", 44, 6144, 24576)),
    ):
        say_whose(name, method, shape)
    assert [one.getMessage() for one in caplog.records] == [
        "ft-1: no hyperparameters are published for 'unlisted': it takes those of GPT-J",
        "alphaedit: no hyperparameters are published for 'other': it takes those of GPT-J",
        "pmet: no hyperparameters are published for 'xl': it takes those of GPT-J",
    ]


def test_published_values_of_newer_models_and_methods():
    llama, qwen = model("llama", 32, 4096, 14336), model("qwen2", 28, 3584, 18944)
    found = {
        (name, method): settings_for(which, method, "error-injection", "paper")
        for name, which in (("gptj", GPTJ), ("xl", GPT2_XL), ("llama", llama), ("qwen", qwen))
        for method in METHODS
    }
    values = lambda name, method, *of: tuple(getattr(found[name, method], one) for one in of)  # noqa: E731
    alpha = ("steps", "lr", "clamp", "weight_decay", "kl_factor", "norm_weight", "null_threshold", "null_unit")
    assert values("gptj", "alphaedit", *alpha) == (25, 0.5, 0.75, 0.5, 0.0625, 10.0, 0.02, "absolute")
    pmet = ("steps", "lr", "clamp", "weight_decay", "kl_factor", "covariance_weight", "early_stop", "settled_factor")
    assert values("gptj", "pmet", *pmet) == (30, 0.2, 0.75, 0.5, 1.0, 6000.0, 0.05, 0.1)
    neox = settings_for(model("gpt_neox", 44, 6144, 24576), "pmet", "error-injection", "paper")
    assert tuple(getattr(neox, one) for one in pmet) == (30, 0.5, 0.8, 0.5, 0.8, 15000.0, 0.05, 0.1)
    assert values("xl", "alphaedit", *alpha) == (20, 0.5, 0.75, 0.5, 0.0625, 10.0, 0.02, "absolute")
    assert values("llama", "alphaedit", *alpha) == (25, 0.1, 0.75, 0.5, 0.0625, 10.0, 0.02, "absolute")
    assert values("qwen", "alphaedit", *alpha) == (25, 0.5, 4.0, 1e-3, 0.0625, 1.0, 0.02, "absolute")
    memit = ("steps", "lr", "clamp", "weight_decay", "kl_factor", "covariance_weight")
    assert values("llama", "memit", *memit) == (25, 0.1, 0.75, 0.5, 0.0625, 15000.0)
    assert values("qwen", "memit", *memit) == (25, 0.5, 4.0, 1e-3, 0.0625, 15000.0)
    emmet = ("steps", "lr", "clamp", "covariance_weight", "slack")
    assert values("gptj", "emmet", *emmet) == (25, 0.5, 0.75, 1.0, 0.1)
    assert values("xl", "emmet", *emmet) == (20, 0.5, 0.75, 1000.0, 0.1)
    assert values("llama", "emmet", *emmet) == (25, 0.5, 0.75, 1e5, 0.1)
    assert values("qwen", "rome", "steps", "weight_decay", "clamp") == (25, 1e-3, 4.0)


def test_a_null_space_that_is_given_takes_nothing_from_the_table(tmp_path):
    of_table = settings_for(SMOLLM2, "alphaedit", "error-injection", "paper")
    assert (of_table.null_threshold, of_table.null_unit) == (6.4e-4, "trace")
    given = METHODS["alphaedit"].settings
    for asked, wanted in (
        (given(null_threshold=0.1), (0.1, "absolute", None)),
        (given(null_unit="absolute"), (0.02, "absolute", None)),
        (given(projections="P.pt"), (0.02, "absolute", "P.pt")),
        (given(norm_weight=3.0), (6.4e-4, "trace", None)),
    ):
        found = settings_for(SMOLLM2, "alphaedit", "error-injection", "paper", asked)
        assert (found.null_threshold, found.null_unit, found.projections) == wanted


def test_smollm2_has_the_values_that_tuning_chose():
    rows = read_csv(Path(__file__).parents[2] / "analysis/results/smollm2-135m/tuning.csv").to_pylist()
    cells = {(row["method"], row["problem"]) for row in rows}
    assert {("memit", "fact-amplification"), ("ft-5", "fact-forcing"), ("ft-1", "tracing-reversal")} <= cells
    for method, problem in cells:
        chosen = choose([row for row in rows if (row["method"], row["problem"]) == (method, problem)])
        assert chosen["edits"] == 100
        found = getattr(settings_for(SMOLLM2, method, problem, "paper"), chosen["setting"])
        assert found == chosen["value"], (method, problem)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_released_has_no_values_tuned_for_smollm2(method, problem):
    assert settings_for(SMOLLM2, method, problem, "released") == settings_for(ANOTHER, method, problem, "released")


def test_the_papers_models_have_the_papers_values():
    assert settings_for(GPTJ, "rome", "error-injection", "paper").kl_factor == 1.0
    assert settings_for(GPT2_XL, "memit", "error-injection", "paper").covariance_weight == 20000.0
    assert settings_for(GPT2_XL, "ft-1", "error-injection", "paper").epsilon == 1e-3
    assert settings_for(ANOTHER, "rome", "error-injection", "paper").kl_factor == 0.0625
