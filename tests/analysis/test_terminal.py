"""Tables of any size as text that fits a terminal."""

import re

import pyarrow as pa

from fasttrace.analysis.grids import heatmap_text
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
    assert [line.strip() for line in long[2:]] == ["0", "1", "2", "⋮", "998", "999", "1000 rows, 5 shown"]
    assert fit(pa.table({"x": pa.array([], pa.int32())})).endswith("0 rows\n")


def test_a_heatmap_has_a_colour_for_every_cell_that_was_traced():
    tokens = ["The", " Eiffel", " Tower\n", " is"]
    fact = {
        **{"prompt": "The Eiffel Tower\n is", "target_true": "tall", "tokens": tokens},
        **{"subject_begin": 1, "subject_end": 3, "p_clean": 0.9, "p_noised": 0.1, "counterfactuals": None},
    }
    rows = [(token, layer) for token in (1, 2, 3) for layer in range(7)]
    cells = pa.table(
        {
            "token_index": [token for token, _ in rows],
            "layer": [layer for _, layer in rows],
            "head": pa.nulls(len(rows), pa.int32()),
            "p_restored": [0.5 if row == (2, 3) else 0.1 for row in rows],
            "window_size": [5] * len(rows),
        }
    )
    text = heatmap_text(fact, cells, 80)
    lines = text.plain.splitlines()
    assert lines[0] == "The Eiffel Tower⏎ is … tall: p 0.900, with noise on the subject 0.100"
    assert [line.split()[0] for line in lines[1:5]] == ["The", "Eiffel*", "Tower⏎*", "is"]
    assert lines[5].split() == ["layer", "0", "5"]
    grid = [span for span in text.spans if "on #" in str(span.style) and span.end - span.start == 2]
    assert len(grid) == 21, "none for the token before the subject"
    high = [span for span in grid if str(span.style) == "on #fee838"]
    [start] = [span.start for span in high]
    begin = text.plain.index("Tower⏎*")
    assert text.plain[begin:start].count("\n") == 0
    assert start - begin == len("Eiffel* ") + 2 * 3
    paired = heatmap_text(fact | {"counterfactuals": ["The Kremlin is"]}, cells, 80).plain
    assert paired.startswith("The Eiffel Tower⏎ is … tall: p 0.900, with the counterfactuals 0.100\n")
    narrow = heatmap_text(fact, cells, 12).plain.splitlines()
    assert len(narrow[2]) < len(lines[2])
