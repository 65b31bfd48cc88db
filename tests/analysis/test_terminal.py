"""Tables of any size as text that fits a terminal."""

import re

import pyarrow as pa

from fasttrace.analysis.terminal import fit


def wide(rows=3):
    text = ["a long text that goes on and on", None, "b\n\x1b[31m[bold]"]
    return pa.table(
        {"name": text[:rows], "p": [1e-7, 0.25, None][:rows], **{f"column_{i}": [i] * rows for i in range(12)}}
    )


def test_a_table_fits_and_says_what_it_leaves_out():
    table = wide()
    lines = fit(table, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert re.fullmatch(r"14 columns, \d+ shown", lines[-1])
    assert "column_0" in lines[0]
    assert "column_11" in lines[0]
    assert "1.000e-07" in lines[2]
    whole = fit(table)
    assert "a long text that goes on and on" in whole
    assert "b\\n\\x1b[31m[bold]" in whole
    assert "shown" not in whole
    long = fit(pa.table({"x": list(range(1000))}), 80, 5).splitlines()
    assert [line.strip() for line in long[2:]] == ["0", "1", "2", "⋮", "998", "999", "1,000 rows, 5 shown"]
    assert fit(pa.table({"x": pa.array([], pa.int32())})).endswith("0 rows\n")


def test_a_notebook_is_shown_nothing_while_a_table_becomes_text(monkeypatch):
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *what: shown.append(what))
    assert "1" in fit(pa.table({"a": [1]}), None, None)
    assert shown == []
