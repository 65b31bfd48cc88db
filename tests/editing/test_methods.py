"""Every method on every problem, in batches, against its one-at-a-time oracle: changes of weights and scores."""

import unicodedata

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS, FACTS, check_zero, contexts_for
from edit_oracles import SIGMA, TUNE, noise_of, options_of, oracle, plain_target
from hooked_finetune import hooked_finetune
from hooked_rome import down_projection, noised
from hooked_trace import mlp_modules
from plain_scores import plain_neighborhood
from small_models import FAMILIES, small_model

import fasttrace as ft
from fasttrace.editing import prepare_edit
from fasttrace.editing.methods.memit import Memit
from fasttrace.editing.problems import PROBLEMS
from fasttrace.editing.spread import spread
from fasttrace.editing.value import ValueBatch, contexts_of
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.ops.noised_embed import fact_key
from fasttrace.settings.methods import METHODS, SOLVED, MemitSettings

CASES = [("llama", problem) for problem in PROBLEMS]
CASES += [(family, "error-injection") for family in ("gpt2", "gemma2")]
MORE = [("gpt2", problem) for problem in PROBLEMS if problem != "error-injection"]
MORE += [("gptj", "error-injection"), ("gptj", "fact-forcing"), ("gemma2", "fact-forcing")]
CASES += [pytest.param(*one, marks=pytest.mark.slow) for one in MORE]
LAYERS = [0, 1, 3]
# From this layer on no prediction sees a change at the subject. In other families it is the last layer. In the small
# Gemma 2 it is the one before, as windows hold four tokens.
UNSEEN_FROM = {"gemma2": 3}
# Facts that are likely enough in the small models to be erased (p ≥ 0.02). No target of FACTS is.
LIKELY = {
    "llama": [ft.Fact("{} is the capital of", "Rome", "Fr"), ft.Fact("{} of", "Eiffel Tower", "York")],
    "gpt2": [ft.Fact("The {} is located in the city of", "France", "capital"), ft.Fact("{} of", "France", "capital")],
}


def clear_of_rounding(history, part):
    """layer → (d, m) bool: the weights whose gradient is at least `part` of the layer's largest at every step.

    Adam's first step is lr · g/|g|. If g is rounding noise, the weight follows the noise, in plain float32 too.
    """
    clear = {}
    for _, gradients in history:
        for layer, g in gradients.items():
            clear[layer] = (g.abs() >= part * g.abs().max()) & clear.get(layer, torch.ones_like(g, dtype=torch.bool))
    return clear


def check_tuned(edit, wanted, history, options, part, slack):
    """Assert the oracle's loss, its weights to slack · ε where they are clear of rounding, and all weights within ε."""
    assert edit.loss == pytest.approx(history[-1][0], rel=1e-3)
    for at, clear in clear_of_rounding(history, part).items():
        assert float(clear.double().mean()) > 0.15, "a nearly empty mask would make this test empty"
        mine = edit.updates[at].matrix()
        assert float((mine - wanted[at]).abs()[clear].max()) < slack * options["epsilon"], at
        assert float(mine.abs().max()) <= options["epsilon"] * (1 + 1e-6)


def p_with(model, fact, changes, noise, target):
    """p(target) in plain transformers with the changes added to its weights, which are restored afterwards."""
    saved = {}
    with torch.no_grad():
        for layer, change in changes.items():
            module = down_projection(mlp_modules(model.hf)[layer])
            saved[layer] = module.weight.clone()
            across = type(module).__name__ == "Conv1D"
            module.weight += (change.T if across else change).to(module.weight.dtype)
        ids = model.tokenizer(fact.text)["input_ids"]
        with noised(model.hf, model.tokenizer, fact.text, fact.subject, noise):
            logp = model.hf(torch.tensor([[*ids, *target]])).logits[0].double().log_softmax(-1)
        for layer, weight in saved.items():
            down_projection(mlp_modules(model.hf)[layer]).weight.copy_(weight)
    return float(np.exp(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(target))))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "problem"), CASES)
