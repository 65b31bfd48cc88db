"""The SQL regressions against statsmodels and against numpy's lstsq, on awkward data."""

from contextlib import contextmanager
from importlib.resources import files
from types import MappingProxyType

import duckdb
import least_squares
import numpy as np
import pandas as pd
import pytest
from made_results import made_edit, made_trace
from scipy import stats
from statsmodels_fits import check_with_statsmodels

from fasttrace.analysis.regression import (
    KEYS,
    layer_correlations,
    layer_means,
    regressions,
)
from fasttrace.analysis.relation import (
    CHAIN,
    SETTINGS,
    asking_once,
    make_chain,
    one_reading,
    query,
    read_by,
    relation,
    sql,
    written,
)
from fasttrace.errors import UserError
from fasttrace.store import Store, Stores
from fasttrace.store.header import header_of
from fasttrace.store.query import parameters_of
from fasttrace.store.texts import RELATIONS, schema_sql

NUMBERS = (
    "r2_layer", "r2_effect", "r2_both", "diff", "f_value", "df_num", "df_den", "p_value", "rmse_layer",
    "rmse_effect", "rmse_both", "mae_layer", "mae_effect", "mae_both",
)  # fmt: skip


def random_case(rng, name):
    """{(fact_id, layer): (effect or None, rewrite or None)}: few facts, repeated and missing values."""
    layers = sorted(rng.choice(6, size=rng.integers(1, 5), replace=False).tolist())
    facts = [f"{name}/{i}" for i in range(rng.integers(1, 9))]
    coarse = rng.random() < 0.5
    case = {}
    for layer in layers:
        constant = rng.random() < 0.25
        for fact in facts:
            if rng.random() < 0.15:
                continue
            x = 1 / 3 if constant else rng.choice([0.0, 0.25, 1.0]) if coarse else rng.uniform(-0.2, 1)
            y = rng.choice([0.0, 0.5, 1.0]) if coarse else rng.uniform() - 0.1 * layer + 0.3 * x
            case[fact, layer] = (
                None if rng.random() < 0.1 else float(x),
                None if rng.random() < 0.05 else float(y),
            )
    return case


def line(xs, ys, layer=0, name="a"):
    return {(f"{name}{i}", layer): (x, y) for i, (x, y) in enumerate(zip(xs, ys, strict=True))}


NAMED = {
    "constant-effect-in-a-layer": line([0.1, 0.2, 0.4, 0.9], [0.3, 0.1, 0.5, 0.4])
    | line([0.1] * 4, [0.2, 0.9, 0.3, 0.8], 1),
    "constant-effect-everywhere": line([0.7] * 5, [0.3, 0.1, 0.5, 0.4, 0.2]) | line([0.7] * 5, [0, 1, 1, 0, 1], 2),
    "one-fact-in-a-layer": line([0.1, 0.2, 0.4, 0.9], [0.3, 0.1, 0.5, 0.4]) | line([0.6], [0.9], 3),
    "one-fact-in-every-layer": line([0.1], [0.3]) | line([0.6], [0.9], 3),
    "one-edit": line([0.1], [0.3]),
    "constant-score": line([0.1, 0.2, 0.4], [0.1] * 3) | line([0.3, 0.2, 0.4], [0.1] * 3, 1),
    "constant-score-in-a-layer": line([0.1, 0.2, 0.4], [0.1] * 3) | line([0.3, 0.2, 0.4], [0.5, 0.7, 0.1], 1),
    "null-effects": line([None, 0.2, None, 0.5, 0.1], [0.3, 0.1, 0.5, 0.2, 0.9]) | line([None] * 5, [0.1] * 5, 1),
    "null-scores": line([0.3, 0.2, 0.9, 0.5], [0.3, None, 0.5, 0.1]) | line([0.1, 0.3, 0.2, 0.4], [None] * 4, 1),
    "nothing-left": line([None] * 3, [0.1, 0.2, 0.3]),
    "an-exact-line": line([0.1, 0.2, 0.4, 0.9], [0.2, 0.4, 0.8, 1.8]) | line([0.1, 0.5, 0.2], [0.9, 0.5, 0.8], 1),
    "no-degree-left": line([0.1, 0.2], [0.5, 0.4]) | line([0.1, 0.5], [0.9, 0.5], 1),
    "tiny-effects": line([1e-9, 2e-9, 4e-9, 3e-9], [0.3, 0.1, 0.5, 0.4]) | line([1e-9, 3e-9, 2e-9], [0.1, 0.6, 0.2], 1),
    "scores-far-from-zero": line([0.1, 0.2, 0.4, 0.9], [1e6 + v for v in (0.3, 0.1, 0.5, 0.4)])
    | line([0.3, 0.2, 0.6], [1e6 + v for v in (0.9, 0.1, 0.2)], 1),
    "one-score-far-out": line([0.1, 0.2, 0.4, 0.9], [0.3, -1e4, 0.5, 0.4]) | line([0.3, 0.2, 0.6], [0.9, 0.1, 0.2], 1),
}


