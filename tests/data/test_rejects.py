"""Damaged items: counted and named, or refused: all where there are too many, or the first."""

from pathlib import Path

import pytest

from megalodon_tasks.data.rejects import LIMIT, Rejects, describe


def test_items_are_counted_and_named():
    rejects = Rejects()
    rejects.add(Path("a/1.txt"), "is empty")
    rejects.add("b.tsv, line 7", "has 3 fields")
    assert len(rejects) == 2
    assert describe(rejects.reasons) == [
        "left out as damaged: 2",
        "  a/1.txt is empty",
        "  b.tsv, line 7 has 3 fields",
    ]


def test_nothing_left_out_is_no_line():
    assert describe(Rejects().reasons) == []


def test_an_item_that_is_met_twice_counts_once():
    rejects = Rejects()
    for _ in range(2):
        rejects.add("a", "is empty")
    assert len(rejects) == 1


def test_a_long_list_is_cut():
    rejects = Rejects()
    for number in range(25):
        rejects.add(f"item {number}", "is empty")
    lines = describe(rejects.reasons)
    assert lines[0] == "left out as damaged: 25"
    assert lines[1] == "  item 0 is empty"
    assert lines[-1] == "  and 15 more"
    assert len(lines) == 12


def test_strict_refuses_the_first():
    with pytest.raises(ValueError, match="^a.txt is empty; correct or remove it"):
        Rejects(strict=True).add("a.txt", "is empty")


@pytest.mark.parametrize("limit", [0, 3, LIMIT])
def test_too_many_are_refused_with_their_names(limit):
    rejects = Rejects(limit=limit)
    for number in range(limit):
        rejects.add(f"item {number}", "is empty")
    with pytest.raises(ValueError, match=f"more than {limit} items are damaged.*\n.*: {limit + 1}"):
        rejects.add("one more", "is empty")
