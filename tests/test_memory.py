"""Memory budgets: reading sizes, and packing items within a budget."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.memory import pack_by_budget, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512MB", 512 * 2**20),
        ("8GiB", 8 * 2**30),
        (" 1.5 kB ", 1536),
        ("1TB", 2**40),
        ("77", 77),
        (77, 77),
        ("1024TB", 2**50),
    ],
)
def test_sizes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "0MB",
        "8 G",
        "8XB",
        "1e9",
        "1,5GB",
        "MB",
        "0.5",
        "1025TB",
        f"{10**20}GB",
        "9" * 400 + "GB",
        10**50,
        True,
        "٣٣GB\n.",
    ],
)
def test_bad_sizes(text):
    with pytest.raises(UserError, match="expected a size such as 512MB or 8GB"):
        parse_bytes(text)


def test_packing():
    names = ["a", "bb", "ccc", "dddddd", "e", "f"]
    assert list(pack_by_budget(names, len, 5)) == [["a", "bb"], ["ccc"], ["dddddd"], ["e", "f"]]
    assert list(pack_by_budget([], len, 5)) == []


@given(st.lists(st.integers(0, 12)), st.integers(0, 20))
def test_groups_are_as_long_as_they_can_be(sizes, budget):
    items = list(enumerate(sizes))
    size_of = lambda item: item[1]  # noqa: E731
    groups = list(pack_by_budget(iter(items), size_of, budget))
    assert [item for group in groups for item in group] == items
    assert all(groups)
    assert all(sum(map(size_of, group)) <= budget or len(group) == 1 for group in groups)
    for group, following in itertools.pairwise(groups):
        assert sum(map(size_of, group)) + size_of(following[0]) > budget