def write_case(store, problem, case):
    """Add an editing run for the case, and the effects of its facts to the one tracing run."""
    renamed = {(f"{problem}/{fact}", layer): values for (fact, layer), values in case.items()}
    facts = sorted({fact for fact, _ in renamed})
    trace = made_trace(facts, layers=6, tokens=2, effects={k: x for k, (x, _) in renamed.items() if x is not None})
    rows = trace.cells.to_pylist()
    for row in rows:
        if renamed.get((row["fact_id"], row["layer"]), (0, 0))[0] is None:
            row["effect"] = None
    trace.cells = trace.cells.from_pylist(rows, schema=trace.cells.schema)
    store.add(trace)
    edit = made_edit(
        facts, run_id=f"e-{problem}", problem=problem, layers=tuple(range(6)),
        scores={k: {"rewrite": y, "paraphrase": None} for k, (_, y) in renamed.items()},
    )  # fmt: skip
    for name in ("scores", "prompts"):
        table = getattr(edit, name)
        setattr(edit, name, table.filter([(row["fact_id"], row["layer"]) in renamed for row in table.to_pylist()]))
    store.add(edit)


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(11)
    return NAMED | {f"random-{i}": random_case(rng, i) for i in range(40)}


@pytest.fixture(scope="module")
def store(tmp_path_factory, cases):
    store = Store(tmp_path_factory.mktemp("awkward") / "awkward.duckdb")
    for problem, case in cases.items():
        if case:
            write_case(store, problem, case)
    return store


@pytest.fixture(scope="module")
def by_sql(store):
    return {row["problem"]: row for row in regressions(store).to_pylist()}


def close(name, found, wanted, rest, size=1.0):
    """Compare to 1e-9. F and p have fewer digits where rest, 1 - r2_both, is below 1e-6."""
    if wanted is None or found is None:
        assert found is None
        assert wanted is None
    elif name in ("f_value", "p_value"):
        assert found == pytest.approx(wanted, rel=max(1e-9 if size == 1 else 1e-8, 1e-15 / rest), abs=1e-12)
    else:
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9 * size)


def numbers(case):
    rows = [(layer, x, y) for (_, layer), (x, y) in case.items() if x is not None and y is not None]
    return (np.array(column) for column in zip(*rows, strict=True)) if rows else None


@pytest.mark.parametrize("problem", [*NAMED, *(f"random-{i}" for i in range(40))])
def test_against_lstsq(problem, cases, by_sql):
    case = cases[problem]
    if not case:
        assert problem not in by_sql
        return
    row, columns = by_sql[problem], numbers(case)
    if columns is None:
        assert (row["n"], row["n_left_out"]) == (0, len(case))
        assert all(row[name] is None for name in NUMBERS)
        return
    layer, x, y = columns
    wanted = least_squares.fits(layer, x, y)
    assert (row["n"], row["n_left_out"]) == (len(y), len(case) - len(y))
    # Far from zero, y has too few digits for 1e-9 of its spread.
    size = 1e3 if np.abs(y).max() > 1e3 else 1.0
    for name in NUMBERS:
        close(name, row[name], wanted[name], 1 - (wanted["r2_both"] or 0) + 1e-16, size)
    used = {fact for (fact, _), (a, b) in case.items() if a is not None and b is not None}
    assert (row["n_facts"], row["n_facts_left_out"]) == (len(used), len({f for f, _ in case} - used))


