"""The wavefront against one hooked forward per cell: every cell, several families, both noises."""

import copy
import json

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from grids import EIFFEL, YORK, check_grids
from hooked_trace import Noise, hooked_trace
from small_models import FAMILIES, small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.ops.noised_embed import fact_key, noised_embed
from fasttrace.tracing.plan import METHODS, MODULES

FACTS = [
    ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris"),
    ft.Fact(prompt="{} is the capital of", subject="Paris", target_true="New York", target_false="Rome"),
]

# Each embeds, or sees, its tokens in another way. Clean grids of every family are in models/test_every_family.py.
QUICK = ("llama", "gpt2", "gptj", "gemma2", "bloom", "opt")


def noise_of(model, fact, samples, noise, seed):
    """(n, subject tokens, d) standard normals of a fact, as the sweep draws them."""
    encoded = encode_fact(model.tokenizer, fact)
    count = encoded.subject_end - encoded.subject_begin
    if noise == "released":
        return np.random.RandomState(1).randn(samples, count, model.width)
    place = torch.arange(encoded.subject_begin, encoded.subject_end).repeat(samples)
    rows = len(place)
    z = noised_embed(
        torch.zeros(1, model.width, dtype=torch.float64),
        torch.zeros(rows, dtype=torch.int64),
        torch.ones(rows),
        torch.full((rows,), fact_key(fact.fact_id)),
        torch.arange(samples).repeat_interleave(count),
        place,
        seed,
    )
    return z.view(samples, count, model.width).numpy()


def check_every_cell(model, facts, result, windows, samples, sigma, noise, seed, tolerance, relative=True):
    """Assert every cell's mean and standard error within `tolerance` (times the grid's largest value if relative)."""
    cells = result.cells.to_pandas()
    for fact, row in zip(facts, result.facts.to_pylist(), strict=True):
        encoded = encode_fact(model.tokenizer, fact)
        z = noise_of(model, fact, samples, noise, seed)
        for window in windows:
            tokens = range(len(encoded.ids))
            added = Noise(encoded.subject_begin, sigma * z)
            found = hooked_trace(model.hf, encoded.ids, encoded.target_true_ids, added, window, tokens)
            clean, noised, restored = found.clean.p, found.noised.p, found.patched.p
            limit = tolerance * (restored.max() if relative else 1.0)
            assert row["p_clean"] == pytest.approx(clean, abs=limit)
            assert row["p_noised"] == pytest.approx(noised.mean(), abs=limit)
            mine = cells[(cells.fact_id == fact.fact_id) & (cells.window_size == window)]
            grid = mine.sort_values(["token_index", "layer"])
            sem = restored.std(-1, ddof=1) / np.sqrt(samples)
            for name, expected in (("p_restored", restored.mean(-1)), ("p_restored_sem", sem)):
                assert expected.std() > 50 * limit, "the oracle's grid is too flat to show errors"
                assert np.abs(grid[name].to_numpy().reshape(expected.shape) - expected).max() < limit


