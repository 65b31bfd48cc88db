"""The report: one file that loads nothing, is safe for any text of a fact, and has the store's numbers."""

import base64
import dataclasses
import gzip
import html
import itertools
import json
import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from made_results import made_trace
from plausible import (
    EDITED,
    HOSTILE,
    HOSTILE_ID,
    UNHURT,
    edit_result,
    mass_result,
    study_facts,
    trace_result,
)
from reports import embedded

from fasttrace.analysis import chart
from fasttrace.analysis.chart import layer_ticks
from fasttrace.analysis.embed import packed, short
from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.exhibits_scores import kinds
from fasttrace.analysis.regression import regressions
from fasttrace.analysis.relation import relation
from fasttrace.analysis.report import write_report
from fasttrace.analysis.sentences import answer
from fasttrace.analysis.tables import fits_with_certainty
from fasttrace.errors import StoreError
from fasttrace.facts import Fact
from fasttrace.store import Store


def test_the_file_names_no_address_and_loads_nothing(report):
    text = re.sub(r'(?<=id="data">)[A-Za-z0-9+/=]+', "", report.text)  # packed data can contain // by chance
    assert not re.search(r"(https?:)?//[a-z0-9]", text, re.IGNORECASE)
    for tag, attributes in report.page.tags:
        assert tag not in ("link", "iframe", "object", "embed") or attributes.get("rel") == "icon"
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in report.text
    assert "default-src 'none'" in report.text


def test_it_lists_what_was_run_and_what_was_left_out(report, study):
    words = " ".join(report.page.words)
    run = study.query("SELECT * FROM runs WHERE kind = 'trace'").to_pylist()[0]
    for value in (
        run["run_id"],
        run["model"],
        run["model_hash"],
        run["dtype"],
        run["protocol"],
        run["torch_version"],
    ):
        assert value in words
    assert "24, kept 23" in words
    assert "o_true is not among the first 36 greedy tokens" in words
    assert "the noise did not lower p(o_true)" in words
    assert "fasttrace trace --model smollm2-135m --dtype float32 --protocol paper --seed 0 --windows 5" in words
    assert "--layers 0,4,8,12,16,20,24,29" in words


def test_the_answer_is_computed_from_the_regression(report, study):
    row = regressions(study).to_pylist()[0]
    words = " ".join(report.page.words).replace("\u00a0", " ")
    assert f"Choosing the layer explains {100 * row['r2_layer']:.1f} % of the variance of the rewrite score" in words
    assert f"p = {row['p_value']:.3f}" in words
    assert f"F({row['df_num']:.0f}, {row['df_den']:.0f}) = {row['f_value']:.2f}" in words
    best = study.query("SELECT layer FROM edits GROUP BY layer ORDER BY avg(rewrite) DESC LIMIT 1").to_pylist()[0]
    assert f"rewriting works best at layer {best['layer']} " in words


def test_a_heading_of_bars_is_written_in_full():
    """What tells it from the next may be at its end."""
    heading = "rome · SmolLM2-135M-Instruct (Q4_1) · whole-subject · builtin · edit run 1a2b3c4d"
    groups = [(heading, [("layer", 0.5, "")]), ("memit", [("layer", 0.4, "")])]
    panel = chart.bars_across("", groups, "R²", "")
    *lines, last = panel.headings
    assert " ".join(text for _, text in lines) == heading
    assert max(len(text) for _, text in lines) <= chart.HEADING
    heights = [y for y, _ in panel.headings]
    [bars] = panel.series
    assert heights == sorted(heights)
    assert lines[-1][0] < bars.marks[0].y < last[0] < bars.marks[1].y


