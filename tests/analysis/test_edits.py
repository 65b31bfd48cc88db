"""What N edits do: the saved query, the figure and the exhibit, from a store that the engine filled."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.analysis.draw_edits import MEASURES
from fasttrace.analysis.exhibits_edits import edits
from fasttrace.analysis.figures import edits_figure, save
from fasttrace.analysis.relation import relation
from fasttrace.errors import StoreError

MORE = [
    *FACTS,
    ft.Fact("{} is the capital of", "Rome", "New York", "France", neighborhood=("Paris is the capital of",)),
    ft.Fact("The city of {} is located in", "New York", "Paris", "Rome"),
    ft.Fact("The capital of {} is", "France", "Paris", "Rome"),
]
TUNED = {"method": "ft-1", "steps": 3, "lr": 5e-2, "epsilon": 0.2, "layer": 1, "score_every": 2}


@pytest.fixture(scope="module")
def edited(tmp_path_factory, small_tokenizer):
    """A store with MEMIT in groups of two with and without earlier keys, and FT-1 one by one; the three results."""
    folder = tmp_path_factory.mktemp("edits")
    text, held_out = folder / "text.txt", folder / "held-out.txt"
    text.write_text(" ".join(f"{fact.text} {fact.target_true}" for fact in MORE * 40))
    held_out.write_text("The capital of France is the city of Paris. " * 9)
    model = small_model("llama", small_tokenizer, torch.float32)
    moments = ft.second_moments(model, text, tokens=1500, sequence_length=32, cache_dir=folder, ridge=1e-3)
    memit = {"moments": moments, "contexts": CONTEXTS, "layer": 2, "window_size": 3, "steps": 5, "lr": 0.5}
    memit |= {"covariance_weight": 0.05, "at_once": 2, "score_every": 1}
    asked = {"held_out": held_out, "fluency": 2, "generate": 4}
    near = tuple(f"{city} is the capital of" for city in ("London", "Oslo", "Paris"))
    said = Counter(model.generate(list(near), max_new_tokens=1))
    answered = ft.Fact("{} is in", "Rome", said.most_common(1)[0][0], "York", neighborhood=near, target_prefix="")
    facts = [answered, *MORE[1:]]  # whose neighbors the model answers
    results = [ft.mass_edit(model, facts, past_keys=which, **memit, **asked) for which in ("keep", "ignore")]
    results.append(ft.mass_edit(model, facts, **TUNED, **asked))
    store = ft.Store(folder / "study.duckdb")
    for result in results:
        store.add(result)
    return store, results


def test_the_query_has_the_means_of_all_new_and_earlier_edits(edited):
    store, results = edited
    rows = {(row["edit_run_id"], row["n_edits"]): row for row in relation(store, "edits_by_number").to_pylist()}
    assert len(rows) == 9
    for result, at_once, past_keys in zip(results, (2, 2, 1), ("keep", "ignore", None), strict=True):
        for n_edits in (2, 4, 5):
            row = rows[result.run["run_id"], n_edits]
            scores = [one for one in result.scores.to_pylist() if one["n_edits"] == n_edits]
            first_new = n_edits - (1 if n_edits == 5 else at_once)  # the last group has one fact
            rewrite = [one["rewrite"] for one in scores]
            assert (row["at_once"], row["past_keys"], row["n"]) == (at_once, past_keys, n_edits)
            assert row["rewrite"] == pytest.approx(np.mean(rewrite))
            assert row["rewrite_newest"] == pytest.approx(np.mean(rewrite[first_new:]))
            if first_new:
                assert row["rewrite_earlier"] == pytest.approx(np.mean(rewrite[:first_new]))
            else:
                assert row["rewrite_earlier"] is None
            near = [one["neighborhood"] for one in scores if one["neighborhood"] is not None]
            assert row["neighborhood"] == pytest.approx(np.mean(near))
            prompts = [one for one in result.prompts.to_pylist() if one["n_edits"] == n_edits]
            matches = [one["match_after"] for one in prompts if one["kind"] == "rewrite"]
            assert row["match"] == pytest.approx(np.mean(matches))
            for name in ("exact", "prefix"):
                said = [one[f"{name}_after"] for one in prompts if one["kind"] == "rewrite"]
                assert row[name] == pytest.approx(np.mean(said))
            known = [one for one in prompts if one["kind"] == "neighborhood" and one["match_before"]]
            assert known
            assert row["neighbors_kept"] == pytest.approx(np.mean([one["match_after"] for one in known]))
            [measures] = [one for one in result.measures.to_pylist() if one["n_edits"] == n_edits]
            for name in ("perplexity", "perplexity_unedited", "entropy", "entropy_unedited", "edit_seconds"):
                assert row[name] == pytest.approx(measures[name])
            norms = [one for one in result.norms.to_pylist() if one["n_edits"] == n_edits]
            most = max(one["change_norm"] / one["weight_norm_unedited"] for one in norms)
            assert row["relative_change"] == pytest.approx(most)
    assert {row["match"] for row in rows.values()} != {0.0}


def test_positions_go_on_after_a_file(edited, tmp_path):
    _, (_, _, tuned) = edited
    more = MORE[:2]
    first = tuned.save_delta(tmp_path / "first.safetensors")
    again = [ft.Fact(f"They say {one.prompt}", one.subject, one.target_true, one.target_false) for one in more]
    store = ft.Store(tmp_path / "next.duckdb")
    store.add(ft.mass_edit(tuned.model, again, **{**TUNED, "score_every": 1}, continue_from=first))
    rows = relation(store, "edits_by_number").to_pylist()
    assert [(row["n_edits"], row["n"], row["perplexity"]) for row in rows] == [(6, 1, None), (7, 2, None)]
    assert [row["rewrite_earlier"] is None for row in rows] == [True, False]


def test_the_figure_has_a_panel_for_each_measure_and_a_line_for_each_run(edited, tmp_path, command, monkeypatch):
    store, _ = edited
    figure = edits_figure(store)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == [measure.title for measure in MEASURES]
    rows = relation(store, "edits_by_number").to_pylist()
    runs = list(dict.fromkeys(row["edit_run_id"] for row in rows))
    for measure in MEASURES:
        lines = [line for line in panels[measure.title].lines if len(line.get_xdata()) == 3]
        assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 3
        for line, run in zip(lines, runs, strict=True):
            mine = [row for row in rows if row["edit_run_id"] == run]
            assert list(line.get_xdata()) == [row["n_edits"] for row in mine]
            assert list(line.get_ydata()) == [row[measure.column] for row in mine]
    monkeypatch.chdir(tmp_path)
    done = command("figures", "edits", "--store", str(store.path), "--out", "f")
    assert done.stdout.split() == ["f/edits.svg"]
    text = (tmp_path / "f" / "edits.svg").read_text()
    for words in ("memit", "without past keys", "with past keys", "ft-1", "perplexity of held-out text", "unedited"):
        assert words in text, words
    assert "<image" not in text, "it is drawn as vectors"
    first = save(figure, tmp_path / "first.svg").read_bytes()
    assert save(edits_figure(store), tmp_path / "second.svg").read_bytes() == first


def test_a_measure_that_is_no_number_is_left_out_of_its_line(edited, tmp_path):
    _, results = edited
    other = ft.Store(tmp_path / "other.duckdb")
    for result in results:
        other.add(result)
    with other.writing() as con:
        con.execute("UPDATE mass_measures SET perplexity = 'inf'::DOUBLE, entropy = NULL WHERE n_edits = 5").fetchall()
    axes = {one.get_title(loc="left"): one for one in edits_figure(other).axes}
    lines = [line for line in axes["perplexity of held-out text"].lines if line.get_label() != "unedited"]
    drawn = [line for line in lines if len(line.get_xdata()) == 2 and max(line.get_xdata()) == 4]
    assert len(drawn) == len(results)
    assert all(math.isfinite(value) for line in drawn for value in line.get_ydata())
    found = edits(other)
    assert found is not None
    assert len(found.panels) == len(MEASURES)


def test_the_report_shows_runs_with_several_scorings(edited, tmp_path):
    store, results = edited
    found = edits(store)
    assert found is not None
    assert set(found.runs) == {result.run["run_id"] for result in results}
    assert [panel.title for panel in found.panels] == [measure.title for measure in MEASURES]
    assert all(len(panel.series) == 3 for panel in found.panels)
    assert len(found.table.rows) == 9
    once = ft.Store(tmp_path / "once.duckdb")
    once.add(ft.mass_edit(results[0].model, MORE[:2], **{**TUNED, "score_every": 2}))
    assert edits(once) is None
    assert {axes.get_title(loc="left") for axes in edits_figure(once).axes if axes.get_visible()} == {
        "rewrite score", "greedy matches (share)", "neighborhood score", "largest ‖ΔW‖/‖W‖ of a layer",
    }  # fmt: skip


def test_a_store_without_mass_edits_has_no_such_figure(tmp_path):
    store = ft.Store(tmp_path / "empty.duckdb")
    store.create()
    with pytest.raises(StoreError, match=r"expected facts edited into one model \(fasttrace mass\) in .*, got none"):
        edits_figure(store)
    assert edits(store) is None
