"""Checks of stores: sound stores pass, and each store broken on purpose fails the right checks."""

import dataclasses
import itertools
import json
import shutil

import duckdb
import pytest
from made_results import COLUMN_OF, made_known, made_trace
from plausible import edit_result, mass_result, study_facts, trace_result
from real_store import real_store

from fasttrace.analysis.checks import checks, failures
from fasttrace.errors import StoreError
from fasttrace.store import Store

FACTS = study_facts(count=4)
IDS = ["f0", "f1"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Both protocols, kept samples, routing, edits of a fact without a trace and of a fact that was not added, heads,
    every metric, and counterfactuals."""
    store = Store(tmp_path_factory.mktemp("sound") / "sound.duckdb")
    store.add_facts(FACTS[:3])
    for protocol in ("paper", "released"):
        store.add(trace_result(FACTS[:2], windows=(3, 5), run_id=f"trace-{protocol}", protocol=protocol))
        store.add(edit_result(FACTS, run_id=f"edit-{protocol}", protocol=protocol))
    store.add(mass_result(FACTS, counts=(2, 4)))
    store.add(made_known([fact.fact_id for fact in FACTS], protocol=None))
    kept = trace_result(FACTS[2:3], run_id="trace-kept")
    store.add(with_routing(with_samples(kept)))
    for metric, method in itertools.product(COLUMN_OF, ("denoise", "noise")):
        asked = {"module": "head", "heads": "all", "metric": metric, "method": method}
        store.add(made_trace(IDS, run_id=f"{metric} {method}", heads=(0, 4), no_effect=("f1",), asked=asked))
    asked = {"corruption": "counterfactual", "metric": "logit-difference"}
    store.add(with_samples(made_trace(IDS, run_id="pairs", asked=asked)))
    asked = {"corruption": "counterfactual", "module": "head"}
    store.add(with_samples(made_trace(IDS, run_id="pairs of heads", heads=(1, 2), asked=asked)))
    return store


def with_samples(result):
    """The result with two equal samples of every cell."""
    keys = ["fact_id", "window_size", "token_index", "layer", "head", "p_restored", "logit_diff_restored"]
    rows = [row | {"sample": n} for n in range(2) for row in result.cells.select(keys).to_pylist()]
    return dataclasses.replace(result, samples=result.samples.from_pylist(rows, schema=result.samples.schema))


def with_routing(result):
    """The result with two experts at each of three tokens of two passes and two layers of its first fact."""
    [fact_id, *_] = result.facts["fact_id"].to_pylist()
    places = itertools.product((None, 0), range(3), range(2), (1, 5))
    rows = [dict(zip(result.routing.column_names, (fact_id, *place, 0.5), strict=True)) for place in places]
    return dataclasses.replace(result, routing=result.routing.from_pylist(rows, schema=result.routing.schema))


def broken(store, folder, *changes):
    """Return a copy of the store, changed by raw SQL."""
    path = folder / "broken.duckdb"
    shutil.copy(store.path, path)
    con = duckdb.connect(str(path))
    for change in changes:
        con.execute(change)
    con.close()
    return Store(path)


def test_a_sound_store_passes(sound, study, wide_study):
    for store in (sound, study, wide_study):
        table = failures(store)
        assert table.to_pylist() == []
        assert table.column_names == ["check", "rows", "example"]


def test_a_store_filled_by_the_engines_passes(small_tokenizer, tmp_path):
    assert failures(real_store(tmp_path / "real.duckdb", small_tokenizer)).to_pylist() == []


def test_an_empty_store_passes(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    assert failures(store).num_rows == 0


CELL = "run_id = 'trace-paper' AND fact_id = 'place-00' AND window_size = 5 AND token_index = 2 AND layer = 3"
EDIT = "run_id = 'edit-paper' AND fact_id = 'place-00' AND layer = 4"
BREAKS = {
    "a run gone": ("DELETE FROM runs WHERE run_id = 'edit-paper'", {"rows_without_their_run": 2}),
    "another kind": ("UPDATE runs SET kind = 'mass' WHERE run_id = 'edit-paper'", {"rows_without_their_run": 2}),
    "another protocol": (
        "UPDATE known SET protocol = 'released' WHERE fact_id = 'place-00'",
        {"rows_without_their_run": 1},
    ),
    "a trace gone": (
        "DELETE FROM traces WHERE run_id = 'trace-released' AND fact_id = 'place-01'",
        {"cells_without_a_trace": 2, "layer_effects_off": 60},
    ),
    "a trace left out": (
        "UPDATE traces SET kept = FALSE, reason = 'no' WHERE run_id = 'trace-kept'",
        {"cells_without_a_trace": 4},
    ),
    "a token of other experts": (
        "DELETE FROM trace_routing WHERE sample IS NULL AND token_index = 1 AND layer = 1 AND expert = 5",
        {"routing_off": 1},
    ),
    "an expert twice": (
        "UPDATE trace_routing SET expert = 5 WHERE sample = 0 AND token_index = 2 AND layer = 0",
        {"routing_off": 1},
    ),
    "an edit gone": (f"DELETE FROM edits WHERE {EDIT}", {"prompts_without_an_edit": 1}),
    "a cell twice": (
        f"INSERT INTO trace_cells SELECT * FROM trace_cells WHERE {CELL}",
        {"duplicate_cells": 1},
    ),
    "a sample twice": (
        "INSERT INTO trace_samples SELECT * FROM trace_samples WHERE run_id = 'trace-kept' AND layer = 2 "
        "AND token_index = 1 AND sample = 0",
        {"duplicate_samples": 1},
    ),
    "an effect twice": (
        "INSERT INTO trace_effects SELECT * FROM trace_effects WHERE run_id = 'trace-kept' AND layer = 2",
        {"duplicate_effects": 1},
    ),
    "an edit twice": (f"INSERT INTO edits SELECT * FROM edits WHERE {EDIT}", {"duplicate_edits": 1}),
    "a prompt twice": (
        f"INSERT INTO edit_prompts SELECT * FROM edit_prompts WHERE {EDIT}",
        {"duplicate_prompts": 1},
    ),
    "a prompt of a mass edit twice": (
        "INSERT INTO mass_prompts SELECT * FROM mass_prompts WHERE n_edits = 2 AND fact_id = 'place-00'",
        {"duplicate_prompts": 1},
    ),
    "a score of a mass edit gone": (
        "DELETE FROM mass_edits WHERE n_edits = 2 AND fact_id = 'place-00'",
        {"prompts_without_an_edit": 1},
    ),
    "a prompt's p of a mass edit above 1": (
        "UPDATE mass_prompts SET p_after = 1.0005 WHERE n_edits = 2 AND fact_id = 'place-00'",
        {"no_probability": 1},
    ),
    "a mass edit's run gone": ("DELETE FROM runs WHERE run_id = 'mass-1'", {"rows_without_their_run": 5}),
    "a scoring gone": (
        "DELETE FROM mass_prompts WHERE n_edits = 2; DELETE FROM mass_edits WHERE n_edits = 2",
        {"measures_without_scores": 3},
    ),
    "a score another than its prompt's": (
        f"UPDATE edit_prompts SET score = score + 1e-6 WHERE {EDIT}",
        {"scores_off": 1},
    ),
    "a p above 1": (f"UPDATE edits SET p_after = 1.0005 WHERE {EDIT}", {"no_probability": 1}),
    "a prompt's p above 1": (
        f"UPDATE edit_prompts SET p_true_after = 1.0005 WHERE {EDIT}",
        {"no_probability": 1},
    ),
    "overall another": (f"UPDATE edits SET overall = overall + 1e-6 WHERE {EDIT}", {"overall_is_no_mean": 1}),
    "overall missing": (f"UPDATE edits SET overall = NULL WHERE {EDIT}", {"overall_is_no_mean": 1}),
    "overall of two": (f"UPDATE edits SET paraphrase = NULL WHERE {EDIT}", {"overall_is_no_mean": 1}),
    "an effect another": (
        f"UPDATE trace_cells SET effect = effect - 1e-6 WHERE {CELL}",
        {"effects_off": 1, "layer_effects_off": 1},
    ),
    "an effect missing": (
        f"UPDATE trace_cells SET effect = NULL WHERE {CELL}",
        {"effects_off": 1, "layer_effects_off": 1},
    ),
    "p_restored another": (
        f"UPDATE trace_cells SET p_restored = p_restored / 2 WHERE {CELL.replace('paper', 'kept').replace('00', '02')}",
        {"effects_off": 1, "samples_off": 1},
    ),
    "p_noised another": (
        "UPDATE traces SET p_noised = 0.999 WHERE run_id = 'trace-paper' AND fact_id = 'place-00'",
        {"effects_off": 2 * 9 * 30},
    ),
    "an effect of a log-probability another": (
        "UPDATE traces SET logprob_noised = logprob_noised - 1e-6 "
        "WHERE run_id = 'log-probability denoise' AND fact_id = 'f0'",
        {"effects_off": 24},
    ),
    "an effect where the logit difference did not change": (
        "UPDATE trace_cells SET effect = 0 WHERE run_id = 'logit-difference noise' AND fact_id = 'f1' "
        "AND layer = 2 AND token_index = 1 AND head = 4",
        {"effects_off": 1, "layer_effects_off": 1},
    ),
    "a KL divergence another": (
        "UPDATE trace_cells SET kl_restored = kl_restored + 1e-6 WHERE run_id = 'kl denoise' AND fact_id = 'f0' "
        "AND layer = 0 AND token_index = 1 AND head = 4",
        {"effects_off": 1},
    ),
    "another direction than the effects'": (
        "UPDATE runs SET settings = replace(settings, 'noise', 'denoise') WHERE run_id = 'kl noise'",
        {"effects_off": 24},
    ),
    "a logit difference another than its samples'": (
        "UPDATE trace_samples SET logit_diff_restored = 9 WHERE run_id = 'pairs' AND fact_id = 'f0' AND sample = 0 "
        "AND layer = 0 AND token_index = 1",
        {"samples_off": 1},
    ),
    "the samples of another head": (
        "UPDATE trace_samples SET head = 7 WHERE run_id = 'pairs of heads' AND fact_id = 'f0' AND head = 1",
        {"samples_off": 3 * 4},
    ),
    "a head twice": (
        "UPDATE trace_cells SET head = 0 WHERE run_id = 'kl noise' AND fact_id = 'f0'",
        {"duplicate_cells": 3 * 4},
    ),
    "a head's sample twice": (
        "INSERT INTO trace_samples SELECT * FROM trace_samples WHERE run_id = 'pairs of heads' AND head = 1",
        {"duplicate_samples": 2 * 3 * 4 * 2},
    ),
    "a p of o_false above 1": (
        "UPDATE trace_cells SET p_false_restored = 1.0005 WHERE run_id = 'pairs' AND layer = 1 AND token_index = 0",
        {"no_probability": 2},
    ),
    "a layer's effect another": (
        "UPDATE trace_effects SET effect_last_subject = 0.5 WHERE run_id = 'trace-kept' AND layer = 3",
        {"layer_effects_off": 1},
    ),
    "a layer's effect gone": (
        "DELETE FROM trace_effects WHERE run_id = 'trace-kept' AND layer = 3",
        {"layer_effects_off": 1},
    ),
}


@pytest.mark.parametrize(("change", "wanted"), BREAKS.values(), ids=BREAKS)
def test_a_broken_store_fails_its_checks(sound, tmp_path, change, wanted):
    table = failures(broken(sound, tmp_path, change)).to_pylist()
    assert {row["check"]: row["rows"] for row in table} == wanted
    for row in table:
        assert json.loads(row["example"]).keys()


def test_an_example_names_the_row(sound, tmp_path):
    store = broken(sound, tmp_path, f"UPDATE edits SET overall = 0.25 WHERE {EDIT}")
    [row] = failures(store).to_pylist()
    example = json.loads(row["example"])
    assert (example["run_id"], example["fact_id"], example["layer"]) == ("edit-paper", "place-00", 4)
    assert (example["relation"], example["overall"]) == ("edits", 0.25)


def test_every_break_has_a_check_and_every_check_a_break():
    assert {name for _, wanted in BREAKS.values() for name in wanted} == set(checks())


@pytest.mark.parametrize("name", checks())
def test_every_check_is_documented(name):
    header = " ".join(line for line in checks()[name].splitlines() if line.startswith("--"))
    assert header.startswith(f"-- {name}: ")
    assert all(word in header for word in ("Grain:", "Inputs:", "Units:"))


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="there is no store at"):
        failures(Store(tmp_path / "x.duckdb"))
