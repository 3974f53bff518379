"""Sequences grow over restarts in this century, whatever the clock says, and nodes of both schemes understand them."""

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.sequences import (
    MAX_INCARNATION,
    MAX_SEQUENCE,
    TURN,
    first_sequence,
    first_version,
    incarnation_at,
    incarnation_of_version,
)

INCARNATIONS = st.integers(0, MAX_INCARNATION - 1) | st.integers(TURN - 3, TURN + 3)


def year(number: int) -> int:
    """The first second of a year, in seconds since 1970."""
    return calendar.timegm((number, 1, 1, 0, 0, 0))


@given(INCARNATIONS)
def test_sequences_of_the_next_life_are_all_larger(incarnation: int) -> None:
    """Else its readings would be taken for old ones."""
    assert first_sequence(incarnation + 1) - first_sequence(incarnation) >= 1 << 29
    assert first_version(incarnation + 1) - first_version(incarnation) >= 1 << 17


@given(INCARNATIONS, st.integers(0, (1 << 29) - 1))
def test_sequence_says_in_which_life_it_was_published(incarnation: int, number: int) -> None:
    """So does the version of an entry."""
    assert incarnation_at(first_sequence(incarnation) + number) == incarnation
    assert incarnation_of_version(first_version(incarnation) + (number >> 12)) == incarnation


@pytest.mark.parametrize("seconds", [1, year(2024), TURN])
def test_sequences_until_2027_are_those_of_nodes_in_the_field(seconds: int) -> None:
    """A node that is updated goes on above what it published before."""
    assert first_sequence(seconds) == seconds << 32
    assert first_version(seconds) == seconds << 20


@pytest.mark.parametrize("number", [2027, 2037, 2038, 2039, 2107, 2115])
def test_sequences_of_this_century_fit_the_store_of_a_relay(number: int) -> None:
    """From 2038 on they had more than 63 bits, and the relay refused every record."""
    assert year(number) <= MAX_INCARNATION
    assert first_sequence(year(number) + 1) <= MAX_SEQUENCE


def test_last_incarnation_uses_the_last_sequences() -> None:
    """The bound is neither too early nor too late."""
    assert first_sequence(MAX_INCARNATION + 1) == MAX_SEQUENCE + 1


@given(INCARNATIONS)
def test_node_of_the_older_scheme_takes_no_signed_reading_for_a_replay(incarnation: int) -> None:
    """It compares the upper 32 bits of a sequence with the version of the author's entry, without its lowest 20."""
    assert first_sequence(incarnation) >> 32 >= first_version(incarnation) >> 20


@given(st.integers(TURN, (1 << 31) - 1), st.integers(0, (1 << 20) - 1))
def test_entry_of_a_node_of_the_older_scheme_allows_its_sequences(incarnation: int, number: int) -> None:
    """It went on with 2^32 sequences for each incarnation after 2027."""
    version = (incarnation << 20) + (number & ((1 << 17) - 1))
    assert first_sequence(incarnation_of_version(version)) == incarnation << 32
