"""What every family and variant is held to: transformers' logits, a hooked forward for each cell of whole grids, and a
ROME edit scored with weights that are really written."""

import copy

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS
from edit_cases import FACTS as EDITED
from grids import EIFFEL, YORK, check_grids
from held_to import LOGITS, SCORES
from hooked_rome import down_projection
from hooked_trace import block_modules, mlp_modules
from small_models import (
    EVERY_FAMILY,
    EXPERTS,
    FAMILIES,
    VARIANTS_SLOW,
    float64_where_it_says_float32,
    small_model,
)

import fasttrace as ft
from fasttrace.editing.delta import parts_of
from fasttrace.models import packed

SEQUENCES = [[5, 9, 2, 7, 11, 3, 8, 1, 4], [17], [3, 3, 250]]


def transformers_logits(model):
    with torch.no_grad():
        return torch.cat([model.hf(torch.tensor([s])).logits[0] for s in SEQUENCES])


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_logits(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    theirs = transformers_logits(model)
    ours = packed.logits(model, packed.pack(model, SEQUENCES))
    assert theirs.abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LOGITS * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("family", VARIANTS_SLOW)
def test_rounded_logits_are_as_close_to_float64_as_transformers_own(family, dtype, small_tokenizer):
    model = small_model(family, small_tokenizer, dtype)
    for part in model.hf.modules():
        # A rounding that changes a router's choice changes a row by more than a rounding, so all experts are chosen.
        if hasattr(part, "num_experts") and hasattr(part, "top_k"):
            part.top_k = part.num_experts
            part.topk_group = getattr(part, "num_group", None)
    ours, theirs = packed.logits(model, packed.pack(model, SEQUENCES)), transformers_logits(model)
    model.hf = copy.deepcopy(model.hf).double()
    model.hf.set_experts_implementation("eager")
    float64_where_it_says_float32(model.hf)
    exact = transformers_logits(model)
    assert ours.dtype == dtype
    own = (theirs.double() - exact).abs()
    error = (ours.double() - exact).abs()
    assert float(error.mean()) < 2 * float(own.mean())
    assert float(error.max()) < 3 * float(own.max())


@pytest.mark.parametrize("family", VARIANTS_SLOW)
def test_reach_is_as_far_as_transformers_gradients_go(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    ids = torch.tensor([[5, 9, 2, 7, 11, 3, 8, 250, 4, 17, 6, 1]])
    after = []
    handles = [m.register_forward_hook(lambda m, args, out: after.append(_first(out))) for m in block_modules(model.hf)]
    model.hf.requires_grad_(True)
    logits = model.hf(ids).logits[0]
    for handle in handles:
        handle.remove()
    for token in range(ids.shape[1]):
        gradients = torch.autograd.grad(logits[token].square().sum(), after, retain_graph=True)
        for layer, gradient in enumerate(gradients):
            seen = gradient[0].any(-1).tolist()
            assert seen == [model.reach(layer, t) >= token >= t for t in range(ids.shape[1])], (layer, token)


def _weight_of(mlp, expert):
    return down_projection(mlp).weight if expert is None else mlp.experts.down_proj[expert]


def _first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_grids(family, small_tokenizer):
    _check_grids(family, "mlp", EIFFEL if family in FAMILIES else YORK, small_tokenizer)


@pytest.mark.parametrize("module", ["attn", "block", "head"])
@pytest.mark.parametrize("family", VARIANTS_SLOW)
def test_grids_of_other_modules(family, module, small_tokenizer):
    _check_grids(family, module, YORK, small_tokenizer)


def _check_grids(family, module, fact, small_tokenizer):
    """In one metric. Others are made of the same logits (tracing/test_counterfactual.py)."""
    model = small_model(family, small_tokenizer, torch.float64)
    check_grids(model, [fact], module=module, windows=[3], metrics=["kl"])


@pytest.mark.parametrize("method", ["denoise", pytest.param("zero", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", EXPERTS)
def test_grids_of_experts(family, method, small_tokenizer):
    """Of the second expert and of the last, which is the shared one where there is one."""
    model = small_model(family, small_tokenizer, torch.float64)
    corruption = {} if method == "denoise" else {"corruption": "noise", "samples": 1}
    metrics = ["probability", "logit-difference"]
    check_grids(
        model,
        [EIFFEL],
        module="expert",
        heads=[1, model.n_experts - 1],
        method=method,
        windows=[3],
        metrics=metrics,
        **corruption,
    )


@pytest.mark.parametrize("family", VARIANTS_SLOW)
def test_rome(family, small_tokenizer, corpus, tmp_path):
    """Probabilities after an edit are those of the model with the edit in its weights."""
    model = small_model(family, small_tokenizer, torch.float64)
    moments = ft.second_moments(model, corpus, tokens=600, sequence_length=32, cache_dir=tmp_path, ridge=1e-2)
    result = ft.edit(model, EDITED[:1], layers=[1], moments=moments, contexts=CONTEXTS, essence=0, steps=4, lr=0.5)
    [edit], [fact] = result.edits, EDITED[:1]
    for expert, part in parts_of(edit.updates[1]).items():
        weight = _weight_of(mlp_modules(model.hf)[1], expert)
        update = part.matrix()
        with torch.no_grad():
            weight += (update if weight.shape == update.shape else update.t()).to(weight.dtype)
    moved = []
    for row in result.prompts.to_pylist():
        for target, name in ((fact.target_false, "p"), (fact.target_true, "p_true")):
            ids = small_tokenizer(row["prompt"])["input_ids"]
            extra = small_tokenizer(" " + target)["input_ids"]
            with torch.no_grad():
                logp = model.hf(torch.tensor([[*ids, *extra]])).logits[0].log_softmax(-1)
            p = np.exp(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(extra)))
            assert row[f"{name}_after"] == pytest.approx(p, rel=SCORES)
            moved.append(abs(row[f"{name}_after"] - row[f"{name}_before"]) / p)
    assert max(moved) > 1e-2, "an edit that changes nothing would make this test empty"
