"""The paper's claims beside a store's results: numbers are those of the tables, and verdicts follow from intervals."""

import math

import numpy as np
import pytest
from click.testing import CliRunner
from plausible import edit_result, study_facts, trace_result

from fasttrace.analysis import claims as module
from fasttrace.analysis import tables
from fasttrace.analysis.beside import beside_paper, published
from fasttrace.analysis.claims import CONFIRMED, OPEN, REFUTED, claims
from fasttrace.analysis.regression import layer_correlations
from fasttrace.analysis.tables import paper_table
from fasttrace.cli import cli
from fasttrace.errors import StoreError, UserError
from fasttrace.store import Store

XL = "openai-community/gpt2-xl"


def by_source(table):
    return {row["source"]: row for row in table.to_pylist()}


def model_of(store):
    [name] = {
        row["model"] for row in store.query("SELECT DISTINCT model FROM runs WHERE model IS NOT NULL").to_pylist()
    } - {XL}
    return name


@pytest.fixture(scope="session")
def one_set(tmp_path_factory):
    """ROME for error injection alone, of one model and one set of facts."""
    store = Store(tmp_path_factory.mktemp("claims") / "one.duckdb")
    facts = study_facts(count=14)
    store.add_facts(facts)
    store.add(trace_result(facts, windows=(5, 10)))
    store.add(edit_result(facts, essence=0.9))
    return store


def test_the_papers_tables_are_complete():
    rows = published()
    assert [sum(row["table"] == number for row in rows) for number in range(1, 7)] == [1, 1, 20, 20, 20, 20]
    for row in rows:
        assert 0 <= row["r2_effect"] <= row["r2_both"] <= 1
        assert row["r2_layer"] <= row["r2_both"]
        if row["diff"] is not None:  # all four numbers are rounded to three decimals
            assert row["diff"] == pytest.approx(row["r2_both"] - row["r2_layer"], abs=0.0016)
    first = next(row for row in rows if row["table"] == 1)
    third = next(row for row in rows if (row["table"], row["problem"], row["method"]) == (3, "error-injection", "rome"))
    assert [first[name] for name in ("r2_layer", "r2_effect", "r2_both")] == [0.947, 0.016, 0.948]
    assert first["r2_layer"] == third["r2_layer"]
    assert max(row["diff"] for row in rows if row["table"] == 3) == module.MOST_GAIN


def test_every_cell_is_beside_the_papers(one_set):
    table = beside_paper(one_set, resamples=200).to_pylist()
    assert [row["table"] for row in table] == [1, *([2] if table[1]["table"] == 2 else []), 3, 4, 5, 6]
    [ours] = paper_table(one_set, 3, resamples=200).to_pylist()
    [row] = [row for row in table if row["table"] == 3]
    for name in ("r2_layer", "r2_effect", "r2_both", "diff"):
        # DuckDB's threads add in an order of their own, so two computations differ in their last bits.
        for end in ("", "_low", "_high"):
            assert row[f"{name}{end}"] == pytest.approx(ours[f"{name}{end}"], rel=1e-9), f"{name}{end}"
    assert (row["r2_layer_paper"], row["p_paper"], row["n"]) == (0.947, "<1e-4", ours["n"])


def test_claims_have_the_tables_numbers(one_set):
    found = by_source(claims(one_set, resamples=1000))
    [ours] = paper_table(one_set, 1).to_pylist()
    assert (
        f"{ours['r2_layer']:.3f} [{ours['r2_layer_low']:.3f}, {ours['r2_layer_high']:.3f}]" in found["Table 1"]["here"]
    )
    assert found["Table 1"]["verdict"] == (CONFIRMED if ours["r2_layer_low"] > ours["r2_effect_high"] else OPEN)
    assert found["Table 3"]["verdict"] != CONFIRMED, "the store has one of 20 regressions"
    rows = layer_correlations(one_set, "rewrite").to_pylist()
    assert "at layer 4" in found["Figure 4"]["here"], (
        "the default layer of a model with 30 layers is 6, and 4 is edited"
    )
    at_4 = next(row for row in rows if row["layer"] == 4)
    assert found["Figure 4"]["here"].startswith(f"ρ {at_4['rho']:.3f}".replace("-", "−"))
    assert found["Figure 21"]["verdict"] == "no data", "nothing was zeroed"
    assert found["Figure 12"]["verdict"] != "no data"


def test_too_few_resamples_give_no_verdict(one_set):
    """The interval of a single resample has no width, and would decide every claim."""
    with pytest.raises(UserError, match="resamples: expected a whole number from 200 to 1000000, got 199"):
        claims(one_set, resamples=199)
    [row] = [row for row in beside_paper(one_set, resamples=0).to_pylist() if row["table"] == 3]
    assert row["r2_layer"] == pytest.approx(paper_table(one_set, 3, resamples=0)["r2_layer"][0].as_py(), rel=1e-9)
    assert row["r2_layer_low"] is None


