"""Grids of cells, and the range of their colours."""

import numpy as np
import pyarrow as pa
import pytest

from fasttrace.show.grids import color_range, grid_of


def test_colors_run_from_noised_to_the_highest_cell_but_do_not_magnify_noise():
    assert color_range(np.array([[0.1, 0.6]]), 0.9, 0.1) == (0.1, 0.6)
    low, high = color_range(np.array([[0.1, 0.1001]]), 0.9, 0.1)
    assert low == 0.1
    assert high == pytest.approx(0.18)
    assert color_range(np.array([[0.05, np.nan]]), 0.3, 0.31)[0] == 0.05


def test_of_several_heads_the_one_with_the_largest_effect_is_shown():
    """In whatever order they come; the lowest of equals; a head without an effect only where none has one."""
    rows = [  # token, layer, head, effect, p
        (0, 0, 0, 0.2, 0.1), (0, 0, 1, 0.9, 0.2), (0, 0, 2, 0.5, 0.3), (0, 1, 3, 0.4, 0.4), (0, 1, 1, 0.4, 0.5),
        (1, 0, 0, None, 0.6), (1, 0, 1, -0.3, 0.7), (1, 1, 1, None, 0.8),
    ]  # fmt: skip
    names = ("token_index", "layer", "head", "effect", "p")
    for some in (rows, rows[::-1], rows[3:] + rows[:3]):
        cells = pa.table(dict(zip(names, zip(*some, strict=True), strict=True)))
        assert grid_of(cells, "p").tolist() == [[0.2, 0.5], [0.7, 0.8]]
        assert grid_of(cells, "effect")[0].tolist() == [0.9, 0.4]


def test_absent_cells_stay_blank():
    cells = pa.table({"token_index": [1, 2], "layer": [0, 1], "head": pa.nulls(2, pa.int32()), "p": [0.5, None]})
    grid = grid_of(cells, "p")
    assert grid.shape == (3, 2)
    assert grid[1, 0] == 0.5
    assert np.isnan(np.delete(grid.ravel(), 2)).all()
