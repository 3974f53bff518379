"""The room of the background: none is taken from readings, and what is left over is used."""

import pytest

from protocols.base.ids import NodeId
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.links.flow import LATE_NS
from protocols.links.room import BackgroundRoom

GOOD, LATE = (1, 5 * MS), (LATE_NS + 1, 30 * MS)
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
PIECE_BYTES = 16_384


class Link:
    """A node that always has more of the background, and whose readings tell how full its link is."""

    def __init__(self) -> None:
        self.room, self.now, self.sent_bytes = BackgroundRoom(), SECOND, 0

    def run(self, seconds: float, link_bytes_per_s: float, with_readings: bool = True) -> float:
        """Let time pass. Frames are late while more than the link carries was sent lately. Returns bytes a second."""
        before, began = self.sent_bytes, self.now
        backlog, lately = 0.0, self.now
        while self.now < began + seconds * SECOND:
            self.now += 10 * MS
            for peer in (A, B):
                if self.room.take(peer, PIECE_BYTES, self.now):
                    self.sent_bytes += PIECE_BYTES
                    backlog += PIECE_BYTES
            backlog = max(backlog - (self.now - lately) * link_bytes_per_s / SECOND, 0.0)
            lately = self.now
            wait_ns = int(backlog / link_bytes_per_s * SECOND)
            for peer in (A, B):
                sample = max(1, min(wait_ns, LATE_NS + 1)), wait_ns + 5 * MS
                self.room.sampled(peer, sample, with_readings, self.now)
            self.room.ready(self.now)
        return (self.sent_bytes - before) / seconds


def test_background_has_no_limit_where_no_frame_is_late() -> None:
    """A fast network, or one that lets readings pass, is used as far as it goes."""
    link = Link()
    assert link.run(2, 1e9) == 2 * PIECE_BYTES * 100
    assert not link.room.together.limited


def test_background_takes_a_part_of_a_link_that_it_would_fill() -> None:
    """Readings must find the link free most of the time, and the release must get on."""
    link = Link()
    link.run(20, 1e6)
    taken = link.run(60, 1e6)
    assert link.room.together.limited
    assert 0.1e6 < taken < 0.6e6


def test_background_takes_most_of_a_link_without_readings() -> None:
    """Heartbeats alone may be late, as long as nobody is taken for dead."""
    link = Link()
    link.run(20, 1e6, with_readings=False)
    assert 0.5e6 < link.run(60, 1e6, with_readings=False) < 1.1e6


def test_limit_ends_when_the_link_has_become_faster() -> None:
    """A car that leaves a full channel must not crawl for ever."""
    link = Link()
    link.run(20, 0.2e6)
    slow = link.run(20, 0.2e6)
    link.run(60, 1e9)
    assert link.run(10, 1e9) > 10 * slow


def test_lanes_that_wait_have_their_turns() -> None:
    """One neighbour must not get all that there is room for."""
    room, now = BackgroundRoom(), SECOND
    assert room.next_turn_at() == NEVER
    for _ in range(50):
        room.take(A, PIECE_BYTES, now)
        now += 20 * MS
        for peer in (A, B):
            room.sampled(peer, LATE, True, now)
    sent = {A: 0, B: 0}
    for _ in range(4_000):
        for peer in (A, B):
            sent[peer] += room.take(peer, PIECE_BYTES, now)
        now = min(max(room.next_turn_at(), now + MS), now + SECOND)
        for peer in room.ready(now):
            sent[peer] += room.take(peer, PIECE_BYTES, now)
        for peer in (A, B):
            room.sampled(peer, LATE, True, now)
    assert sent[A] > 10
    assert sent[A] == pytest.approx(sent[B], rel=0.2)
    assert room.together.bytes_per_s >= 2_048


def test_lane_that_takes_nothing_holds_up_no_other() -> None:
    """A lane may be closed, or full, when its turn comes."""
    room, now = BackgroundRoom(), SECOND
    for _ in range(50):
        room.take(A, PIECE_BYTES, now)
        now += 20 * MS
        for peer in (A, B):
            room.sampled(peer, LATE, True, now)
    room.take(A, PIECE_BYTES, now)
    assert not room.take(A, PIECE_BYTES, now)
    assert not room.take(B, PIECE_BYTES, now)
    ready: list[NodeId] = []
    for _ in range(100):
        now = max(now + MS, min(room.next_turn_at(), now + SECOND))
        ready += room.ready(now)
    assert ready == [A, B]
    room.forget(A)
    assert room.next_turn_at() == NEVER


def test_neighbour_that_alone_is_late_is_given_less_and_others_are_not() -> None:
    """One neighbour at the edge of the reach cut the background of a whole road to two kilobytes a second."""
    room, now = BackgroundRoom(), SECOND
    sent = {A: 0, B: 0, C: 0}
    for _ in range(60 * 100):
        now += 10 * MS
        for peer in sent:
            sent[peer] += room.take(peer, PIECE_BYTES, now)
            room.sampled(peer, LATE if peer is C else GOOD, True, now)
        room.ready(now)
    assert sent[A] == sent[B] == 60 * 100
    assert 1 <= sent[C] < 200
    assert (room.together.limited, room.of_node[A].limited) == (False, False)
    assert room.of_node[C].bytes_per_s == 2_048


def test_neighbours_that_are_late_together_are_given_less_together() -> None:
    """They share a channel that is full: its part for the background must not grow with their number."""
    room, now = BackgroundRoom(), SECOND
    crowd = [NodeId(f"n{number}") for number in range(20)]
    for _ in range(60 * 100):
        now += 10 * MS
        for number, peer in enumerate(crowd):
            room.take(peer, PIECE_BYTES, now)
            room.sampled(peer, LATE if number < 6 else GOOD, True, now)
        room.ready(now)
    assert room.together.bytes_per_s == 2_048
    assert room.of_node[crowd[0]].limited
    assert not room.of_node[crowd[-1]].limited


def test_neighbour_that_comes_back_begins_without_a_limit() -> None:
    """What was learnt of its link may not hold any more, and nothing may be kept for all who ever passed."""
    room, now = BackgroundRoom(), SECOND
    for _ in range(100):
        now += 20 * MS
        room.take(A, PIECE_BYTES, now)
        room.sampled(A, LATE, True, now)
    cuts = room.cuts
    assert cuts > 0
    room.forget(A)
    assert not room.of_node
    assert room.take(A, PIECE_BYTES, now)
    assert room.cuts == cuts