def test_several_runs_are_not_mixed(tmp_path, monkeypatch):
    """The second run has other essence scores. Neither is a difference between layers. No regression is made twice."""
    made, regressions = [], tables.regressions

    def counted(store, score="rewrite", **choice):
        made.append((score, *sorted(choice.items())))
        return regressions(store, score, **choice)

    store, facts = Store(tmp_path / "two.duckdb"), study_facts(count=6)
    store.add_facts(facts)
    store.add(trace_result(facts))
    store.add(edit_result(facts, essence=0.9))
    store.add(edit_result(facts, essence=0.2, run_id="again"))
    found = by_source(claims(store, resamples=200))
    for source in ("Table 1", "section 4.1", "Figure 8", "Figure 4"):
        assert found[source]["verdict"] == "no data", source
        assert "several runs or data sets at" in found[source]["here"]
    assert found["Figure 10"]["here"] == "traces of one window size"
    monkeypatch.setattr(tables, "regressions", counted)
    with pytest.raises(StoreError, match="got several runs or data sets at error-injection, rome"):
        beside_paper(store, resamples=200)
    assert len(made) == len(set(made)) > 1


def test_one_fact_decides_nothing(tmp_path):
    store, facts = Store(tmp_path / "one.duckdb"), study_facts(count=1)
    store.add_facts(facts)
    store.add(trace_result(facts, windows=(5, 10)))
    store.add(edit_result(facts, essence=0.9))
    verdicts = set(claims(store, resamples=200)["verdict"].to_pylist())
    assert verdicts == {OPEN, "no data"}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([(0.01, 0.005, 0.02, 0.5), (0.02, 0.01, 0.032, 1e-6)], CONFIRMED),
        ([(0.01, 0.005, 0.02, 0.5), (0.02, 0.01, 0.033, 1e-6)], OPEN),
        ([(0.01, 0.005, 0.02, 0.5), (0.05, 0.033, 0.07, 1e-6)], REFUTED),
        ([(0.01, 0.005, 0.02, 0.5), (0.05, 0.033, 0.07, 0.03)], OPEN),  # chance, as there are two regressions
        ([(0.01, 0.005, 0.02, 0.5), (0.02, None, None, None)], OPEN),
    ],
)
def test_a_gain_is_judged_by_its_interval(gains, verdict):
    names = ("diff", "diff_low", "diff_high", "p_hotelling")
    fits = {("p", str(i)): dict(zip(names, row, strict=True)) for i, row in enumerate(gains)}
    assert module._at_most(fits, 0.032, "").verdict == verdict


def test_a_refuted_gain_names_the_regression_that_refutes_it():
    names = ("diff", "diff_low", "diff_high", "p_hotelling")
    rows = {"chance": (0.2, 0.01, 0.4, 0.07), "sure": (0.06, 0.04, 0.12, 1e-6), "surer": (0.07, 0.05, 0.12, 1e-6)}
    fits = {("p", cell): dict(zip(names, row, strict=True)) for cell, row in rows.items()}
    largest, refutes = "0.200 [0.010, 0.400] (p, chance; Hotelling's p = 0.070)", "0.070 [0.050, 0.120] (p, surer; "
    said = module._at_most(fits, 0.032, "").ours
    assert said.startswith(f"at most {largest}; 3 regressions, of which 2 refute it, the largest {refutes}")
    del fits["p", "chance"], fits["p", "sure"]
    assert module._at_most(fits, 0.032, "").ours.endswith("; 1 regression, of which 1 refutes it")


@pytest.mark.parametrize(
    ("rho", "n", "verdict"),
    [(0.5, 100, REFUTED), (0.05, 100, OPEN), (-0.5, 100, CONFIRMED), (0.05, 10_000, REFUTED), (0.0, 10_000, CONFIRMED)],
)
def test_a_correlation_is_judged_by_its_interval(rho, n, verdict):
    found = module._not_positive([{"rho": rho, "n": n, "layer": 3}], "")
    assert found.verdict == verdict
    assert f"ρ {rho:.3f}".replace("-", "−") in found.ours


def test_fishers_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    x, e = random.standard_normal((2, 2000, 40))
    y = 0.4 * x + math.sqrt(1 - 0.16) * e
    rhos = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(x, y, strict=True)]
    ends = [module._fisher({"rho": rho, "n": 40}, 1) for rho in rhos]
    assert np.mean([low <= 0.4 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.015)


def test_results_of_two_models_are_not_mixed(whole):
    with pytest.raises(StoreError, match="expected a choice of model and protocol, got results of"):
        claims(whole, resamples=200)
    found = by_source(claims(whole, model=XL, resamples=200))
    assert found["Table 1"]["verdict"] != "no data"
    assert found["section 5.3"]["verdict"] == "no data", "the store forces no facts of GPT2-XL"


def test_the_verb_prints_claims_and_cells(one_set):
    where = ["--store", str(one_set.path), "--resamples", "200"]
    text = CliRunner().invoke(cli, ["claims", *where])
    assert text.exit_code == 0, text.output
    assert text.output.splitlines()[-1].startswith(f"{len(module.CLAIMS)} claims: ")
    cells = CliRunner().invoke(cli, ["claims", "--cells", "--format", "markdown", *where]).output
    assert "R² layer, paper | R² layer |" in cells
    empty = Store(one_set.path.parent / "empty.duckdb")
    empty.create()
    with pytest.raises(StoreError, match=r"expected edits of traced facts in .*, got none"):
        claims(empty)
