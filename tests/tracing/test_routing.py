"""Where a mixture of experts sends each token, as a trace keeps it, against what transformers' experts are given."""

import numpy as np
import pytest
import torch
from grids import EIFFEL, PARIS, YORK
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.tracing.prepare import prepare_trace

SIGMA, SAMPLES = 1.5, 3
ASKED = {
    "sigma": SIGMA, "samples": SAMPLES, "noise": "released", "keep": "all", "windows": [2], "keep_routing": True,
}  # fmt: skip
KEY = ["fact_id", "sample", "token_index", "layer"]


@torch.no_grad()
def given(model, x):
    """layer → (experts, weights) that transformers' experts get for one sequence. x: (T, d) embeddings."""
    found, hooks = {}, []
    for number, layer in enumerate(model.blocks):
        experts = getattr(layer.mlp, "experts", None)
        if experts is not None:
            hooks.append(
                experts.register_forward_pre_hook(
                    lambda _, args, number=number: found.update({number: (args[1].numpy(), args[2].double().numpy())})
                )
            )
    model.hf(inputs_embeds=x[None])
    for hook in hooks:
        hook.remove()
    return found


def expected(model, fact, corruption):
    """{(sample, token, layer): {expert: weight}} of every pass, from whole forwards. sample: −1 is the clean pass."""
    encoded = encode_fact(model.tokenizer, fact)
    begin, end = encoded.subject_begin, encoded.subject_end
    embed = model.hf.get_input_embeddings()
    ids = torch.tensor([*encoded.ids, *encoded.target_true_ids[:-1]])
    clean = embed(ids).detach()
    passes, first = [clean], [0]
    if corruption == "noise":
        for drawn in SIGMA * np.random.RandomState(1).randn(SAMPLES, end - begin, model.width):
            x = clean.clone()
            x[begin:end] += torch.from_numpy(drawn).to(x.dtype)
            passes.append(x)
        first += [begin] * SAMPLES
    else:
        others = [model.tokenizer(text).input_ids for text in fact.counterfactuals]
        passes += [embed(torch.tensor([*other, *encoded.target_true_ids[:-1]])).detach() for other in others]
        first += [min(t for o in others for t in range(len(o)) if o[t] != encoded.ids[t])] * len(others)
    return {
        (sample - 1, token, layer): dict(zip(experts[token].tolist(), weights[token].tolist(), strict=True))
        for sample, x in enumerate(passes)
        for layer, (experts, weights) in given(model, x).items()
        for token in range(first[sample], len(encoded.ids))
    }


@pytest.mark.parametrize("corruption", ["noise", "counterfactual"])
@pytest.mark.parametrize("family", ["olmoe", "gpt-oss", "deepseek-v3"])
def test_routing_of_every_pass(family, corruption, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    facts = [EIFFEL, PARIS, YORK]
    result = ft.trace(model, facts, corruption=corruption, **ASKED)
    rows = result.routing.to_pandas()
    assert not rows.duplicated([*KEY, "expert"]).any()
    seen = set()
    for fact in facts:
        mine = rows[rows.fact_id == fact.fact_id]
        found = {}
        for row in mine.itertuples():
            sample = -1 if np.isnan(row.sample) else int(row.sample)
            found.setdefault((sample, row.token_index, row.layer), {})[row.expert] = row.weight
        wanted = expected(model, fact, corruption)
        assert found.keys() == wanted.keys()
        for place, experts in wanted.items():
            assert found[place] == pytest.approx(experts, abs=1e-12), place
            seen |= {(place[0] < 0, expert) for expert in experts}
            assert list(found[place].values()) == sorted(found[place].values(), reverse=True)
        changed = [
            place
            for place, experts in wanted.items()
            if place[0] >= 0 and experts.keys() != wanted[-1, *place[1:]].keys()
        ]
        assert changed, "the corruption changes no choice, so the test could not show a clean one in its place"
    assert len(seen) > 4


def test_routing_does_not_change_the_trace_and_is_stored(small_tokenizer, tmp_path):
    model = small_model("olmoe", small_tokenizer, torch.float32)
    plain, kept = (ft.trace(model, [EIFFEL, PARIS], **ASKED | {"keep_routing": keep}) for keep in (False, True))
    assert kept.cells.equals(plain.cells)
    assert plain.routing.num_rows == 0
    assert kept.run["run_id"] != plain.run["run_id"]
    plan = prepare_trace(model, [EIFFEL, PARIS], **ASKED)
    assert plan.cost().flops == kept.run["flops"] > plain.run["flops"]
    store = ft.Store(tmp_path / "s.duckdb")
    for _ in range(2):
        store.add(kept)
    stored = store.query("SELECT * EXCLUDE (run_id, protocol) FROM trace_routing")
    key = [(name, "ascending") for name in (*KEY, "expert")]
    assert stored.sort_by(key).to_pylist() == kept.routing.sort_by(key).to_pylist()
    assert stored.num_rows > 0


def test_routing_in_small_forwards_is_the_same(small_tokenizer):
    model = small_model("olmoe", small_tokenizer, torch.float64)
    facts = [EIFFEL, PARIS, YORK]
    whole, parts = (ft.trace(model, facts, memory=memory, **ASKED).routing for memory in ("512MB", "600kB"))
    key = [(name, "ascending") for name in (*KEY, "expert")]
    whole, parts = (table.sort_by(key) for table in (whole, parts))
    assert whole.drop("weight").equals(parts.drop("weight"))
    assert np.abs(whole["weight"].to_numpy() - parts["weight"].to_numpy()).max() < 1e-12


def test_routing_that_cannot_be_kept_is_refused(small_tokenizer):
    dense, mixture = (small_model(family, small_tokenizer, torch.float32) for family in ("llama", "olmoe"))
    with pytest.raises(UserError, match="keep_routing: expected a mixture of experts, got 'llama', which has none"):
        ft.trace(dense, [EIFFEL], **ASKED)
    with pytest.raises(UserError, match="keep_routing: expected engine wavefront, got engine hooked"):
        ft.trace(mixture, [EIFFEL], engine="hooked", **ASKED)
