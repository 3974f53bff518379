"""Access links: each node has its rate whoever it talks to, and small frames pass large ones where that is so."""

from random import Random

import pytest

from protocols.base.limits import MS, SECOND
from sims.media.access import AccessLinks

RATE = 1_000_000
LARGE, SMALL = 16_384, 300


def links(is_ranked: bool = True) -> AccessLinks:
    return AccessLinks([RATE] * 4, [RATE] * 4, MS, Random(1), is_ranked)


def arrival_ms(of: AccessLinks, sender: int, receiver: int, size_bytes: int, now_ns: int = 0) -> float:
    came_ns = of.stream_ns(sender, receiver, size_bytes, now_ns)
    assert came_ns is not None
    return came_ns / MS


def test_uplink_carries_its_rate_whoever_the_receivers_are() -> None:
    """One who gives to many has one link for all of them."""
    wires = links()
    last_ms = max(arrival_ms(wires, 0, receiver, LARGE) for receiver in (1, 2, 3) * 10)
    assert last_ms == pytest.approx(30 * LARGE * 1.06 / RATE * 1_000, rel=0.05)
    assert wires.sent_bytes(0) == pytest.approx(30 * LARGE, rel=0.1)


def test_downlink_carries_its_rate_and_what_comes_early_does_not_wait_for_what_is_on_its_way() -> None:
    """A frame that is sent at once must not be behind one that waits for its uplink."""
    wires = links(is_ranked=False)
    for _ in range(20):
        arrival_ms(wires, 0, 2, LARGE)
    assert arrival_ms(wires, 0, 3, LARGE) > 300
    assert arrival_ms(wires, 1, 3, LARGE) < 25
    last_ms = max(arrival_ms(wires, sender, 3, LARGE) for sender in (1, 2) * 20)
    assert last_ms == pytest.approx(42 * LARGE * 1.06 / RATE * 1_000, rel=0.1)


def test_small_frame_passes_large_ones_only_where_networks_rank_them() -> None:
    """The figures of readings beside a release depend on nothing else as much."""
    for is_ranked in (True, False):
        wires = links(is_ranked)
        for _ in range(20):
            arrival_ms(wires, 0, 3, LARGE)
        small_ms = arrival_ms(wires, 0, 3, SMALL)
        assert (small_ms < 6) == is_ranked
        assert (small_ms > 300) == (not is_ranked)


def test_small_frames_keep_their_order_and_wait_for_each_other() -> None:
    """Nineteen readings at once take their time even on a free link."""
    wires = links()
    times_ms = [arrival_ms(wires, 0, receiver, SMALL, SECOND) - 1_000 for receiver in (1, 2, 3) * 6]
    assert times_ms == sorted(times_ms)
    assert times_ms[-1] == pytest.approx(18 * (SMALL + 112) / RATE * 1_000 + 1.4, rel=0.1)