def test_the_answer_says_whether_the_gain_is_more_than_chance():
    row = {
        "r2_layer": 0.585,
        "r2_effect": 0.01,
        "r2_both": 0.601,
        "diff": 0.016,
        "f_value": 4.0,
        "df_num": 8,
        "df_den": 160,
    }
    row |= {"problem": "error-injection", "method": "rome", "score": "rewrite"}
    said = answer([row | {"p_value": 0.00004}], [], [])[0].replace("\u00a0", " ")
    assert "explains 58.5 % of the variance" in said
    assert "raises that by 1.6 points, to 60.1 % (F-test: F(8, 160) = 4.00, p < 1e-4)" in said
    assert said.endswith("that gain is more than chance.")
    assert answer([row | {"p_value": 0.4}], [], [])[0].endswith("cannot be told from chance.")
    assert "alone explains less than 0.1" in answer([row | {"p_value": 0.4, "r2_effect": 0.0002}], [], [])[0]
    many = answer([row | {"p_value": 0.4}, row | {"p_value": 0.01, "method": "memit", "diff": 0.03}], [], [])
    assert "at most 3.0 points (error-injection · memit;" in many[0]
    assert many[1].startswith("In 1 of the 2")
    tested = [row | {"p_value": 0.01, "p_hotelling": 0.2}, row | {"p_value": 0.4, "p_hotelling": 0.01}]
    assert "Hotelling's test, with each fact as one draw: p = 0.200" in answer(tested[:1], [], [])[0].replace(
        "\u00a0", " "
    )
    assert answer(tested[:1], [], [])[0].endswith("cannot be told from chance.")
    said = answer([tested[0], tested[1] | {"method": "memit"}], [], [])[1]
    assert said.startswith("In 1 of the 2")
    assert "level by Hotelling's test;" in said
    assert answer([row | {"r2_both": None}], [], []) == []


def test_every_localization_method_has_its_own_answer():
    """Denoising, which is causal tracing proper, comes first. Nothing is averaged over methods."""
    row = {"r2_layer": 0.5, "r2_effect": 0.01, "f_value": 4.0, "df_num": 8, "df_den": 160, "p_value": 0.01}
    row |= {"problem": "error-injection", "score": "rewrite", "model": "toy", "window_size": 5}
    rows = [
        row | {"localization": way, "method": method, "r2_both": 0.5 + diff, "diff": diff}
        for way, method, diff in (("attribution", "rome", 0.2), ("denoise", "rome", 0.01), ("denoise", "memit", 0.02))
    ]
    said = answer(rows, [], [])
    assert said[0].startswith("For denoise: over 2 regressions")
    assert "at most 2.0 points (error-injection · memit;" in said[0]
    assert said[1].startswith("In 2 of the 2")
    assert said[2].startswith("For attribution: Choosing the layer explains")


def test_headings_are_in_order_and_everything_has_a_name(report):
    levels = [int(tag[1]) for tag, _ in report.page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert ("html", {"lang": "en"}) in report.page.tags
    labels = {attributes.get("for") for tag, attributes in report.page.tags if tag == "label"}
    assert {attributes["id"] for tag, attributes in report.page.tags if tag in ("select", "input")} <= labels
    charts = [attributes for tag, attributes in report.page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(charts) == 1 + len(EDITED) + 4 + 1 + 1 + 1
    assert all(chart["role"] == "group" and chart["aria-label"] for chart in charts)
    ids = [attributes["id"] for _, attributes in report.page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'<a href="#([^"]+)"', report.text))
    for name in ("aria-labelledby", "for"):
        used |= {attributes[name] for _, attributes in report.page.tags if attributes.get(name)}
    assert used <= set(ids)


def test_a_fact_cannot_break_out_of_the_page(report):
    assert HOSTILE not in report.text
    assert report.text.count("</script>") == 2
    assert "Mall &lt;/script&gt;" not in report.text  # facts are in the packed data only
    assert not any(attributes.get("onerror") for _, attributes in report.page.tags)
    facts = {fact["id"]: fact for fact in embedded(report.text)["facts"]}
    assert HOSTILE in facts[HOSTILE_ID]["subject"]


def test_packed_data_cannot_end_a_script_and_is_the_same_every_time():
    value = {"a": "</script><!--\u2028&"}
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed(value))
    assert json.loads(gzip.decompress(base64.b64decode(packed(value)))) == value
    assert packed(value) == packed(value)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.83446, 0.83449999, 0.0004996, 1e-9, -0.12349999, 0.9995, 123456.789])
