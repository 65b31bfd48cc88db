"""Tables as text, Markdown, CSV, JSON and LaTeX."""

import csv
import io
import json

import pyarrow as pa
import pytest
from made_results import made_edit, made_trace

from fasttrace.analysis.certainty import certainty
from fasttrace.analysis.regression import layer_means, regressions
from fasttrace.analysis.render import FORMATS, render
from fasttrace.analysis.tables import layer_table, r2_table, summary
from fasttrace.errors import UserError
from fasttrace.store import Store

IDS = [f"f{i}" for i in range(10)]
TABLE = pa.table(
    {
        "name": ["a|b", "[red]c_d", "50%"],
        "n": [1, 20, None],
        "r2_layer": [0.94712345, -0.0001, None],
        "p_value": [1e-9, 0.04, float("nan")],
    }
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("tables") / "study.duckdb")
    store.add(made_trace(IDS, no_effect=("f1",)))
    store.add(made_edit(IDS))
    return store


def test_r2_table_is_the_regression(store):
    table = r2_table(store, resamples=0)
    names = [
        "problem",
        "method",
        "n",
        "n_facts",
        "n_left_out",
        "n_outside",
        "r2_layer",
        "r2_effect",
        "r2_both",
        "diff",
        "p_value",
    ]
    fewer = ["r2_layer_working", "diff_working", "p_working"]
    assert table.column_names == [*names, "p_clustered", *fewer]  # one regression needs no columns that distinguish it
    row = regressions(store).to_pylist()[0]
    # DuckDB's threads add in no fixed order, so two queries may differ in the last bits.
    [found] = table.drop(["p_clustered", *fewer]).to_pylist()
    about = {name: pytest.approx(row[name], rel=1e-12) for name in names if isinstance(row[name], float)}
    assert len(about) == 5
    assert found == {name: row[name] for name in names} | about
    assert (row["n"], row["n_left_out"]) == (36, 4)
    [sure] = certainty(store, resamples=50).to_pylist()
    [wide] = r2_table(store, resamples=50).to_pylist()
    assert wide["p_clustered"] == table["p_clustered"][0].as_py() == sure["p_clustered"]
    assert (wide["r2_both_low"], wide["r2_both_high"]) == (sure["r2_both_low"], sure["r2_both_high"])


def test_intervals_follow_their_numbers(store):
    [row] = r2_table(store, resamples=50).to_pylist()
    shown = f"{row['r2_layer']:.3f} [{row['r2_layer_low']:.3f}, {row['r2_layer_high']:.3f}]"
    for format in ("text", "markdown", "latex"):
        assert shown in render(r2_table(store, resamples=50), format), format
    assert "r2_layer_low" in render(r2_table(store, resamples=50), "csv")


def test_columns_that_distinguish_rows_are_shown(tmp_path):
    store = Store(tmp_path / "two.duckdb")
    for protocol in ("paper", "released"):
        store.add(made_trace(IDS, run_id=f"t-{protocol}", protocol=protocol))
        store.add(made_edit(IDS, run_id=f"e-{protocol}", protocol=protocol))
    assert r2_table(store).column_names[:4] == ["problem", "method", "protocol", "n"]
    store.add(made_trace(IDS, run_id="t-again", seed=4))
    assert r2_table(store).column_names[2:5] == ["protocol", "trace_run_id", "n"]


def test_layer_table_is_the_means(store):
    rows = layer_table(store).to_pylist()
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    for score in ("rewrite", "paraphrase", "neighborhood", "overall"):
        assert [row[score] for row in rows] == pytest.approx(layer_means(store, score)["mean"].to_pylist(), rel=1e-12)


def test_text():
    assert render(TABLE, width=80).splitlines() == [
        " name      edits  R² layer      p",
        " ────────────────────────────────",
        " a|b           1     0.947  <1e-4",
        " [red]c_d     20     0.000  0.040",
        " 50%           –         –      –",
    ]


@pytest.mark.parametrize("width", [5, 20, 40, 200])
def test_no_screen_is_too_narrow_for_a_value(store, width):
    text = summary(store, width=width)
    for table in (r2_table(store, resamples=0), layer_table(store)):
        for row in table.to_pylist():
            assert all(f"{value:.3f}" in text for value in row.values() if isinstance(value, float) and value > 1e-3)
    assert "error-injection" in text


def test_markdown():
    assert render(TABLE, "markdown", title="T", digits=2) == (
        "**T**\n\n| name | edits | R² layer | p |\n|:---|---:|---:|---:|\n"
        "| a\\|b | 1 | 0.95 | <1e-4 |\n| [red]c_d | 20 | 0.00 | 0.04 |\n| 50% | – | – | – |\n"
    )


def test_latex():
    text = render(TABLE, "latex")
    assert r"\begin{tabular}{lrrr}" in text
    assert r"name & edits & R² layer & p \\" in text
    assert r"50\% & -- & -- & -- \\" in text
    assert r"a|b & 1 & 0.947 & $<$1e-4 \\" in text


def test_csv_and_json_keep_every_digit(store):
    table = r2_table(store)
    row = table.to_pylist()[0]
    assert json.loads(render(table, "json")) == [row]
    read = next(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert {name: type(row[name])(value) for name, value in read.items()} == row
    assert json.loads(render(TABLE, "json"))[2] == {
        "name": "50%",
        "n": None,
        "r2_layer": None,
        "p_value": None,
    }


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_table_has_its_head(format):
    text = render(TABLE.slice(0, 0), format)
    assert text.endswith("\n")
    assert "name" in text or format == "json"


def test_an_unknown_format_is_refused():
    with pytest.raises(UserError, match=r"expected a table format of text, .*, got 'xlsx'"):
        render(TABLE, "xlsx")
