"""Which edits are computed together: as many as memory holds, in order, and at least one."""

from types import SimpleNamespace

import pytest

from fasttrace.editing.plan import EditPlan

TODO = [("a", [0, 1, 2]), ("b", [5]), ("c", [0, 3])]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (100, [TODO]),
        (4, [[("a", [0, 1, 2]), ("b", [5])], [("c", [0, 3])]]),
        (2, [[("a", [0, 1])], [("a", [2]), ("b", [5])], [("c", [0])], [("c", [3])]]),
        (0, [[("a", [0])], [("a", [1])], [("a", [2])], [("b", [5])], [("c", [0])], [("c", [3])]]),
    ],
)
def test_a_facts_layers_are_split_where_memory_ends(memory, expected):
    """Each layer of c takes 2 bytes, and every other layer 1."""
    plan = SimpleNamespace(_bytes=lambda fact, layer: 2 if fact == "c" else 1)
    assert list(EditPlan.groups(plan, TODO, memory)) == expected


def test_nothing_to_do():
    assert list(EditPlan.groups(SimpleNamespace(), [], 10)) == []
