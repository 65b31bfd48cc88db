"""The report's first screen: other results, other sentences, and none with a term of the trade."""

import itertools

import pytest
from plausible import edit_result, mass_result, study_facts, trace_result
from reports import written

from fasttrace.analysis.tables import fits_with_floor
from fasttrace.analysis.verdict import LITTLE, verdict
from fasttrace.store import Store

TERMS = ("R²", "rewrite", "denoise", "regression", "variance", "p(o_true)", "tracing effect", "score")


def fit(**changes):
    """A regression as fits_with_floor has it: 40 facts at 8 of 30 layers."""
    row = {
        "problem": "error-injection", "method": "rome", "protocol": "paper", "model": "toy", "module": "mlp",
        "localization": "denoise", "metric": "probability", "tokens": "all", "window_size": 5, "source": "counterfact",
        "edit_run_id": "e", "trace_run_id": "t", "score": "rewrite", "n": 320, "n_facts": 40, "n_layers": 8,
        "n_facts_left_out": 0, "n_below_0": 0, "n_outside": 0, "r2_layer": 0.6, "r2_effect": 0.02, "r2_both": 0.61,
        "diff": 0.01, "diff_low": 0.001, "diff_high": 0.03, "r2_effect_low": 0.0, "r2_effect_high": 0.06,
        "r2_layer_low": 0.5, "r2_layer_high": 0.7, "p_value": 0.3, "p_hotelling": 0.4,
    }  # fmt: skip
    return row | changes


CURVE = [{"layer": 29, "model": "toy", "window_size": 5}]


def said(*rows):
    """(answer, how sure, what weakens it) as plain text."""
    found = verdict(rows, [], CURVE)
    texts = (found.answer, " ".join(found.sure), " ".join(found.weak))
    return tuple(text.replace("\u00a0", " ") for text in texts)


def test_a_gain_that_is_chance_does_not_tell_where_to_edit():
    answer, sure, weak = said(fit())
    assert answer == (
        "Knowing where tracing finds a fact does not tell you where to edit it: in this store, which layer is edited "
        "accounts for 60.0 % of the differences in how well edits work, and where tracing finds the fact adds 1.0 "
        "points to that, no more than chance would."
    )
    assert sure == (
        "At the 5 % level that is not more than chance would add (Hotelling’s test, in which each fact counts once: "
        "p = 0.400). The gain is 1.0 points; between 0.1 points and 3.0 points in 95 % of resamples of the facts."
    )
    assert weak == (
        "It rests on 40 facts (counterfact) and 1 model, toy. Edits were made at 8 of 30 layers. Only a straight line "
        "was looked for: a bend would not be seen."
    )


@pytest.mark.parametrize(
    ("rows", "begins", "how_sure"),
    [
        ([{"p_hotelling": 0.001}], "Knowing where tracing finds a fact tells you little about", "is more than chance"),
        (
            [{"p_hotelling": 0.001, "diff": LITTLE}],
            "Knowing where tracing finds a fact helps to tell where to edit it",
            "is more than chance",
        ),
        ([{"diff": 0.3}], "Knowing where tracing finds a fact does not tell you", "not more than chance"),
        (
            [{"r2_effect": 0.9, "r2_effect_low": 0.8, "p_hotelling": 0.001}],
            "Knowing where tracing finds a fact tells you more about where to edit it than the layer does: in this "
            "store, where tracing finds the fact accounts for 90.0 %",
            "is more than chance",
        ),
        ([{"p_value": None, "p_hotelling": None}], "This store has too few facts to say", "No test is possible"),
        ([{"p_hotelling": None, "p_value": 0.01}], "Knowing where tracing finds a fact tells you little", "an F-test"),
        (
            [{"p_hotelling": 0.001}, {"method": "memit", "diff": 0.05}],
            "Knowing where tracing finds a fact tells you little about where to edit it: in this store, on average, "
            "which layer is edited accounts for 60.0 % of the differences in how well edits work, and where tracing "
            "finds the fact adds 3.0 points to that (5.0 points at most).",
            "In 1 of 2 combinations of problem and method it adds more than chance would",
        ),
    ],
)
def test_other_results_have_other_sentences(rows, begins, how_sure):
    answer, sure, _ = said(*(fit(**row) for row in rows))
    assert answer.startswith(begins)
    assert how_sure in sure
    assert not [term for term in TERMS if term in answer]


