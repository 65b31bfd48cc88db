"""The tokens of a trace: the method's own where none are given."""

import json

import pytest
import torch
from small_models import small_model

import fasttrace as ft
from fasttrace.settings.base import carried, given_by, replaced, run_settings
from fasttrace.settings.trace import TraceSettings
from fasttrace.tracing import prepare_trace

FACT = ft.Fact(prompt="The {} is in", subject="Eiffel Tower", target_true="Paris")
OWN = {"denoise": "all", "noise": "all", "attribution": "all", "zero": "whole-subject"}


@pytest.mark.parametrize(("method", "tokens"), OWN.items())
def test_the_tokens_are_the_methods_own(method, tokens):
    for given in ({}, {"tokens": None}, {"tokens": "none"}):
        one = TraceSettings(method=method, **given)
        assert one.tokens == run_settings(one)["tokens"] == tokens
        assert given_by(one) == {"method": method}


def test_other_tokens_can_be_asked_for():
    for tokens in ("all", "subject", "last-subject"):
        one = TraceSettings(method="zero", tokens=tokens)
        assert replaced(one, samples=3).tokens == carried(TraceSettings, one).tokens == tokens


def test_the_tokens_follow_the_method_until_they_are_given():
    asked = TraceSettings(tokens=None)
    assert asked.tokens == "all"
    assert replaced(asked, method="zero").tokens == "whole-subject"
    assert replaced(TraceSettings(tokens="all"), method="zero").tokens == "all"


def test_a_run_is_named_by_the_tokens_and_not_by_who_chose_them(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    plain, named, single = (
        prepare_trace(model, [FACT], method="zero", **given).run
        for given in ({}, {"tokens": "whole-subject"}, {"tokens": "all"})
    )
    assert plain["run_id"] == named["run_id"] != single["run_id"]
    assert [json.loads(run["settings"])["tokens"] for run in (plain, single)] == ["whole-subject", "all"]
