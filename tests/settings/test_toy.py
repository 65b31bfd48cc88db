"""One line in TraceSettings, `toy`, is an option everywhere. The next commit reverts the one with this test."""

import inspect
import json
import shlex

import pytest
import torch
from click.testing import CliRunner
from edit_cases import FACTS
from fasttrace.analysis.commands import run_commands
from small_models import small_model

import fasttrace as ft
from fasttrace.cli import cli
from fasttrace.settings.study import keys
from fasttrace.study import load_study


def test_one_line_is_an_option_everywhere(small_tokenizer, tmp_path):
    assert str(inspect.signature(ft.trace).parameters["toy"]) == "toy: int = 3"
    assert "toy: An option that shows what one line makes (pieces)." in inspect.getdoc(ft.trace)
    shown = " ".join(CliRunner().invoke(cli, ["trace", "--help"]).output.split())
    assert "--toy INTEGER An option that shows what one line makes (pieces). [default: 3]" in shown
    assert "toy" in keys("trace")
    (tmp_path / "own.toml").write_text("[[trace]]\ntoy = 4\n")
    assert load_study(str(tmp_path / "own.toml")).traces[0].toy == 4
    model = small_model("llama", small_tokenizer, torch.float32)
    with pytest.raises(ft.UserError, match="trace: toy: expected a whole number of at least 0, got -1"):
        ft.trace(model, FACTS, toy=-1)
    plain, toyed = (ft.trace(model, FACTS, sigma=0.4, samples=1, keep="all", **more) for more in ({}, {"toy": 4}))
    assert "toy" not in json.loads(plain.run["settings"]), "at its default it renames no run"
    assert json.loads(toyed.run["settings"])["toy"] == 4
    assert toyed.run["run_id"] != plain.run["run_id"]
    [_, line] = run_commands([toyed.run], {toyed.run["run_id"]: {"layers": None}}, "study.duckdb")[toyed.run["run_id"]]
    words = shlex.split(line)
    assert words[words.index("--toy") + 1] == "4"
