"""The time from suspect to dead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import NodeId
from protocols.membership.suspicion import Suspicion, suspicion_timeout_ns
from tests.tools.strategies import MODEST


@pytest.mark.parametrize(("confirmations", "expected"), [(0, 1_000), (1, 750), (3, 500), (7, 250), (15, 0), (99, 0)])
def test_timeout_with_confirmations_shrinks_logarithmically(confirmations: int, expected: int) -> None:
    """Lifeguard's formula, with figures that can be checked by hand: log2 of c + 1, of 4."""
    assert suspicion_timeout_ns(0, 1_000, confirmations, 15) == pytest.approx(expected, abs=1)


def test_timeout_with_nobody_to_confirm_is_the_maximum() -> None:
    """A lone pair of nodes must not divide by log 1."""
    assert suspicion_timeout_ns(1, 1_000, 5, 0) == 1_000
    assert suspicion_timeout_ns(1, 1_000, 5, -1) == 1_000


@MODEST
@given(st.integers(0, 10**10), st.integers(0, 10**10), st.integers(0, 300), st.integers(0, 64))
def test_timeout_stays_between_minimum_and_maximum(low: int, more: int, confirmations: int, possible: int) -> None:
    """However many liars confirm, nobody is dead before the minimum."""
    assert low <= suspicion_timeout_ns(low, low + more, confirmations, possible) <= low + more


def test_suspicion_confirmed_twice_by_one_node_counts_once() -> None:
    """One insider must not play the whole neighbourhood."""
    once, twice = Suspicion(0, 600, 2_500, 5), Suspicion(0, 600, 2_500, 5)
    once.confirm(NodeId("a"))
    for _ in range(10):
        twice.confirm(NodeId("a"))
    assert once.dead_at == twice.dead_at < 2_500


def test_suspicion_tightened_never_grows_nor_falls_below_the_minimum() -> None:
    """Lost pipes shorten the wait; later evidence can't lengthen it again."""
    suspicion = Suspicion(100, 600, 2_500, 0)
    assert suspicion.dead_at == 2_600
    suspicion.tighten(700)
    assert suspicion.dead_at == 800
    suspicion.tighten(2_000)
    assert suspicion.dead_at == 800
    suspicion.tighten(1)
    assert suspicion.dead_at == 700


def test_suspicion_restarted_counts_anew() -> None:
    """A node that did not watch gives the other its whole time again."""
    suspicion = Suspicion(0, 600, 2_500, 0)
    suspicion.tighten(700)
    suspicion.restart(10_000, 2_500)
    assert suspicion.dead_at == 12_500


def test_suspicion_with_minimum_above_maximum_uses_the_minimum() -> None:
    """A configuration can say that."""
    assert Suspicion(0, 600, 100, 3).dead_at == 600