def test_against_statsmodels(store, by_sql):
    checked = {row["problem"]: row for row in check_with_statsmodels(store).to_pylist()}
    assert list(checked) == list(by_sql)
    for problem, wanted in checked.items():
        row = by_sql[problem]
        assert all(row[name] == wanted[name] for name in (*KEYS, "n", "n_left_out"))
        if problem == "scores-far-from-zero":
            continue  # statsmodels does not centre y and loses digits; test_against_lstsq checks this case
        for name in NUMBERS:
            close(name, row[name], wanted[name], 1 - (wanted["r2_both"] or 0) + 1e-16)


def test_layer_sums_equal_their_definition(store, cases):
    sums = (
        "SELECT * FROM layer_sums WHERE score = ? AND effect_at = 'max' AND subset = 'all' AND layers = 'all' AND n > 0"
    )
    rows = query(store, sums, ["rewrite"]).to_pylist()
    assert len(rows) > 60
    for row in rows:
        layer, x, y = numbers(cases[row["problem"]])
        x, y = x[layer == row["layer"]], y[layer == row["layer"]]
        assert row["n"] == len(x)
        assert row["mean_x"] == pytest.approx(x.mean(), abs=1e-12)
        for name, value in (
            ("s_xx", np.sum((x - x.mean()) ** 2)),
            ("s_xy", np.sum((x - x.mean()) * (y - y.mean()))),
            ("s_yy", np.sum((y - y.mean()) ** 2)),
        ):
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12 * max(1, np.abs(y).max() ** 2))


def test_correlations_against_scipy(store, cases):
    checked = 0
    for row in layer_correlations(store).to_pylist():
        columns = numbers({k: v for k, v in cases[row["problem"]].items() if k[1] == row["layer"]})
        if columns is None:
            assert row["rho"] is None
            assert row["n"] == 0
            continue
        _, x, y = columns
        assert row["n"] == len(x)
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            assert row["rho"] is None
            assert row["p_value"] is None
            continue
        wanted = stats.pearsonr(x, y)
        assert row["rho"] == pytest.approx(wanted.statistic, abs=1e-9)
        if len(x) < 3:
            assert row["p_value"] is None
        elif abs(row["rho"]) < 1 - 1e-9:
            assert row["p_value"] == pytest.approx(wanted.pvalue, abs=1e-9)
            checked += 1
    assert checked > 30


def test_means_take_every_edit_with_a_score(store, cases):
    for row in layer_means(store).to_pylist():
        here = [y for (_, layer), (_, y) in cases[row["problem"]].items() if layer == row["layer"]]
        y = np.array([value for value in here if value is not None])
        assert (row["n"], row["n_left_out"]) == (len(y), len(here) - len(y))
        if len(y):
            assert row["mean"] == pytest.approx(y.mean(), rel=1e-12, abs=1e-12)
        if len(y) > 1:
            assert row["sem"] == pytest.approx(y.std(ddof=1) / np.sqrt(len(y)), rel=1e-9, abs=1e-12)
        else:
            assert row["sem"] is None


def test_a_score_that_no_edit_has(store):
    rows = regressions(store, "essence").to_pylist()
    assert rows
    assert all(row["n"] == 0 and row["r2_layer"] is None for row in rows)
    assert {row["mean"] for row in layer_means(store, "essence").to_pylist()} == {None}


@pytest.fixture
def many(tmp_path):
    """Runs that must not be mixed: two windows, protocols, models and tracing seeds, and a zeroing run."""
    store, ids = Store(tmp_path / "many.duckdb"), [f"f{i}" for i in range(12)]
    store.add(made_trace(ids, windows=(3, 5), run_id="t-5"))
    store.add(made_trace(ids, run_id="t-seed", seed=9))
    store.add(made_trace(ids, run_id="t-zero", seed=4, settings='{"module": "mlp", "method": "zero"}'))
    store.add(made_trace(ids, run_id="t-released", protocol="released", seed=2))
    store.add(made_trace(ids, run_id="t-other", model="other", model_hash="m1", seed=3))
    store.add(made_edit(ids, run_id="e-5"))
    store.add(made_edit(ids, run_id="e-3", window_size=3, seed=5))
    store.add(made_edit(ids, run_id="e-7", window_size=7, seed=5))
    store.add(made_edit(ids, run_id="e-released", protocol="released", seed=6))
    store.add(made_edit(ids, run_id="e-other", model="other", model_hash="m1", seed=7))
    return store


