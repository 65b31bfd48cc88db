"""A heatmap as text for a terminal."""

import numpy as np

from fasttrace.show.grids import Heatmap
from fasttrace.show.terminal import heatmap_text


def heat(**changes):
    values = np.full((4, 7), 0.1)
    values[0], values[2, 3] = np.nan, 0.5
    made = {
        **{"values": values, "tokens": ("The", "Eiffel", "Tower⏎", "is"), "begin": 1, "end": 3},
        **{"prompt": "The Eiffel Tower⏎ is", "target": "tall", "clean": 0.9, "corrupted": 0.1, "model": "/x/gpt2"},
        **{"module": "mlp", "method": "denoise", "corruption": "noise", "metric": "probability", "window": 5},
    }
    return Heatmap(**made | changes)


def test_a_heatmap_has_a_colour_for_every_cell_that_was_traced():
    text = heatmap_text(heat(), 80)
    lines = text.plain.splitlines()
    assert lines[:3] == [
        "The Eiffel Tower⏎ is … tall",
        "gpt2 · mlp · denoise · window 5",
        "p(tall) clean 0.900, noised 0.100",
    ]
    assert [line.split()[0] for line in lines[3:7]] == ["The", "Eiffel*", "Tower⏎*", "is"]
    assert lines[7].split() == ["layer", "0", "5"]
    grid = [span for span in text.spans if "on #" in str(span.style) and span.end - span.start == 2]
    assert len(grid) == 21, "none for the token before the subject"
    [start] = [span.start for span in grid if str(span.style) == "on #fee838"]
    begin = text.plain.index("Tower⏎*")
    assert text.plain[begin:start].count("\n") == 0
    assert start - begin == len("Eiffel* ") + 2 * 3
    narrow = heatmap_text(heat(), 12).plain.splitlines()
    assert len(narrow[4]) < len(lines[4])


def test_without_colour_a_cell_is_a_digit_above_its_layer():
    lines = heatmap_text(heat(), 80, color=False).plain.splitlines()
    assert lines[5] == "Tower⏎*  . . . 9 . . ."
    assert lines[3].rstrip() == "The"
    assert lines[7] == "layer    0         5"
    assert lines[8] == "p(tall), restored (* subject): . is 0.100, 9 is 0.500"


def test_a_heatmap_says_what_was_done_to_a_cell_and_by_what():
    paired = heat(corruption="counterfactual", method="noise", window=1)
    assert paired.how == "gpt2 · mlp · noise · counterfactual · window 1"
    assert paired.ends == "p(tall) clean 0.900, counterfactual 0.100"
    assert paired.layer_label == "corrupted layer (0-based)"
    zeroed = heat(method="zero", corrupted=None, metric="logit-difference", module="head", part="strongest head")
    assert zeroed.title == "gpt2 · head · zero · window 5 · strongest head\nthe logit difference: clean 0.900"
    assert zeroed.layer_label == "zeroed layer (0-based), centre of a window of 5"
    assert zeroed.value_label == "the logit difference with the layer zeroed (logits)"
