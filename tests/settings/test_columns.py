"""Settings of stored runs as columns: each has its setting's name, and its default if the run lacks it."""

import json

import duckdb
import pytest

from fasttrace.settings.base import run_settings
from fasttrace.settings.columns import RUN_SETTINGS, columns_of, settings_select, stored_settings
from fasttrace.settings.methods import METHODS
from fasttrace.settings.trace import TraceSettings


def rows_of(kind, *texts):
    """Rows of <kind>_settings, from runs with these settings and a run of another kind."""
    con = duckdb.connect()
    con.execute("CREATE TABLE runs (run_id VARCHAR, kind VARCHAR, settings VARCHAR)")
    con.execute("INSERT INTO runs VALUES ('other', 'bench', '{}')")
    for number, text in enumerate(texts):
        con.execute("INSERT INTO runs VALUES ($id, $kind, $text)", {"id": str(number), "kind": kind, "text": text})
    return con.sql(f"{settings_select(kind)} ORDER BY run_id").to_arrow_table().to_pylist()


@pytest.mark.parametrize("kind", RUN_SETTINGS)
def test_a_setting_that_a_run_lacks_has_its_default(kind):
    [row] = rows_of(kind, "{}")
    assert list(row) == ["run_id", *columns_of(kind)]
    for name, one in columns_of(kind).items():
        default = list(one.default) if isinstance(one.default, tuple) else one.default
        assert row[name] == (None if one.tabled else default), name


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_own_settings_are_columns_of_its_edits(method):
    own = METHODS[method].settings(steps=7, early_stop=0.5)
    [row] = rows_of("edit", json.dumps({"method": method, "sigma": 0.4, **run_settings(own)}))
    assert (row["method"], row["sigma"], row["steps"], row["early_stop"]) == (method, 0.4, 7, 0.5)
    for name, value in run_settings(own).items():
        assert row[name] == value


def test_a_column_has_the_value_and_the_type_of_its_setting():
    asked = TraceSettings(
        windows=[10, 5], samples=3, module="attn", method="attribution", verify_top=4, keep_samples=True, sigma=0.25
    )
    row, plain = rows_of("trace", json.dumps(run_settings(asked)), "{}")
    for name in columns_of("trace"):
        value = getattr(asked, name)
        assert row[name] == (list(value) if isinstance(value, tuple) else value)
        assert row[name] == plain[name] or type(row[name]) is type(plain[name]) or plain[name] is None
    assert row["keep_samples"] is True


def test_the_settings_of_a_run_in_python():
    assert stored_settings("trace", '{"module": "attn", "windows": [3]}') == {
        **{name: one.default for name, one in columns_of("trace").items()}, "module": "attn", "windows": [3],
    }  # fmt: skip
    assert "steps" not in stored_settings("edit", "{}")


def test_a_renamed_setting_keeps_the_name_that_runs_have_of_it():
    stated = run_settings(TraceSettings(scored="first-token"))
    assert stated["target"] == "first-token"
    assert "scored" not in stated
    assert stored_settings("trace", json.dumps(stated))["scored"] == "first-token"
    [row] = rows_of("trace", '{"target": "argmax-first"}')
    assert row["scored"] == "argmax-first"
    assert "target" not in row