@pytest.fixture
def readings(monkeypatch):
    """The connections that were opened by reading a store, each True while it is open."""
    made = []
    for kind in (Store, Stores):

        @contextmanager
        def reading(self, *, was=kind.reading, **folders):
            place = len(made)
            with was(self, **folders) as con:
                made.append(True)
                yield con
            made[place] = False

        monkeypatch.setattr(kind, "reading", reading)
    return made


CHOICES = [{}, {"protocol": "released"}, {"window_size": 3}, {"protocol": "released", "layers": "working"}]


@pytest.mark.parametrize("kind", [Store, Stores])
@pytest.mark.parametrize(
    ("block", "seconds", "most_bytes", "opened"),
    [(one_reading, 99, 2**20, 1), (one_reading, 0, 2**20, 4), (one_reading, 0, 0, 5), (asking_once, 99, 2**20, 4)],
    ids=["one connection", "others can write between two queries", "large tables are not kept", "only rows are kept"],
)
def test_queries_of_one_block_share_a_connection_and_rows(
    many, monkeypatch, readings, kind, block, seconds, most_bytes, opened
):
    store = many if kind is Store else Stores([many.path])
    monkeypatch.setattr("fasttrace.analysis.relation.MOST_SECONDS", seconds)
    monkeypatch.setattr("fasttrace.analysis.relation.MOST_BYTES", most_bytes)
    with block():
        found = []
        for choice in [*CHOICES, CHOICES[0]]:
            found.append(regressions(store, **choice))
            assert any(readings) == (opened == 1)
        assert len(readings) == opened
    assert not any(readings)
    for choice, table in zip([*CHOICES, CHOICES[0]], found, strict=True):
        assert table.num_rows > 0
        pd.testing.assert_frame_equal(table.to_pandas(), regressions(store, **choice).to_pandas(), rtol=1e-9)


def test_a_query_with_kept_rows_closes_an_old_connection(many, monkeypatch, readings):
    with one_reading():
        regressions(many)
        assert readings == [True]
        monkeypatch.setattr("fasttrace.analysis.relation.MOST_SECONDS", 0.0)
        regressions(many)
        assert readings == [False]


def test_values_that_cannot_be_told_apart_are_asked_again(many, readings):
    class Local(str):
        """Cannot be pickled."""

    with asking_once():
        for value in (Local("a"), Local("b")):
            assert query(many, "SELECT $x AS x", MappingProxyType({"x": value})).to_pylist() == [{"x": value}]
        for _ in range(2):
            assert query(many, "SELECT $x AS x", MappingProxyType({"x": 1})).to_pylist() == [{"x": 1}]
    assert len(readings) == 3


def test_runs_are_not_mixed(many):
    rows = regressions(many).to_pylist()
    pairs = {(row["edit_run_id"], row["trace_run_id"]): row for row in rows}
    assert set(pairs) == {
        ("e-5", "t-5"), ("e-5", "t-seed"), ("e-5", "t-zero"), ("e-3", "t-5"), ("e-7", None),
        ("e-released", "t-released"), ("e-other", "t-other"),
    }  # fmt: skip
    assert len(rows) == 7
    assert pairs["e-5", "t-zero"]["localization"] == "zero"
    assert pairs["e-7", None]["n_left_out"] == 48
    assert all(row["n"] == 48 for pair, row in pairs.items() if pair[1])
    assert len({row["r2_effect"] for row in rows}) == 7
    checked = check_with_statsmodels(many).to_pylist()
    for row, wanted in zip(rows, checked, strict=True):
        for name in NUMBERS:
            close(name, row[name], wanted[name], 1)