def test_batched_equals_one_at_a_time(family, method, problem, small_tokenizer, corpus, tmp_path):
    model = small_model(family, small_tokenizer, torch.float32)
    ridge = 0.0 if family in ("llama", "gpt2") else 1e-3
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path, ridge=ridge)
    before = model.weights_hash()
    facts = LIKELY[family] if PROBLEMS[problem].minimise else FACTS
    plan = prepare_edit(
        model, facts, method=method, problem=problem, layers=LAYERS, moments=moments, **contexts_for(method),
        essence=0, sigma=SIGMA, **options_of(method),
    )  # fmt: skip
    parts = list(plan.batches())
    rows = [row for part in parts for row in part.scores.to_pylist()]
    edits = [edit for part in parts for edit in part.edits]
    assert model.weights_hash() == before
    kind = PROBLEMS[problem]
    assert len(edits) == len(LAYERS) * len(facts), "a fact left out would make this test empty"
    for edit in edits:
        fact = next(f for f in facts if f.fact_id == edit.fact_id)
        row = next(r for r in rows if r["fact_id"] == edit.fact_id and r["layer"] == edit.layer)
        if METHODS[method].solved and max(edit.updates) >= UNSEEN_FROM.get(family, model.n_layers - 1):
            check_zero(edit, row)
            continue
        assert row["reason"] is None
        # In float64, as a neuron in a GELU's tail is rounding noise in transformers' float32, which C⁻¹ magnifies.
        model.hf.double()
        history = []
        wanted = oracle(model, moments, fact, method, kind, edit.layer, sorted(edit.updates), history=history)
        model.hf.float()
        assert set(wanted) == set(edit.updates)
        noise = noise_of(model, fact) if kind.corrupted else None
        target = plain_target(model, fact, kind)
        assert row["target"] == small_tokenizer.decode(target).strip()
        assert row["p_before"] == pytest.approx(p_with(model, fact, {}, noise, target), rel=1e-4, abs=1e-8)
        tuned = method.startswith("ft")
        within = {"rel": 1e-3, "abs": 5e-6} if tuned else {"rel": 5e-3, "abs": 1e-4}
        assert row["p_after"] == pytest.approx(p_with(model, fact, wanted, noise, target), **within)
        largest = max(float(change.abs().max()) for change in wanted.values())
        assert largest > 0
        if tuned:
            # A weight that follows rounding noise moves all later gradients a little. Over 6 roundings of every case,
            # the largest error was 4e-3 ε (GPT-2, ft-5, fact-forcing), and 3e-4 ε elsewhere.
            check_tuned(edit, wanted, history, TUNE, part=1e-2, slack=1e-2)
            continue
        for at, change in wanted.items():
            assert float((edit.updates[at].matrix() - change).abs().max()) < 2e-3 * largest, (at, largest)


@pytest.mark.parametrize("method", ["ft-1", "ft-5"])
@pytest.mark.parametrize(("family", "problem"), CASES)
def test_one_step_of_fine_tuning_is_exact(family, method, problem, small_tokenizer):
    model, kind = small_model(family, small_tokenizer, torch.float32), PROBLEMS[problem]
    facts = LIKELY[family] if kind.minimise else FACTS
    options = {**options_of(method), "steps": 1}
    shared = {"method": method, "problem": problem, "layers": LAYERS, **contexts_for(method), "sigma": SIGMA}
    result = ft.edit(model, facts, essence=0, **shared, **options)
    assert len(result.edits) == len(LAYERS) * len(facts)
    model.hf.double()
    for edit in result.edits:
        fact, history = next(f for f in facts if f.fact_id == edit.fact_id), []
        window = sorted(edit.updates)
        wanted = oracle(model, None, fact, method, kind, edit.layer, window, options, history)
        check_tuned(edit, wanted, history, options, part=1e-3, slack=1e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in FAMILIES]
    + [
        pytest.param(family, dtype, marks=[pytest.mark.slow] if family not in ("llama", "gemma2") else [])
        for family in FAMILIES
        for dtype in (torch.bfloat16, torch.float64)
    ],
)
def test_edits_that_no_prediction_sees_are_zero(family, dtype, small_tokenizer, corpus, tmp_path):
    model = small_model(family, small_tokenizer, dtype)
    moments = ft.second_moments(model, corpus, tokens=600, sequence_length=32, cache_dir=tmp_path, ridge=1e-2)
    for method in SOLVED:
        result = ft.edit(
            model,
            FACTS,
            method=method,
            layers=[4],
            moments=moments,
            **contexts_for(method),
            essence=0,
            **options_of(method),
        )
        assert len(result.edits) == len(FACTS)
        for edit, row in zip(result.edits, result.scores.to_pylist(), strict=True):
            check_zero(edit, row)