def test_chance_is_counted_and_the_largest_gain_is_named():
    rows = [fit(problem=p, method=m, p_hotelling=0.01) for p, m in itertools.product("abcde", ("rome", "ft-1"))]
    rows += [row | {"method": f"{row['method']}-2", "p_hotelling": 0.5} for row in rows]
    rows[3] |= {"diff": 0.06}
    _, sure, _ = said(*rows)
    assert "In 10 of 20 combinations" in sure
    assert "by chance alone, about 1 would" in sure
    assert "The largest gain (b · ft-1) is 6.0 points" in sure


def test_what_weakens_it_is_what_the_store_has():
    other = {"localization": "zero", "tokens": "whole-subject", "diff": 0.08, "p_hotelling": 0.001}
    row = fit(r2_layer_working=0.1, diff_working=0.13, n_facts_left_out=3, n_below_0=2, n_outside=5, n_facts=1,
              effect_min=-1.0, effect_max=2.0)  # fmt: skip
    answer, _, weak = said(row, fit(**other))
    assert "does not tell you" in answer, "the paper's own way decides"
    assert "It rests on 1 fact (counterfact)" in weak
    assert "Among the layers where edits work, it accounts for 10.0 %, and tracing adds 13.0 points." in weak
    assert "Traced in other ways, a fact’s place adds more: 8.0 points at most (mlp by zero; error" in weak
    assert "3 facts had no tracing effect or no score" in weak
    assert "Of 320 edits, 5 have a tracing effect below 0 or above 1" in weak
    assert "2 have a score below 0" in weak
    assert "adds no more: 1.0 points" in said(fit(), fit(**other | {"diff": 0.01}))[2]
    assert said(fit(**other))[0].startswith("Knowing where tracing finds a fact tells you little"), "no other way"


def test_attention_beside_mlps_is_another_way():
    answer, sure, weak = said(fit(), fit(module="attn", diff=0.2, p_hotelling=0.001))
    assert "does not tell you" in answer
    assert "combinations" not in sure
    assert "adds more: 20.0 points at most (attn by denoise; error-injection · rome)" in weak


def test_the_page_has_the_sentences_of_its_store(report, study, tmp_path):
    rows = fits_with_floor(study, "rewrite").to_pylist()
    found = verdict(rows, [], [])
    words = " ".join(report.page.words)
    assert found.answer in words
    assert all(sentence in words for sentence in found.sure)
    assert words.index(found.answer) < words.index("How sure is that?") < words.index("What weakens it?")
    facts = study_facts(count=3)
    for name, result, why in (
        ("trace", trace_result(facts), "it holds no edit of one fact at a time"),
        ("edit", edit_result(facts), "it holds edits and no traces"),
        ("mass", mass_result(facts, (3,)), "it holds no edit of one fact at a time"),
    ):
        store = Store(tmp_path / f"{name}.duckdb")
        store.add(result)
        page = written(store, tmp_path / f"{name}.html")
        assert f"does not say whether knowing where tracing finds a fact tells you where to edit it: {why}." in (
            page.text
        )
        assert "How sure" not in page.text
    store = Store(tmp_path / "apart.duckdb")
    store.add(trace_result(facts, windows=(10,)))
    store.add(edit_result(facts))
    text = written(store, tmp_path / "apart.html").text
    assert "no edit of it is compared with a trace of the same fact, model and window" in text
    assert "fasttrace tables --tracing-window 10 compares them" in text
