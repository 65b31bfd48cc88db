"""Which traces a picture or table shows, where a store has traces of every kind of the same facts: never a mixture."""

import base64
import gzip
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from made_results import made_edit, made_trace
from panels import panels_of

from fasttrace.analysis.embed import embedded
from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.figures import heatmap, paper_figure, role_figure
from fasttrace.analysis.paper import ways_text
from fasttrace.analysis.relation import relation
from fasttrace.analysis.tables import paper_table
from fasttrace.errors import StoreError, UserError
from fasttrace.store import Store

IDS = [f"f{i}" for i in range(6)]
WINDOWS = (1, 5)
RUNS = {
    "mlp-denoise": {"module": "mlp", "method": "denoise"},
    "mlp-noise": {"module": "mlp", "method": "noise"},
    "block-denoise": {"module": "block", "method": "denoise"},
    "attn-denoise": {"module": "attn", "method": "denoise"},  # the newest
    "gpt2": {"module": "mlp", "method": "denoise"},  # of another model, and newer
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("which") / "which.duckdb")
    for place, (run_id, asked) in enumerate(RUNS.items()):
        about = {"created_at": datetime(2026, 1, 1) + timedelta(days=place)}
        about |= {"model": "gpt2", "model_hash": "77aa"} if run_id == "gpt2" else {}
        # Without seeds the runs' settings differ in nothing else, but their numbers do.
        made = made_trace(IDS, run_id=run_id, windows=WINDOWS, seed=place, asked={"tokens": "all"} | asked, **about)
        store.add(made)
    store.add(made_edit(IDS))
    return store


def grid(store, run_id, window, fact_id="f0"):
    rows = store.query(
        "SELECT token_index, layer, p_restored FROM trace_cells WHERE run_id = ? AND window_size = ? AND fact_id = ?",
        [run_id, window, fact_id],
    ).to_pylist()
    found = np.full((3, 4), np.nan)
    for row in rows:
        found[row["token_index"], row["layer"]] = row["p_restored"]
    return found


def image(figure):
    return np.asarray(figure.axes[0].collections[0].get_array())


CHOICES = [
    ({}, "mlp-denoise"),
    ({"module": "attn"}, "attn-denoise"),
    ({"module": "block"}, "block-denoise"),
    ({"localization": "noise"}, "mlp-noise"),
    ({"run": "attn-denoise"}, "attn-denoise"),
    ({"run": "mlp-n"}, "mlp-noise"),
]


@pytest.mark.parametrize(("choice", "run_id"), CHOICES, ids=[str(choice) for choice, _ in CHOICES])
def test_every_picture_has_the_values_of_the_run_that_it_says(store, choice, run_id):
    runs = [run_id] if choice else [run_id, "gpt2"]  # of the MLPs there are two models, of which the most hurt is shown
    traces = "SELECT run_id, fact_id FROM traces WHERE list_contains(?, run_id) ORDER BY p_noised - p_clean"
    hurt = store.query(traces, [runs]).to_pylist()[0]
    for window in WINDOWS:
        figures = [heatmap(store, "f0", window, **choice | {"run": choice.get("run", run_id)})]
        figures.append(paper_figure(store, 2, fact_id="f0", window_size=window, **choice | {"run": run_id}))
        for figure in figures:
            assert (image(figure) == grid(store, run_id, window)).all()
            assert f" · window {window}\n" in figure.axes[0].get_title(loc="left")
    assert (image(paper_figure(store, 2, **choice)) == grid(store, hurt["run_id"], 5, hurt["fact_id"])).all()

    means = store.query(
        "SELECT window_size, layer, avg(effect) AS mean FROM trace_effects WHERE run_id = ? GROUP BY ALL ORDER BY ALL",
        [run_id],
    ).to_pylist()
    lines = [line.get_ydata().tolist() for line in paper_figure(store, 10, **choice | {"run": run_id}).axes[0].lines]
    assert lines == [pytest.approx([row["mean"] for row in means if row["window_size"] == size]) for size in WINDOWS]
    [one] = paper_figure(store, 10, window_size=5, **choice | {"run": run_id}).axes[0].lines
    assert one.get_ydata().tolist() == lines[1]

    peaks = panels_of(paper_figure(store, 1, **choice | {"run": run_id}))
    assert len(peaks) == 1
    told = store.query(
        "SELECT arg_max(layer, effect) AS layer FROM trace_effects WHERE run_id = ? AND window_size = 5 "
        "GROUP BY fact_id",
        [run_id],
    )
    wanted = np.bincount(told["layer"].to_pylist(), minlength=4).tolist()
    assert [bar.get_height() for bar in peaks[0].patches] == wanted

    pairs = store.query(
        "SELECT effect, rewrite FROM edits JOIN trace_effects AS t USING (fact_id, layer) "
        "WHERE t.run_id = ? AND t.window_size = 5",
        [run_id],
    )
    shown = np.concatenate([axes.collections[0].get_offsets() for axes in panels_of(paper_figure(store, 15, **choice))])
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, pairs.to_pandas().to_numpy().tolist()))
    [row] = paper_table(store, 3, resamples=0, **choice).to_pylist()
    assert row["n"] == len(pairs)