# dtype → (error of ΔW, relative in norm; absolute error of p after the edit). Gradients in bfloat16 have two digits, of
# which Adam's first steps keep the signs. The layers are low, because gradients near the model's end are so small that
# bfloat16 turns signs.
DTYPE_ERRORS = {torch.float64: (1e-5, 1e-6), torch.bfloat16: (0.3, 0.015)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPE_ERRORS, ids=["float64", "bfloat16"])
def test_other_dtypes_stay_within_their_stated_error(dtype, method, small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, dtype)
    wide = small_model("llama", small_tokenizer, torch.float64)
    with torch.no_grad():
        for weight, rounded in zip(wide.hf.parameters(), model.hf.parameters(), strict=True):
            weight.copy_(rounded)
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    result = ft.edit(
        model,
        FACTS,
        method=method,
        layers=[0, 1],
        moments=moments,
        **contexts_for(method),
        essence=0,
        **options_of(method),
    )
    kind = PROBLEMS["error-injection"]
    of_change, of_p = DTYPE_ERRORS[dtype]
    for row, edit in zip(result.scores.to_pylist(), result.edits, strict=True):
        fact = next(f for f in FACTS if f.fact_id == edit.fact_id)
        wanted = oracle(wide, moments, fact, method, kind, edit.layer, sorted(edit.updates))
        for at, change in wanted.items():
            assert float((edit.updates[at].matrix() - change).norm()) < of_change * float(change.norm()), at
        p = p_with(wide, fact, wanted, None, plain_target(wide, fact, kind))
        assert row["p_after"] == pytest.approx(p, rel=0, abs=of_p)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4])
