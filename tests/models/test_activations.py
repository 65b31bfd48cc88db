"""Activations computed in one pass equal transformers' up to the rounding of the dtype."""

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.bloom.modeling_bloom import BloomGelu

from fasttrace.models.activations import activation

WRITTEN_OUT = {**{name: ACT2FN[name] for name in ("gelu_new", "gelu_fast")}, "bloom": BloomGelu().eval()}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_the_same_function(name):
    module = WRITTEN_OUT[name]
    mine = activation(module)
    assert mine is not module
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e4, -1e4])))
    wide = x.double()
    assert ((mine(wide.clone()) - module(wide)).abs() <= 1e-15 * (1 + wide.abs())).all()
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        error = (mine(given.clone()).double() - module(given.double())).abs()
        assert (error <= torch.finfo(dtype).eps * given.double().abs()).all()


@pytest.mark.parametrize("name", ["gelu", "relu", "quick_gelu", "silu"])
def test_others_are_kept(name):
    module = ACT2FN[name]
    assert activation(module) is module