def test_of_runs_that_are_alike_the_newest_is_shown_and_says_what_sets_it_apart(tmp_path):
    store = Store(tmp_path / "alike.duckdb")
    for place in range(2):
        day = datetime(2026, 1, 2 - place)  # the first that was stored is the newest
        asked = {"tokens": "all", "samples": 10 + place}
        store.add(made_trace(IDS, run_id=f"t{place}", windows=WINDOWS, seed=place, asked=asked, created_at=day))
    for run, run_id in ((None, "t0"), ("t1", "t1")):
        for figure in (heatmap(store, "f0", run=run), paper_figure(store, 2, fact_id="f0", run=run)):
            assert (image(figure) == grid(store, run_id, 5)).all()
            title = figure.axes[0].get_title(loc="left")
            assert title.startswith(f"toy · mlp · denoise · window 5 · samples 1{run_id[1]}\n")


def test_a_run_alone_says_how_it_traced_and_an_editing_run_is_one_too(store):
    roles = role_figure(store, run="attn-denoise")
    [title] = [axes.get_title(loc="left") for axes in panels_of(roles)]
    assert title.startswith("attn · denoise · probability · window 5: ")
    assert paper_table(store, 3, resamples=0, run="e0").num_rows == 1
    [row] = paper_table(store, 3, resamples=0, run="attn").to_pylist()
    effects = store.query(
        "SELECT corr(effect, rewrite) ** 2 AS r2 FROM edits JOIN trace_effects AS t USING (fact_id, layer) "
        "WHERE t.run_id = 'attn-denoise' AND t.window_size = 5"
    )
    assert row["r2_effect"] == pytest.approx(effects["r2"].to_pylist()[0], rel=1e-9)


def test_what_the_store_does_not_have_is_named_with_what_it_has(store):
    has = r"mlp by denoise of gpt2 \(windows 1 and 5\), mlp by denoise of toy .*, attn by denoise of toy .* and block "
    for choice in ({"module": "head"}, {"localization": "zero"}, {"window_size": 7}, {"metric": "kl"}):
        for number in (1, 2, 10, 15):
            with pytest.raises(StoreError, match=rf"no such tracing effects are in .*which has traces of {has}"):
                paper_figure(store, number, **choice)
        with pytest.raises(StoreError, match=r"expected a trace at single tokens with .*got those of mlp by denoise"):
            role_figure(store, **choice)
    with pytest.raises(StoreError, match="make them with: fasttrace trace --module head --windows 5"):
        paper_figure(store, 1, module="head")
    for call in (paper_figure, lambda store, _, run: heatmap(store, "f0", run=run)):
        with pytest.raises(UserError, match=r"expected the id of one run .*mlp-denoise \(trace\), .*, got 'x'"):
            call(store, 2, run="x")
        with pytest.raises(UserError, match=r"one of mlp-denoise .*mlp-noise \(trace\), got 'mlp', which several"):
            call(store, 2, run="mlp")
    with pytest.raises(UserError, match=r"expected the id of one run .*, got 'e0'"):
        heatmap(store, "f0", run="e0")
    with pytest.raises(UserError, match=r"expected a module of mlp, attn, block, head, expert, got 'mpl'"):
        paper_figure(store, 1, module="mpl")


