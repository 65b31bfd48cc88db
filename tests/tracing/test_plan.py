"""Waves: which cells go together. The oracle packs cells one after another, as `split_waves` documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Fact
from fasttrace.tracing.plan import make_item, split_waves

N_LAYERS = 4


def item(length, begin, targets, method="denoise"):
    ids = tuple(range(length))
    fact = Fact("{} is", f"subject {length} {begin} {targets}", "true")
    encoded = EncodedFact(fact, ids, tuple(map(str, ids)), begin, begin + 1, tuple(range(targets)), None)
    return make_item(encoded, [3], N_LAYERS, "all", method, samples=2)


def one_after_another(items, max_rows):
    """Return [(cells by item, rows)]. A fact that does not fit into the current wave begins a new one, and so does each
    cell that does not fit."""
    waves, cells, rows = [], [], 0
    for number, one in enumerate(items):
        base = one.base_rows()
        sizes = [one.cell_rows(cell) for cell in one.cells]
        if cells and rows + min(base + sum(sizes), max_rows) > max_rows:
            waves.append((cells, rows))
            cells, rows = [], 0
        cells.append((number, []))
        rows += base
        for cell, size in zip(one.cells, sizes, strict=True):
            if rows + size > max_rows:
                waves.append((cells, rows))
                cells, rows = [(number, [])], base
            cells[-1][1].append(cell)
            rows += size
    return [*waves, (cells, rows)]


shapes = st.tuples(st.integers(2, 9), st.integers(0, 8), st.integers(1, 3)).map(lambda x: (x[0], x[1] % x[0], x[2]))


@given(st.lists(shapes, min_size=1, max_size=8), st.sampled_from(["denoise", "zero"]), st.integers(0, 300))
def test_waves_are_packed_in_order(drawn, method, more):
    items = [item(*shape, method) for shape in drawn]
    least = max(one.base_rows() + max(map(one.cell_rows, one.cells)) for one in items)
    found = split_waves(items, least + more)
    assert [(wave.items, wave.rows) for wave in found] == one_after_another(items, least + more)
    assert max(wave.rows for wave in found) <= least + more
    with pytest.raises(UserError, match=rf"a budget of at least {least} rows for fact .*, got {least - 1}"):
        split_waves(items, least - 1)


def test_the_last_wave_of_a_split_fact_also_takes_the_next_fact():
    """Few random budgets leave room for a whole fact in the last wave of a split fact."""
    large, small = item(9, 0, 1, "zero"), item(2, 1, 1, "zero")
    budget = next(
        budget
        for budget in range(20, 400)
        if len(waves := split_waves([large, small], budget)) > 1 and len(waves[-1].items) == 2
    )
    found = split_waves([large, small], budget)
    assert [(wave.items, wave.rows) for wave in found] == one_after_another([large, small], budget)
