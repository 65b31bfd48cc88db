"""Default hyperparameters of each model."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.csv import read_csv

from fasttrace.editing.hyperparameters import settings_for
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
