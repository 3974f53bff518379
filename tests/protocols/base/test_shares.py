"""Shares: the largest holder of a table gives way, so that a flood costs only whoever sends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.shares import SharedRows, Shares


def test_largest_of_nobody_is_an_error_of_the_caller() -> None:
    """A full table has a holder; asking an empty one is our own mistake."""
    with pytest.raises(ValueError, match="empty"):
        Shares[str]().largest()


def test_payer_that_holds_nothing_any_more_is_forgotten() -> None:
    """Neighbours come and go for months: what is kept of them must go too."""
    shares = Shares[str]()
    shares.add("a", 5)
    shares.remove("a", 5)
    assert (shares.payers(), shares.total, shares.held("a")) == ([], 0, 0)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), max_size=200), st.integers(4, 60))
def test_flood_never_costs_a_row_of_whoever_holds_less_than_an_equal_share(
    puts: list[tuple[str, int]], bound: int
) -> None:
    """The promise that every table inherits: a payer below its equal share is never the one that gives way."""
    shares = Shares[str]()
    for payer, amount in puts:
        shares.add(payer, amount)
        while shares.total > bound:
            giver = shares.largest()
            assert shares.held(giver) * len(shares.payers()) >= shares.total
            assert shares.held(giver) == max(map(shares.held, shares.payers()))
            shares.remove(giver)
    assert shares.total == sum(map(shares.held, shares.payers())) <= bound


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "move", "move all"]), st.sampled_from("abc"), st.integers(0, 9)),
        max_size=60,
    )
)
def test_rows_and_shares_agree_whatever_is_added_moved_and_removed(steps: list[tuple[str, str, int]]) -> None:
    """Every table of a node keeps both. If they differ, somebody who holds nothing gives way for ever."""
    rows, book = SharedRows[str, int](), dict[int, tuple[str, int]]()
    for number, (what, payer, row) in enumerate(steps):
        if what == "add":
            rows.add(payer, row, number)
            book.pop(row, None)
            book[row] = (payer, number)
        elif what == "remove":
            rows.remove(row)
            book.pop(row, None)
        elif what == "move":
            rows.move(row, payer)
            if row in book:
                book[row] = (payer, book.pop(row)[1])
        else:
            moved = rows.move_all(payer, "heir")
            assert moved == [each for each, (holder, _) in book.items() if holder == payer]
            for each in moved:
                book[each] = ("heir", book.pop(each)[1])
        assert len(rows) == len(book)
        assert all((row in rows) == (row in book) for row in range(10))
        assert {row: rows.payer_of(row) for row in book} == {row: holder for row, (holder, _) in book.items()}
        for holder in ("a", "b", "c", "heir"):
            assert rows.shares.held(holder) == sum(amount for who, amount in book.values() if who == holder)
        if rows.shares.total:
            largest = rows.shares.largest()
            assert rows.next_to_go() == next(row for row, (who, _) in book.items() if who == largest)