def test_a_shortened_number_keeps_its_three_decimals_and_four_digits(value):
    assert f"{short(value):.3f}" == f"{value:.3f}"
    assert short(value) == pytest.approx(value, rel=5e-4)


def test_nan_and_infinity_are_null():
    assert short(float("nan")) is None
    assert short(float("inf")) is None


def test_embedded_numbers_are_the_stores(report, study):
    facts = {fact["id"]: fact for fact in embedded(report.text)["facts"]}
    assert len(facts) == 24
    rows = study.query("SELECT * FROM trace_cells WHERE fact_id = 'place-05'").to_pylist()
    trace = facts["place-05"]["traces"][0]
    for row in rows:
        for name, column in (("p", "p_restored"), ("sem", "p_restored_sem"), ("effect", "effect")):
            assert trace[name][row["token_index"]][row["layer"]] == short(row[column])
    assert all(value is None for line in facts[UNHURT]["traces"][0]["effect"] for value in line)
    effects = study.query("SELECT effect FROM trace_effects WHERE fact_id = 'place-05' ORDER BY layer")[
        "effect"
    ].to_pylist()
    assert trace["by_layer"] == [short(effect) for effect in effects]
    edits = study.query("SELECT * FROM edits WHERE fact_id = 'place-05' ORDER BY layer").to_pylist()
    for key in ("layer", "rewrite", "neighborhood", "p_after", "p_true_before", "success"):
        assert facts["place-05"]["edits"][key] == [short(edit[key]) for edit in edits]


def test_facts_beyond_the_limits_are_left_out_and_counted(study, tmp_path):
    text = write_report(study, tmp_path / "few.html", max_facts=3).read_text()
    assert len(embedded(text)["facts"]) == 3
    assert "The first 3 of 24 facts" in text
    small = write_report(study, tmp_path / "small.html", max_bytes=60_000).read_text()
    count = len(embedded(small)["facts"])
    assert 1 <= count < 24
    assert f"The first {count} of 24 facts" in small


def test_edits_at_one_layer_leave_the_tracing_peak(tmp_path):
    facts = study_facts(count=3)
    edits = edit_result(facts)
    layer = edits.scores["layer"][0]
    one = {name: getattr(edits, name).filter(pc.field("layer") == layer) for name in ("scores", "prompts")}
    store = Store(tmp_path / "s.duckdb")
    store.add_facts(facts)
    store.add(trace_result(facts))
    store.add(dataclasses.replace(edits, **one))
    text = write_report(store, tmp_path / "r.html").read_text()
    assert "The mean tracing effect is largest at layer" in text


def test_traces_alone_and_edits_alone_make_a_report(tmp_path):
    facts = study_facts(count=3)
    for name, result in (("trace", trace_result(facts)), ("edit", edit_result(facts))):
        store = Store(tmp_path / f"{name}.duckdb")
        store.add_facts(facts)
        store.add(result)
        text = write_report(store, tmp_path / f"{name}.html").read_text()
        assert "does not say whether" in text
        assert ("The mean tracing effect is largest at layer" in text) is (name == "trace")
        assert ("rewriting works best at layer" in text) is (name == "edit")
        assert ('id="layers"' in text, 'id="tracing"' in text, 'id="r2"' in text) == (
            name == "edit",
            name == "trace",
            False,
        )


