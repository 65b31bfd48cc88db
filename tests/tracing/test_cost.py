"""The plan's FLOPs against torch's count and the sweep's, and the cost of small budgets and of screening."""

import pytest
import torch
from small_models import small_model
from torch.utils.flop_counter import FlopCounterMode

import fasttrace as ft
from fasttrace.models.flops import block_rate
from fasttrace.tracing import prepare_trace
from fasttrace.tracing.cost import gemm_peak, item_flops, pass_work
from fasttrace.tracing.plan import METHODS, MODULES, split_waves
from fasttrace.tracing.wavefront import start_wave

FACT = ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="New York")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("tokens", ["all", "whole-subject"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("module", MODULES)
def test_products_are_those_that_torch_counts(module, method, tokens, family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    settings = {"windows": [3, 1], "samples": 2, "sigma": 0.4, "keep": "all"}
    plan = prepare_trace(model, [FACT], module=module, method=method, tokens=tokens, **settings)
    [item] = plan.items(plan.encoded)
    [wave] = split_waves([item], 10**6)
    with FlopCounterMode(display=False) as counter:
        start_wave(model, [item], wave, plan.intervention, 0.4, "philox", 0)()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if op.__name__ in ("mm", "addmm"))
    # The unembedding is inside an op of fasttrace, where torch does not count.
    work = pass_work(model, item, plan.intervention, item.cells, base=True)
    assert products == work.products
    scored = len(item.targets) * (1 + item.corrupted)
    assert work.unembed >= 2 * model.width * model.vocab_size * scored
    assert item_flops(model, item, plan.intervention) == work.products + work.attention + work.unembed


def test_a_small_budget_costs_more_waves_and_base_passes(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    plan = prepare_trace(model, [FACT], windows=[3, 1], samples=2, sigma=0.4, keep="all")
    whole, split = plan.cost("512MB"), plan.cost("400kB")
    assert (whole.facts, whole.waves) == (1, 1)
    assert split.waves > 1
    assert whole.flops == whole.wave_flops == split.flops < split.wave_flops
    assert whole.weight_bytes < split.weight_bytes
    assert split.peak_bytes < whole.peak_bytes
    result = ft.trace(model, [FACT], windows=[3, 1], samples=2, sigma=0.4, keep="all")
    assert len(result.cells) == whole.cells
    assert result.run["flops"] == whole.flops
    assert whole.computed == len(plan.items(plan.encoded)[0].cells)


def test_a_screen_costs_less_than_the_sweep_and_more_with_verification(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    settings = {"windows": [3, 1], "samples": 2, "sigma": 0.4, "keep": "all"}
    exact = prepare_trace(model, [FACT], **settings).cost().flops
    none, some = (
        prepare_trace(model, [FACT], method="attribution", verify_top=k, **settings).cost().flops for k in (0, 5)
    )
    assert none < some < exact
    result = ft.trace(model, [FACT], method="attribution", **settings)
    assert result.run["flops"] == none


def test_rates_are_measured(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    assert gemm_peak(model) > 1e6
    assert block_rate(model) > 1e6


def test_zeroing_draws_no_noise(small_tokenizer):
    plan = prepare_trace(small_model("gpt2", small_tokenizer, torch.float32), [FACT], method="zero", samples=10)
    [item] = plan.items(plan.encoded)
    assert (item.corrupted, item.runs) == (0, 1)
