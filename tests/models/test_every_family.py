"""What every family and variant is held to: transformers' logits, a hooked forward for each cell of whole grids, and a
ROME edit scored with weights that are really written."""

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS
from edit_cases import FACTS as EDITED
from grids import EIFFEL, check_grids
from held_to import LOGITS, SCORES
from hooked_rome import down_projection
from hooked_trace import mlp_modules
from small_models import EVERY_FAMILY, small_model

import fasttrace as ft
from fasttrace.models import packed

SEQUENCES = [[5, 9, 2, 7, 11, 3, 8, 1, 4], [17], [3, 3, 250]]


def transformers_logits(model, sequences=SEQUENCES):
    with torch.no_grad():
        return torch.cat([model.hf(torch.tensor([s])).logits[0] for s in sequences])


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_logits(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    theirs = transformers_logits(model)
    ours = packed.logits(model, packed.pack(model, SEQUENCES))
    ours = packed.logits(model, packed.pack(model, SEQUENCES))
    assert theirs.abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=LOGITS * float(theirs.abs().max()))


@pytest.mark.parametrize("module", ["mlp", "attn", "block", "head"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_grids(family, module, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    check_grids(model, [EIFFEL], module=module, windows=[3])


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_rome(family, small_tokenizer, corpus, tmp_path):
    """Probabilities after an edit are those of the model with the edit in its weights."""
    model = small_model(family, small_tokenizer, torch.float64)
    moments = ft.second_moments(model, corpus, tokens=600, sequence_length=32, cache_dir=tmp_path, ridge=1e-2)
    result = ft.edit(model, EDITED[:1], layers=[1], moments=moments, contexts=CONTEXTS, essence=0, steps=4, lr=0.5)
    [edit], [fact] = result.edits, EDITED[:1]
    weight = down_projection(mlp_modules(model.hf)[1]).weight
    update = edit.updates[1].matrix()
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