def test_probes_have_a_table_by_kind_of_prompt(tmp_path):
    facts = study_facts(count=4)
    edited, massed = edit_result(facts), mass_result(facts)
    probe = {"kind": "multi-hop", "prompt_index": 0, "answer": "Rome", "score": 0.25, "match_after": True}

    def with_probe(prompts):
        more = [row | probe for row in prompts.to_pylist()]
        return pa.concat_tables([prompts, pa.Table.from_pylist(more, schema=prompts.schema)])

    for name, results in (("edits", [edited]), ("mass", [massed]), ("both", [edited, massed])):
        store = Store(tmp_path / f"{name}.duckdb")
        for result in results:
            store.add(result)
        assert kinds(store) is None, "the paper's kinds are in other tables"
        probed = Store(tmp_path / f"{name}-probed.duckdb")
        for result in results:
            probed.add(dataclasses.replace(result, prompts=with_probe(result.prompts)))
        exhibit = kinds(probed)
        assert exhibit.section == ("mass" if name == "mass" else "layers")
        assert {row["kind"] for row in exhibit.table.rows} == {"rewrite", "multi-hop"}
        assert {row["score"] for row in exhibit.table.rows if row["kind"] == "multi-hop"} == {0.25}
        text = write_report(probed, tmp_path / f"{name}.html").read_text()
        assert "Mean scores by kind of prompt" in text


def test_a_mass_edit_alone_makes_a_report(tmp_path):
    facts = study_facts(count=12)
    store = Store(tmp_path / "mass.duckdb")
    store.add_facts(facts)
    store.add(mass_result(facts))
    text = write_report(store, tmp_path / "mass.html").read_text()
    [last] = store.query("SELECT avg(rewrite) AS mean FROM mass_edits WHERE n_edits = 12").to_pylist()
    assert f"after 12 facts (error-injection · memit, layer 6) it is {last['mean']:.3f}" in text
    assert 'id="pick"' not in text
    assert "fasttrace mass --model smollm2-135m" in text
    assert "--layer 6 --at-once 4 --score-every 1" in text
    assert "--set steps=25" in text
    ids = relation(store, "facts_of_run", {"run_id": "mass-1"})["fact_id"].to_pylist()
    assert ids == [fact.fact_id for fact in facts]


def token_rows(text):
    """(fact, tokens, the subject's among them, target) of each row of the exhibit of tokens, as the page has them."""
    found = []
    for row in re.findall(r'<tr><th scope="row">([^<]*)</th><td class="tokens">(.*?)</td></tr>', text):
        boxes = re.findall(r'<(mark|span) class="(token|token target)">([^<]*)</\1>', row[1])
        assert "".join(f'<{tag} class="{kind}">{one}</{tag}>' for tag, kind, one in boxes) == row[1]
        *tokens, (tag, kind, target) = boxes
        assert (tag, kind) == ("span", "token target")
        texts = [html.unescape(one) for _, _, one in tokens]
        subject = [one for one, (tag, _, _) in zip(texts, tokens, strict=True) if tag == "mark"]
        found.append((html.unescape(row[0]), texts, subject, html.unescape(target)))
    return found


def test_the_first_facts_traced_are_shown_with_their_tokens(report, study):
    rows = study.query("SELECT * FROM traces ORDER BY fact_id LIMIT 12").to_pylist()
    assert token_rows(report.text) == [
        (row["fact_id"], row["tokens"], row["tokens"][row["subject_begin"] : row["subject_end"]], row["scored"])
        for row in rows
    ]
    [exhibit] = [one for one in exhibits(study) if one.key == "tokens"]
    again = [one for one in exhibits(study) if one.key == "tokens"]
    assert (exhibit.prompts, exhibit.csv) == (again[0].prompts, again[0].csv)