def test_choosing_window_protocol_and_token(many):
    narrow = regressions(many, window_size=3).to_pylist()  # every edit is paired with the effects of that window
    assert {row["window_size"] for row in narrow} == {3}
    assert {(row["edit_run_id"], row["trace_run_id"]) for row in narrow if row["n"]} == {
        ("e-5", "t-5"),
        ("e-3", "t-5"),
        ("e-7", "t-5"),
    }
    assert {row["protocol"] for row in regressions(many, protocol="released").to_pylist()} == {"released"}
    at_max, at_last = (regressions(many, effect_at=choice).to_pylist() for choice in ("max", "last-subject"))
    assert all(a["r2_layer"] == pytest.approx(b["r2_layer"]) for a, b in zip(at_max, at_last, strict=True) if a["n"])
    assert all(a["r2_effect"] != b["r2_effect"] for a, b in zip(at_max, at_last, strict=True) if a["n"])
    last = query(many, "SELECT DISTINCT trace_run_id FROM traced_edits WHERE effect_last_subject IS NOT NULL")
    assert last.num_rows == 5


def test_edit_effects_are_the_regressed_rows(many):
    table = relation(many, "edit_effects", {"score": "paraphrase"})
    assert table.num_rows == sum(row["n"] for row in regressions(many, "paraphrase").to_pylist())


@pytest.mark.parametrize("call", [regressions, layer_means, layer_correlations, check_with_statsmodels])
def test_an_unknown_score_is_refused(store, call):
    with pytest.raises(UserError, match=r"expected one of rewrite, .* as score, got 'beauty'"):
        call(store, "beauty")


def test_unknown_choices_are_refused(store):
    with pytest.raises(UserError, match=r"expected one of max, .* as effect_at, got 'first'"):
        regressions(store, effect_at="first")
    with pytest.raises(UserError, match="expected a relation of the analysis, got 'nothing'"):
        relation(store, "nothing")


def test_an_empty_store_gives_empty_tables(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    assert regressions(store).num_rows == layer_means(store).num_rows == layer_correlations(store).num_rows == 0
    assert check_with_statsmodels(store).num_rows == 0


def relation_names():
    """Names of the relations in sql/. Those in sql/checks/ have another test."""
    folder = files("fasttrace.analysis") / "sql"
    return [file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql")]


def test_every_relation_is_documented():
    for name in [*SETTINGS, *relation_names()]:
        header = " ".join(line for line in sql(name).splitlines() if line.startswith("--"))
        assert header.startswith(f"-- {name}: ")
        assert all(word in header for word in ("Grain:", "Inputs:", "Units:"))


def test_every_relation_declares_what_it_reads():
    """The Inputs in a header are those that DuckDB finds. In the chain they come before the relation."""
    with duckdb.connect() as con:
        for name in RELATIONS:
            con.execute(schema_sql(name))
        make_chain(con)
        columns = {name: con.sql(f"FROM {name} LIMIT 0") for name in CHAIN}
        schema = {name: dict(zip(rows.columns, rows.types, strict=True)) for name, rows in columns.items()}
    with duckdb.connect() as con:
        for name in RELATIONS:
            con.execute(schema_sql(name))
        for name, kinds in schema.items():  # tables, since DuckDB would look through views
            con.execute(f"CREATE TABLE {name} ({', '.join(f'{column} {kind}' for column, kind in kinds.items())})")
        for name in [*SETTINGS, *relation_names()]:
            declared = header_of(sql(name), name).inputs
            text = written(sql(name), {one: [] if one == "fact_ids" else None for one in parameters_of(sql(name))})
            assert set(declared) == con.get_table_names(text), name
            if name in CHAIN:
                before = CHAIN[: CHAIN.index(name)]
                assert set(declared) <= {*RELATIONS, *before}, f"{name} comes before one of its inputs"
    assert read_by("regressions_of_score") == {
        *SETTINGS, "run_names", "trace_runs", "run_pairs", "scored_edits", "edited_layers", "traced_edits",
        "concentrated_facts", "regression_rows", "layer_sums", "group_fits", "regressions",
    } - {"moments_settings"}  # fmt: skip
