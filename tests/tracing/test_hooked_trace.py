"""The plain reference of the sweep against what must hold of it by hand, without fasttrace's engine."""

import numpy as np
import pytest
import torch
from hooked_trace import Noise, hooked_trace
from small_models import FAMILIES, small_model

IDS, OTHERS = [5, 9, 2, 7, 11], [[5, 9, 30, 7, 11], [5, 17, 2, 7, 12]]
TARGETS, FALSE = [3, 8], [3, 21]


def logits_of(model, ids):
    with torch.no_grad():
        return model.hf(torch.tensor([ids])).logits[0].numpy()


def log_softmax(x):
    return x - np.log(np.exp(x - x.max()).sum()) - x.max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pass_has_the_measures_of_its_own_logits(family, small_tokenizer):
    """The clean pass and each counterfactual one, and cells that replace the whole residual by that of the other."""
    model = small_model(family, small_tokenizer, torch.float64)
    everything = [slice(0, len(IDS) + 1)]
    found = {
        method: hooked_trace(model.hf, IDS, TARGETS, OTHERS, 1, everything, "block", method, false=FALSE)
        for method in ("denoise", "noise")
    }
    at = len(IDS)  # the first token is shared, so the second is compared
    clean = log_softmax(logits_of(model, [*IDS, 3])[at])
    for number, ids in enumerate((IDS, *OTHERS)):
        logits = logits_of(model, [*ids, 3])
        first, here = log_softmax(logits[at - 1]), log_softmax(logits[at])
        logprob = first[3] + here[8]
        difference = logits[at, 8] - logits[at, 21]
        kl = (np.exp(clean) * (clean - here)).sum()
        expected = (np.exp(logprob), logprob, np.exp(here[21]), difference, kl)
        assert (kl == 0) if number == 0 else (kl > 1e-3)
        for traced in found.values():
            base = traced.clean if number == 0 else [x[number - 1] for x in traced.noised]
            np.testing.assert_allclose(base, expected, rtol=1e-11, atol=1e-13)
        if number:
            patched = [x[0, -1, number - 1] for x in found["noise"].patched]
            np.testing.assert_allclose(patched, expected, rtol=1e-11, atol=1e-13)
        else:
            for run in range(2):
                patched = [x[0, -1, run] for x in found["denoise"].patched]
                np.testing.assert_allclose(patched, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_at_once_are_what_attention_adds(family, small_tokenizer):
    """A norm after the projection is of each token by itself, so even there."""
    model = small_model(family, small_tokenizer, torch.float64)
    heads = range(model.hf.config.num_attention_heads)
    trace = lambda module, heads: hooked_trace(  # noqa: E731
        model.hf, IDS, TARGETS, OTHERS, 2, [1], module, heads=heads, false=FALSE
    )
    for mine, whole in zip(trace("head", heads).patched, trace("attn", ()).patched, strict=True):
        np.testing.assert_allclose(mine, whole, rtol=1e-11, atol=1e-12)
    single = [trace("head", [head]).patched.p for head in heads]
    assert len({tuple(np.round(p.reshape(-1) / p.max(), 9)) for p in single}) == len(heads), "heads must differ"
    nothing = trace("head", [])
    for mine, noised in zip(nothing.patched, nothing.noised, strict=True):
        np.testing.assert_allclose(mine, np.broadcast_to(noised, mine.shape), rtol=1e-11, atol=1e-12)


def test_noise_of_nothing_changes_nothing_and_zeros_need_no_noise(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    found = hooked_trace(model.hf, IDS, TARGETS, Noise(1, np.zeros((2, 2, 48))), 3, [1, 4], false=None)
    assert np.ptp(found.patched.p) < 1e-15
    assert np.abs(found.noised.kl).max() < 1e-15
    assert np.isnan(found.patched.logit_diff).all()
    assert np.isnan(found.clean.p_false)
    begun = hooked_trace(model.hf, IDS, TARGETS, [], 3, [1], "head", "zero", heads=[0], false=[3])
    assert begun.patched.p.shape == (1, 5, 1)
    assert np.isnan(begun.patched.logit_diff).all(), "one target begins the other"
    assert np.ptp(begun.patched.kl) > 1e-6