@pytest.mark.parametrize(
    ("family", "noise", "windows"),
    [(family, "philox", [4, 1]) for family in QUICK]
    + [pytest.param(family, "philox", [4, 1], marks=pytest.mark.slow) for family in FAMILIES if family not in QUICK]
    + [("llama", "released", [10, 3]), ("gpt2", "released", [5])],
)
def test_grid_equals_hooked_forwards(family, noise, windows, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    settings = {"windows": windows, "samples": 3, "sigma": 0.5, "noise": noise, "seed": 3}
    result = ft.trace(model, FACTS, keep="all", **settings)
    check_every_cell(model, FACTS, result, **settings, tolerance=1e-11)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_grid_equals_hooked_forwards_float32(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float32)
    settings = {"windows": [5], "samples": 4, "sigma": 0.4, "noise": "released", "seed": 0}
    result = ft.trace(model, FACTS, keep="all", **settings)
    check_every_cell(model, FACTS, result, **settings, tolerance=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_grid_on_a_gpu_equals_hooked_forwards(family, small_tokenizer):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    hf = copy.deepcopy(small_model(family, small_tokenizer, torch.float32).hf).cuda()
    model = ft.wrap_model(hf, small_tokenizer)
    settings = {"windows": [5], "samples": 4, "sigma": 0.4, "noise": "released", "seed": 0}
    result = ft.trace(model, FACTS, keep="all", **settings)
    check_every_cell(model, FACTS, result, **settings, tolerance=1e-4)
    check_grids(model, [EIFFEL, YORK], module="head", tolerance=1e-5)


def check_intervention(model, module, method, tokens, windows):
    """Compare every cell of two facts, both passes and the effects with hooked forwards in float64.

    tokens: None leaves the choice to the method and expects the whole subject. Module "head" is all heads at once.
    Returns the cells.
    """
    settings = {"samples": 3, "sigma": 0.5, "noise": "released", "module": module, "method": method}
    settings |= {} if tokens is None else {"tokens": tokens}
    settings |= {"heads": "at-once"} if module == "head" else {}
    heads = range(model.blocks[0].n_heads) if module == "head" else ()
    result = ft.trace(model, FACTS, keep="all", windows=windows, **settings)
    cells = result.cells.to_pandas()
    for fact, row in zip(FACTS, result.facts.to_pylist(), strict=True):
        encoded = encode_fact(model.tokenizer, fact)
        begin, end = encoded.subject_begin, encoded.subject_end
        z = noise_of(model, fact, 3, "released", 0)
        spots = range(len(encoded.ids)) if tokens == "all" else [slice(begin, end)]
        for window in windows:
            traced = hooked_trace(
                model.hf, encoded.ids, encoded.target_true_ids, Noise(begin, 0.5 * z), window, spots, module, method,
                heads=heads,
            )  # fmt: skip
            clean, noised, expected = traced.clean.p, traced.noised.p, traced.patched.p
            grid = cells[(cells.fact_id == fact.fact_id) & (cells.window_size == window)]
            grid = grid.sort_values(["token_index", "layer"])
            found, limit = grid.p_restored.to_numpy(), 1e-11 * expected.max()
            assert np.abs(found - expected.mean(-1).reshape(-1)).max() < limit
            assert expected.std() > 50 * limit, "the oracle's grid is too flat to show errors"
            assert row["p_clean"] == pytest.approx(clean, abs=limit)
            assert row["p_noised"] == (None if method == "zero" else pytest.approx(noised.mean(), abs=limit))
            effect = {
                "denoise": (found - noised.mean()) / (clean - noised.mean()),
                "noise": (clean - found) / (clean - noised.mean()),
                "zero": (clean - found) / clean,
            }[method]
            defined = method == "zero" or noised.mean() < clean
            stored = grid.effect.to_numpy()
            assert np.isnan(stored).all() if not defined else np.abs(stored - effect).max() < 1e-9
    return cells


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("module", MODULES)
def test_every_module_and_method_equals_hooked_forwards(module, method, family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    for tokens in ("all", "whole-subject"):
        check_intervention(model, module, method, tokens, [4, 1])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama", "gpt2"}))
def test_noising_of_every_family_equals_hooked_forwards(family, small_tokenizer):
    """Denoising is held to them in models/test_every_family.py, and zeroing below."""
    check_intervention(small_model(family, small_tokenizer, torch.float64), "block", "noise", "all", [3])


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroing_is_of_all_subject_tokens_at_once_by_default(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    encoded = encode_fact(model.tokenizer, FACTS[0])
    assert encoded.subject_end - encoded.subject_begin > 1, "one token at a time would be the same"
    cells = check_intervention(model, "mlp", "zero", None, [4, 1])
    assert (cells.effect < 0).any(), "effects of zeroing that raises p are kept"


def test_targets_that_are_one_token(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    settings = {"windows": [3], "samples": 3, "sigma": 0.5, "noise": "released"}
    # The answer may be the end-of-text token alone, as here for the first fact.
    first = encode_fact(model.tokenizer, FACTS[0]).ids
    model.hf.generation_config.eos_token_id = int(model.hf(torch.tensor([first])).logits[0, -1].argmax())
    for scored in ("first-token", "argmax-first"):
        result = ft.trace(model, FACTS, keep="all", scored=scored, **settings)
        for fact, row in zip(FACTS, result.facts.to_pylist(), strict=True):
            encoded = encode_fact(model.tokenizer, fact)
            token = encoded.target_true_ids[0]
            if scored == "argmax-first":
                token = int(model.hf(torch.tensor([encoded.ids])).logits[0, -1].argmax())
            added = Noise(encoded.subject_begin, 0.5 * noise_of(model, fact, 3, "released", 0))
            traced = hooked_trace(model.hf, encoded.ids, [token], added, 3, range(len(encoded.ids)))
            clean, expected = traced.clean.p, traced.patched.p
            cells = result.cells.to_pandas()
            found = cells[cells.fact_id == fact.fact_id].sort_values(["token_index", "layer"]).p_restored.to_numpy()
            assert np.abs(found.reshape(expected.shape[:2]) - expected.mean(-1)).max() < 1e-11 * expected.max()
            assert (row["p_clean"], row["scored"]) == (pytest.approx(clean), model.tokenizer.decode([token]))


def test_samples_are_kept_if_asked_for(small_tokenizer, tmp_path):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    settings = {"windows": [3, 1], "samples": 4, "sigma": 0.4, "keep": "all"}
    assert len(ft.trace(model, FACTS, **settings).samples) == 0
    result = ft.trace(model, FACTS, keep_samples=True, **settings)
    key = ["fact_id", "window_size", "token_index", "layer"]
    drawn = result.samples.to_pandas().groupby(key).p_restored.agg(["mean", "sem", "count"]).reset_index()
    both = result.cells.to_pandas().merge(drawn, on=key, validate="one_to_one")
    assert len(both) == len(result.cells)
    assert (both["count"] == 4).all()
    assert np.allclose(both["mean"], both.p_restored, rtol=1e-12, atol=0)
    assert np.allclose(both["sem"], both.p_restored_sem, rtol=1e-9, atol=1e-18)
    store = ft.Store(tmp_path / "s.duckdb")
    assert (store.add(result), store.add(result)) == (2, 0)
    assert store.query("SELECT count(*) FROM trace_samples")[0][0].as_py() == 4 * len(result.cells)


def test_real_model_against_hooked_forwards(smollm2):
    fact = ft.Fact(prompt="{} is in", subject="Tokyo", target_true="Japan")
    settings = {"windows": [5], "samples": 2, "sigma": 0.4, "noise": "released", "seed": 0}
    result = ft.trace(smollm2, [fact], keep="all", **settings)
    check_every_cell(smollm2, [fact], result, **settings, tolerance=1e-5, relative=False)


def test_waves_do_not_change_values(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    one = ft.trace(model, FACTS, windows=[5, 1], samples=3, sigma=0.4, keep="all")
    many = ft.trace(model, FACTS, windows=[5, 1], samples=3, sigma=0.4, keep="all", memory="600kB")
    alone = ft.trace(model, FACTS[1:], windows=[1], samples=3, sigma=0.4, keep="all")
    key = ["fact_id", "window_size", "token_index", "layer"]
    a, b, c = (r.cells.to_pandas().sort_values(key).reset_index(drop=True) for r in (one, many, alone))
    assert np.allclose(a.p_restored, b.p_restored, rtol=0, atol=1e-7)
    same = a[(a.fact_id == FACTS[1].fact_id) & (a.window_size == 1)]
    assert np.allclose(same.p_restored, c.p_restored, rtol=0, atol=1e-7)


def test_too_little_memory_is_refused_in_a_sentence(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    with pytest.raises(UserError, match=r"memory: expected a budget of at least .* rows for fact"):
        ft.trace(model, FACTS, sigma=0.4, keep="all", memory="1kB")


def test_effects_follow_the_protocol(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    targets = ("Paris", "France", "Rome", "New York", "capital", "city", "Tower", "located", "Eiffel", "the")
    facts = [ft.Fact(prompt=FACTS[0].prompt, subject=FACTS[0].subject, target_true=t) for t in targets]
    for protocol in ("paper", "released"):
        result = ft.trace(model, facts, sigma=0.4, keep="all", samples=3, protocol=protocol)
        assert result.run["settings"].count('"noise": "released"') == (protocol == "released")
        hurt = {fact["p_noised"] < fact["p_clean"] for fact in result.facts.to_pylist()}
        assert hurt == {True, False}, "both branches below must be reached"
        for fact in result.facts.to_pylist():
            mine = [c for c in result.cells.to_pylist() if c["fact_id"] == fact["fact_id"]]
            p_clean, p_noised = fact["p_clean"], fact["p_noised"]
            top = max(p_clean, max(c["p_restored"] for c in mine))
            for cell in mine:
                restored = cell["p_restored"] - p_noised
                if protocol == "released":
                    assert cell["effect"] == pytest.approx(max(0, restored / abs(top - p_noised)))
                elif p_noised >= p_clean:
                    assert cell["effect"] is None
                else:
                    assert cell["effect"] == pytest.approx(restored / (p_clean - p_noised))


def test_settings_are_checked(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    for bad, message in (
        ({"windows": [0]}, r"trace: windows: expected a list .* whole number from 1 to 10000, got \[0\]"),
        ({"samples": 0}, "trace: samples: expected a whole number from 1 to 1000000, got 0"),
        ({"noise": "white"}, "trace: noise: expected one of philox, released, got 'white'"),
        ({"sigma": -1.0}, "trace: sigma: expected a number above 0 and at most 1000000 or 3sd, got -1.0"),
        ({"tokens": "some"}, "tokens: expected one of all, subject, .*, got 'some'"),
        ({"keep": "some"}, "keep: expected one of known, all, got 'some'"),
        ({"protocol": "mine"}, "protocol: expected one of paper, released, got 'mine'"),
        ({"module": "norm"}, "module: expected one of mlp, attn, block, head, expert, got 'norm'"),
    ):
        with pytest.raises(UserError, match=message):
            ft.trace(model, FACTS, **{"keep": "all", **bad})


@pytest.mark.parametrize("tokens", ["subject", "last-subject"])
def test_fewer_tokens_give_the_same_cells(tokens, small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    settings = {"windows": [3], "samples": 3, "sigma": 0.4, "keep": "all"}
    whole, part = (ft.trace(model, FACTS, tokens=t, **settings) for t in ("all", tokens))
    rows = {(c["fact_id"], c["token_index"], c["layer"]): c["p_restored"] for c in whole.cells.to_pylist()}
    for fact in part.facts.to_pylist():
        found = {c["token_index"] for c in part.cells.to_pylist() if c["fact_id"] == fact["fact_id"]}
        first = fact["subject_begin"] if tokens == "subject" else fact["subject_end"] - 1
        assert found == set(range(first, fact["subject_end"]))
    for cell in part.cells.to_pylist():
        place = cell["fact_id"], cell["token_index"], cell["layer"]
        assert cell["p_restored"] == pytest.approx(rows[place], rel=1e-5)


def three_deviations(model, facts):
    encoded = [encode_fact(model.tokenizer, fact) for fact in facts]
    ids = [i for e in encoded for i in e.ids[e.subject_begin : e.subject_end]]
    return float(3 * model.embed_weight[ids].std())


def test_the_noise_scale_is_three_deviations_of_the_embeddings_of_a_named_set_of_subjects(small_tokenizer, tmp_path):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    once = {"keep": "all", "samples": 1, "tokens": "last-subject"}
    by_default, asked = ft.trace(model, FACTS, **once), ft.trace(model, FACTS[:1], sigma="3sd", **once)
    expected = three_deviations(model, ft.load_facts())
    assert by_default.facts["sigma"][0].as_py() == pytest.approx(expected, rel=1e-5)
    assert by_default.run["run_id"] == asked.run["run_id"]
    file = tmp_path / "subjects.jsonl"
    records = [{name: getattr(fact, name) for name in ("prompt", "subject", "target_true")} for fact in FACTS]
    file.write_text("\n".join(map(json.dumps, records)))
    of_file = ft.trace(model, FACTS[:1], sigma_facts=file, **once)
    assert of_file.facts["sigma"][0].as_py() == pytest.approx(three_deviations(model, FACTS), rel=1e-5)


def test_one_sample_has_no_standard_error(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    result = ft.trace(model, FACTS, keep="all", samples=1, sigma=0.4)
    assert result.cells["p_restored_sem"].null_count == len(result.cells)


def test_two_facts_of_one_id_are_refused(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    other = ft.Fact(**{f: getattr(FACTS[0], f) for f in ("prompt", "subject", "target_true")}, target_false="Rome")
    with pytest.raises(UserError, match="expected a unique id per fact"):
        ft.trace(model, [FACTS[0], other], keep="all")
    assert len(ft.trace(model, [FACTS[0], FACTS[0]], keep="all", samples=1).facts) == 1


def test_a_prompt_longer_than_the_models_positions_is_refused(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    long = ft.Fact(prompt="{} is" + " the city of" * 60, subject="Paris", target_true="Rome")
    with pytest.raises(UserError, match="expected at most 160 tokens"):
        ft.trace(model, [long], keep="all")


@pytest.mark.parametrize("method", METHODS)
def test_cells_that_no_scored_token_sees_equal_the_base_pass_to_the_bit(method, small_tokenizer):
    """Computing such cells could give other bits, since in MKL's products rounding depends on a row's position."""
    from fasttrace.tracing.plan import Cell, Intervention, make_item

    model = small_model("mistral", small_tokenizer, torch.float32)  # every layer sees four tokens
    result = ft.trace(model, FACTS, keep="all", windows=[1], samples=3, sigma=0.5, method=method, tokens="all")
    unseen = 0
    for fact, row in zip(FACTS, result.facts.to_pylist(), strict=True):
        encoded = encode_fact(small_tokenizer, fact)
        item = make_item(encoded, [1], model.n_layers, "all", method)
        base = row["p_noised"] if method == "denoise" else row["p_clean"]
        for cell in result.cells.filter(pc.field("fact_id") == fact.fact_id).to_pylist():
            place = Cell(cell["token_index"], cell["layer"], cell["layer"] + 1)
            if not item.sees(model, place, Intervention(method=method)):
                unseen += 1
                assert cell["p_restored"] == base
                if method != "denoise":
                    assert cell["p_restored_sem"] in (0.0, None)
    assert unseen > 10


@pytest.mark.parametrize("method", ["denoise", "noise", "attribution"])
def test_noise_that_no_scored_token_sees_leaves_nothing_to_restore(method, small_tokenizer):
    model = small_model("mistral", small_tokenizer, torch.float32)  # five windows of four tokens reach 15 tokens
    prompt = "The {} is located in the city of Paris is the capital of France of Rome and New York is the city of"
    fact = ft.Fact(prompt=prompt, subject="Eiffel Tower", target_true="Paris")
    encoded = encode_fact(small_tokenizer, fact)
    assert model.reach(-1, encoded.subject_end - 1) < len(encoded.ids) - 1
    result = ft.trace(model, [fact], keep="all", windows=[1], samples=3, sigma=0.5, method=method)
    [row] = result.facts.to_pylist()
    assert row["p_noised"] == row["p_clean"]
    assert set(result.cells["p_restored"].to_pylist()) == {row["p_clean"]}
    assert set(result.cells["p_restored_sem"].to_pylist()) == {0.0}
    assert result.cells["effect"].null_count == len(result.cells)