def test_odd_tokens_are_text_and_the_oldest_trace_of_a_fact_is_shown(tmp_path):
    store = Store(tmp_path / "odd.duckdb")
    store.add_facts([Fact("{} is in", f"f{i}", "Rome", fact_id=f"f{i}") for i in range(3)])
    tokens = ["<b>", "\n", "\t a", "", " is", " in"]
    for run_id, year, model, ids in (("late", 2026, "toy", ["f0", "f1"]), ("early", 2024, "other", ["f1", "f2"])):
        made = made_trace(
            ids, run_id=run_id, created_at=datetime(year, 1, 1, tzinfo=UTC), model=model, left_out=("f2",)
        )
        changes = {"tokens": tokens if run_id == "early" else None, "subject_begin": 0, "subject_end": 3}
        facts = [{**row, **changes, "target_true": "O\n"} for row in made.facts.to_pylist()]
        if run_id == "late":
            facts = made.facts.to_pylist()
        store.add(dataclasses.replace(made, facts=pa.Table.from_pylist(facts, schema=made.facts.schema)))
    text = write_report(store, tmp_path / "odd.html").read_text()
    seen = ["<b>", "⏎", "⇥ a", "␣", " is", " in"]
    assert token_rows(text) == [
        ("f1 · other", seen, seen[:3], " Rome"),
        ("f2 · other", seen, seen[:3], "O⏎"),
        ("f0 · toy", ["t0", "t1", "t2"], ["t0", "t1"], " Rome"),
    ]
    edited = Store(tmp_path / "edits.duckdb")
    edited.add_facts(study_facts(count=2))
    edited.add(edit_result(study_facts(count=2)))
    assert token_rows(write_report(edited, tmp_path / "edits.html").read_text()) == []


def test_every_mark_has_its_numbers(twenty):
    titles = [html.unescape(text) for text in re.findall(r"<title>(.*?)</title>", twenty.text)[1:]]
    assert twenty.text.count('class="mark"') == len(titles)
    row = fits_with_certainty(twenty.store).to_pylist()[0]
    spread = f"{row['r2_layer']:.3f} [{row['r2_layer_low']:.3f}, {row['r2_layer_high']:.3f}]"
    assert f"{row['problem']} · {row['method']}, edited layer: R² = {spread}, n = {row['n']}" in titles
    mean = twenty.store.query(
        "SELECT avg(neighborhood) AS mean, stddev_samp(neighborhood) / sqrt(count(*)) AS sem, count(*) AS n FROM edits "
        "WHERE problem = 'fact-forcing' AND method = 'ft-5' AND layer = 8"
    ).to_pylist()[0]
    assert (
        f"fact-forcing · ft-5, layer 8: mean neighborhood score {mean['mean']:.3f} ± {mean['sem']:.3f}, n = {mean['n']}"
        in titles
    )
    peaks = twenty.store.query(
        "SELECT count(*) AS n FROM (SELECT arg_max(layer, effect) AS layer FROM trace_effects WHERE window_size = 5 "
        "GROUP BY fact_id) WHERE layer = 4"
    ).to_pylist()[0]["n"]
    assert f"window 5, layer 4: {peaks} of 12 facts" in titles


def test_bars_are_drawn_to_scale(twenty):
    """A bar's length is its share of the axis from 0 to 1."""
    row = regressions(twenty.store).to_pylist()[0]
    chart = twenty.text[twenty.text.index('<svg class="chart bars"') :]
    axis = dict(re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([01])<', chart)[:2])
    zero, one = sorted(map(float, axis))
    title = re.escape(f"{row['problem']} · {row['method']}, edited layer: R² = {row['r2_layer']:.3f}") + "[^<]*"
    [(x, width)] = re.findall(
        rf'{title}</title><rect class="bar" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', twenty.text
    )
    assert float(x) == zero
    assert float(width) / (one - zero) == pytest.approx(row["r2_layer"], abs=2e-3)


@pytest.mark.parametrize("layers", [(0, 6, 12, 17, 23, 29), (3,), (4, 5, 9), tuple(range(48)), (7, 30, 61)])
def test_layers_have_even_ticks_whichever_were_edited(layers):
    places = [place for place, _ in layer_ticks(layers)]
    steps = set(np.diff(places).tolist())
    assert len(steps) <= 1 <= len(places) <= 10
    assert steps <= {1, 2, 5, 10}
    assert all(place % step == 0 for step in steps for place in places)
    assert layers[0] <= places[0] <= places[-1] <= layers[-1]


def test_a_report_of_twenty_cells_is_small(twenty):
    assert len(twenty.text) < 3_000_000


def test_an_empty_store_is_refused(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    with pytest.raises(StoreError, match="holds no trace and no edit"):
        write_report(store, tmp_path / "report.html")