def test_a_bfloat16_fine_tuning_is_scored_as_it_is_written(epsilon, small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.bfloat16)
    result = ft.edit(
        model, FACTS, method="ft-5", window_size=3, layers=[2], essence=0, bias=True, **{**TUNE, "epsilon": epsilon}
    )
    for row, edit in zip(result.scores.to_pylist(), result.edits, strict=True):
        before = {at: (model.blocks[at].down.float(), model.blocks[at].down_bias.float()) for at in edit.updates}
        moved = 0
        with ft.apply_delta(model, edit.updates):
            for at, update in edit.updates.items():
                torch.testing.assert_close(model.blocks[at].down.float() - before[at][0], update.change, rtol=0, atol=0)
                torch.testing.assert_close(
                    model.blocks[at].down_bias.float() - before[at][1], update.bias, rtol=0, atol=0
                )
                moved += int((update.change != 0).sum())
        assert 0 < moved < 3 * model.width * model.key_width, "rounding loses some of the change, and not all"
        assert row["delta_norm"] == max(float(update.change.abs().max()) for update in edit.updates.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_memit_keeps_all_digits_of_a_small_delta(dtype, small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, dtype)
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    facts = [contexts_of(model, encode_fact(small_tokenizer, fact), (5,), CONTEXTS) for fact in FACTS]
    batch = ValueBatch(model, facts, [2], at="block", starts=[2])
    delta = 1e-4 * torch.randn(2, model.width, generator=torch.Generator().manual_seed(0))
    edits = spread(
        batch, [0, 1], 2, (2,), Memit(MemitSettings(), moments, model=model, places=[]), delta, torch.zeros(2)
    )
    for edit, wanted in zip(edits, delta, strict=True):
        torch.testing.assert_close(edit.updates[2].value[0], wanted, rtol=1e-6, atol=0)


def test_edits_move_their_target_in_the_right_direction(small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    strong = {"steps": 20, "lr": 2e-2, "epsilon": 5e-2}
    moved = {}
    for problem in PROBLEMS:
        plan = prepare_edit(
            model, FACTS, method="ft-5", problem=problem, layers=[2], essence=0, sigma=SIGMA, **strong
        )  # fmt: skip
        plan = type(plan)(**{**vars(plan), "left_out": {}})
        moved[problem] = [row for part in plan.batches() for row in part.scores.to_pylist()]
    for problem, rows in moved.items():
        for row in rows:
            down = PROBLEMS[problem].minimise
            assert (row["p_after"] < row["p_before"]) if down else (row["p_after"] > row["p_before"] + 0.05), problem
            assert row["rewrite"] > 0


@pytest.mark.parametrize("protocol", ["paper", "released"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_neighborhood_is_of_the_false_target_whatever_the_problem(problem, protocol, small_tokenizer):
    """This holds for the paper's protocol. The released one scores the edit's own target, on the first prompt."""
    model = small_model("llama", small_tokenizer, torch.float32)
    fact = ft.Fact(
        "{} is the capital of", "Rome", "Fr", "York",
        neighborhood=("Paris is the capital of", "New York is the capital of"),
    )  # fmt: skip
    plain = ft.Fact(fact.prompt, fact.subject, fact.target_true, neighborhood=fact.neighborhood, fact_id="plain")
    facts = [fact] if problem == "error-injection" else [fact, plain]
    plan = prepare_edit(
        model, facts, method="ft-1", problem=problem, layers=[1], essence=0, sigma=SIGMA, protocol=protocol,
        bias=False, early_stop=None, **TUNE,
    )  # fmt: skip
    prompts = [small_tokenizer(text)["input_ids"] for text in fact.neighborhood]
    scores = []
    [result] = plan.batches()
    for one, row, edit in zip(plan.encoded, result.scores.to_pylist(), result.edits, strict=True):
        own = protocol == "released" or one.fact.target_false is None
        target = plan.target_ids(one) if own else small_tokenizer(" York")["input_ids"]
        changes = {layer: update.change for layer, update in edit.updates.items()}
        read = prompts[:1] if protocol == "released" else prompts
        scores.append(plain_neighborhood(model.hf, changes, read, target))
        assert row["neighborhood"] == pytest.approx(scores[-1], abs=2e-6)
    if protocol == "paper" and len(facts) == 2:
        assert np.ptp(scores) > 1e-4, "targets with equal scores would make this test empty"


def test_released_o_noise_is_the_prompt_and_a_sampled_continuation(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    long = ft.Fact("The capital of New York and the {} is located in the city of", "Eiffel Tower", "Paris")
    facts = [*FACTS, long]
    plan = prepare_edit(
        model, facts, method="ft-1", problem="tracing-reversal", layers=[1], sigma=SIGMA, protocol="released",
        noise="released", seed=3,
    )  # fmt: skip
    for fact in facts:
        said = small_tokenizer(fact.text)["input_ids"]
        one = encode_fact(small_tokenizer, fact)
        noise = np.random.RandomState(1).randn(1, one.subject_end - one.subject_begin, model.width)[0] * SIGMA
        draws = np.random.default_rng((3, fact_key(fact.fact_id)))
        while len(said) < 12:
            with torch.no_grad(), noised(model.hf, small_tokenizer, fact.text, fact.subject, torch.from_numpy(noise)):
                top = model.hf(torch.tensor([said])).logits[0, -1].topk(5)
            said.append(int(draws.choice(top.indices, p=top.values.softmax(0))))
        text = unicodedata.normalize("NFKD", small_tokenizer.decode(said)).replace("\n\n", " ").strip()
        assert plan.noise_targets[fact.fact_id] == tuple(small_tokenizer(f" {text}")["input_ids"])
    assert text == long.text, "it has 12 tokens or more, so nothing is drawn after it"
    [result] = plan.batches(memory="1GB")
    assert all(row["p_after"] > row["p_before"] for row in result.scores.to_pylist())


def test_a_fact_too_weak_to_erase_is_left_out_with_its_reason(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    result = ft.edit(model, FACTS, method="ft-1", problem="fact-erasure", layers=[1, 2], essence=0, **TUNE)
    rows = result.scores.to_pylist()
    assert len(rows) == 4
    for row in rows:
        fact = next(f for f in FACTS if f.fact_id == row["fact_id"])
        p = p_with(model, fact, {}, None, small_tokenizer(" " + fact.target_true)["input_ids"])
        if p < 0.02:
            assert row["rewrite"] is None
            assert row["reason"].startswith(f"p(o_true) = {p:.4f} is below 0.02")
        else:
            assert row["reason"] is None
            assert row["rewrite"] is not None


def test_released_fine_tuning_also_changes_the_bias(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    result = ft.edit(
        model, FACTS[:1], method="ft-1", layers=[2], protocol="released", essence=0, early_stop=None, **TUNE
    )
    [edit] = result.edits
    target = small_tokenizer(" " + FACTS[0].target_false)["input_ids"]
    model.hf.double()
    change, shift = hooked_finetune(
        model.hf, small_tokenizer, FACTS[0].text, FACTS[0].subject, target, [2], 5, 5e-3, 1e-2, bias=True
    )[2]
    mine = edit.updates[2]
    assert float(((mine.change - change).abs() < 1e-5).double().mean()) > 0.995
    torch.testing.assert_close(mine.bias.double(), shift, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"method": "ft-1", "epsilon": "much"},
            "edit: epsilon: expected a number above 0 and at most 1000000, got 'much'",
        ),
        ({"method": "ft-1", "kl_factor": 1}, "ft-1 has no setting 'kl_factor'; expected one of epsilon, bias, lr"),
        ({"method": "memit", "steps": 2.5}, "edit: steps: expected a whole number from 1 to 100000, got 2.5"),
        (
            {"method": "memit", "covariance_weight": 0},
            "edit: covariance_weight: expected a number above 0 and at most 1000000000, got 0",
        ),
        ({"method": "ft-1", "epsilon": 0}, "edit: epsilon: expected a number above 0 and at most 1000000, got 0"),
        ({"method": "ft-5", "bias": "maybe"}, "edit: bias: expected true or false, got 'maybe'"),
        (
            {"method": "ft-1", "problem": "fact-forcing", "sigma": -1},
            "sigma: expected a number above 0 and at most 1000000 or 3sd, got -1",
        ),
        ({"method": "ft-1", "noise": "pink"}, "edit: noise: expected one of philox, released, got 'pink'"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(settings, sentence, small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    with pytest.raises(UserError, match=sentence):
        ft.edit(model, FACTS, layers=[1], **settings)


def test_a_zero_delta_gives_a_zero_edit(small_tokenizer, corpus, tmp_path):
    """The early stop leaves δ at 0. Above the window's first layer, values that are computed again may round apart."""
    model = small_model("gpt2", small_tokenizer, torch.float32)
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    shared = {"method": "memit", "moments": moments, "contexts": CONTEXTS, "protocol": "released", "early_stop": 1e6}
    shared |= options_of("memit")
    result = ft.edit(model, FACTS, layers=[1, 2], essence=0, **shared)
    for edit, row in zip(result.edits, result.scores.to_pylist(), strict=True):
        assert "the optimisation changed nothing" in edit.reason
        assert not edit.changes()
        assert (row["delta_norm"], row["p_after"]) == (0.0, row["p_before"])
    mass = ft.mass_edit(model, FACTS, layer=1, **shared)
    assert not any(update.changes() for update in mass.updates.values())
    for row in mass.scores.to_pylist():
        assert row["p_after"] == row["p_before"]
        assert "the optimisation changed nothing" in row["reason"]