def test_the_commands_choose_and_say_what_else_there_is(store, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--store", str(store.path))
    run = command("figures", "2", "10", "--module", "attn", "--window", "5", "--method", "denoise", *words)
    assert run.stderr.splitlines() == [
        "shown: traces of attn by denoise (window 5); the store also has mlp by denoise of gpt2 (windows 1 and 5), mlp "
        "by denoise of toy (windows 1 and 5), mlp by noise of toy (windows 1 and 5), attn by denoise of toy (window 1) "
        "and block by denoise of toy (windows 1 and 5): --module, --method, --metric, --window and --run choose"
    ]
    drawn = (tmp_path / "figures/figure-10.svg").read_text()
    assert "window 5 (6 facts)" in drawn
    assert "window 1" not in drawn
    command("figures", "roles", "--run", "block", *words)
    assert "block · denoise" in (tmp_path / "figures/roles.svg").read_text()
    rows = json.loads(command("tables", "3", "--run", "attn", "--resamples", "0", "--json", *words).stdout)
    wanted = paper_table(store, 3, resamples=0, run="attn").to_pylist()
    for row, other in zip(rows, wanted, strict=True):
        near = {name: pytest.approx(one, rel=1e-9) if isinstance(one, float) else one for name, one in other.items()}
        assert row == near, "DuckDB's threads sum in any order"
    assert "mlp-denoise (trace), " in command("figures", "--run", "x", *words, code=2).stderr
    assert "which has traces of mlp by denoise" in command("figures", "2", "--module", "head", *words, code=2).stderr
    said = command("figures", "--module", "head", *words, code=2).stderr
    assert re.fullmatch(r"fasttrace: expected traces with --module head in .*, got those of mlp by denoise .*\n", said)
    run = command("figures", "2", "--module", "block", *words)
    assert run.stderr.startswith("shown: traces of block by denoise (window 5); "), "Figure 2 is of one window"
    two = command("figures", "2", "--run", "attn", "--module", "block", *words, code=2).stderr
    assert two == "fasttrace: module: expected attn, as run attn has it, or no run, got block\n"
    none = command("figures", "edits", "--run", "attn", *words, code=2).stderr
    assert re.fullmatch(r"fasttrace: run: expected a run of kind mass, got 'attn': .* has none\n", none)
    assert "with --method zero in " in command("figures", "--method", "zero", *words, code=2).stderr
    assert "with --window 7 in " in command("tables", "--window", "7", *words, code=2).stderr


def test_a_store_whose_facts_are_all_left_out_is_not_told_to_trace_them_again(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = made_trace(IDS[:2], run_id="unknown", asked={"tokens": "all"})
    unknown = made.facts.set_column(made.facts.column_names.index("kept"), "kept", pa.array([False] * 2))
    reasons = unknown.set_column(unknown.column_names.index("reason"), "reason", pa.array(["it is unknown"] * 2))
    Store("left_out.duckdb").add(replace(made, facts=reasons, cells=made.cells.slice(0, 0)))
    said = command("figures", "2", "--store", "left_out.duckdb", code=2).stderr
    assert "no fact traced in left_out.duckdb has a tracing effect (see reason in the relation traces" in said


def test_a_store_with_nothing_to_show_says_so(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Store("new.duckdb").create()
    for words in (["tables"], ["tables", "--json"], ["tables", "--out", "t"]):
        said = command(*words, "--store", "new.duckdb", code=2)
        assert (said.stdout, said.stderr) == (
            "",
            "fasttrace: tables are of edits: expected some in new.duckdb, got none\n",
        )
    none = command("figures", "--store", "new.duckdb", "--out", "f", code=2)
    assert none.stderr.startswith("fasttrace: the store has data for none of the paper's figures: ")
    assert [path.name for path in tmp_path.iterdir()] == ["new.duckdb"]


def test_a_store_of_one_kind_of_trace_has_nothing_else_to_say(study, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("figures", "1", "2", "10", "15", "--store", str(study.path)).stderr
    assert not re.search("also has", said)


def test_the_report_shows_the_papers_own_trace_of_a_fact_first(store):
    """Whatever was traced last. Effects beside edits are those of this trace, too (templates/facts.js)."""
    names = relation(store, "fact_names").to_pylist()
    [exhibit] = [one for one in exhibits(store) if one.key == "pairs"]
    assert exhibit.panels[0].facets["method"].startswith("rome · ")
    assert "mlp" in exhibit.panels[0].facets["method"]
    text, _ = embedded(store, names, [], 10_000_000)
    facts = json.loads(gzip.decompress(base64.b64decode(text)))["facts"]
    for fact in facts:
        toy = [trace for trace in fact["traces"] if trace["model"] == "toy"]
        assert [trace["trace_run_id"] for trace in toy][:2] == ["mlp-denoise"] * 2
        for trace in fact["traces"]:
            own = grid(store, trace["trace_run_id"], trace["window_size"], fact["id"])
            assert np.allclose(np.array(trace["p"], float), own, atol=6e-4)
            assert trace["module"] in trace["name"]


def test_a_sentence_names_models_as_the_tables_do():
    row = {"module": "mlp", "localization": "denoise", "metric": "probability", "window_size": 5}
    said = ways_text([row | {"model": "smollm2-135m"}, row | {"model": "/home/someone/toy"}])
    assert said == "mlp by denoise of SmolLM2-135M-Instruct (Q4_1) (window 5) and mlp by denoise of toy (window 5)"
