"""Ranges of sequences that were stored once, against a set of sequences."""

from bisect import bisect_right
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cloud_relay.store.postgres.ranges import StoredRange, gaps_between, joined_ranges

sequences = st.sets(st.integers(1, 24))


def near(ranges: list[StoredRange], deleted: set[int]) -> set[StoredRange]:
    """The ranges that a store looks up: for each deleted record the last up to it, and the first after it."""
    firsts = [one.first for one in ranges]
    found: set[StoredRange] = set()
    for sequence in deleted:
        at = bisect_right(firsts, sequence)
        found.update(ranges[max(at - 1, 0) : at + 1])
    return found


@given(stored=sequences, steps=st.lists(sequences, max_size=5))
def test_ranges_hold_what_was_deleted_and_join_across_what_is_stored(stored: set[int], steps: list[set[int]]) -> None:
    """A sequence that is in a range counts as stored: one that never was must not get in. And an honest node, which
    leaves no gap, has one range whatever is deleted of it."""
    rows, gone, ranges = set(stored), set[int](), list[StoredRange]()
    for step in steps:
        deleted = step & rows
        if not deleted:
            continue
        rows -= deleted
        gone |= deleted
        known = near(ranges, deleted)
        full = {gap for gap in gaps_between(known, deleted) if {*range(gap.first, gap.last + 1)} <= rows}
        ranges = sorted({*ranges} - known | {*joined_ranges(known, deleted, full)})
        within = [sequence for one in ranges for sequence in range(one.first, one.last + 1)]
        assert len(within) == len({*within}), "no sequence is in two ranges"
        assert gone <= {*within} <= stored
        assert all(one.last + 1 < other.first for one, other in pairwise(ranges)), "joined"
        if stored == {*range(min(stored), max(stored) + 1)}:
            assert len(ranges) == 1
