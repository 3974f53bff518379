"""A neighbour that begins a new life is heard, whatever its clock said in the life before."""

import pytest

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.sequences import first_sequence, first_version
from protocols.membership.lives import Lives
from protocols.readings.quality import Quality
from protocols.wire.codec import encode_frame
from protocols.wire.membership import Goodbye
from protocols.wire.readings import Readings
from tests.tools.gossip_fixture import entry, handed, seal
from tests.tools.lone_node_fixture import Alone
from tests.tools.strategies import NOW_UTC_NS, reading

WRONG_CLOCK = 2_180_000_000
"""An incarnation in 2039, at which sequences once began with more than 63 bits."""


class Hearing(Alone):
    """One engine that has a neighbour ``x`` and hears what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.engine.readings.subscribe("**", Quality(deadline_ns=limits.SECOND), self.now)
        self.engine.carry(self.now)

    def hears(self, pipe: int, sequence: int) -> bool:
        frame = encode_frame(Readings((reading("veh/x/a", "x", sequence),)))
        return bool(self.engine.receive(frame, pipe, self.now, NOW_UTC_NS))


@pytest.mark.parametrize(("before", "after"), [
    (WRONG_CLOCK << 32, WRONG_CLOCK + 1), (first_sequence(6) + 3, 6), (5 << 32, 1 << 31), (5 << 32, 4_323_000_000),
])  # fmt: skip
def test_neighbour_of_a_larger_incarnation_is_heard_whatever_was_heard_before(before: int, after: int) -> None:
    """Its former life was one of the older scheme, or published so much that it came into the next one."""
    hearing = Hearing()
    pipe = hearing.hello("x", 5)
    assert hearing.hears(pipe, before)
    pipe = hearing.hello("x", after)
    assert hearing.hears(pipe, first_sequence(after))
    assert not hearing.hears(pipe, first_sequence(after))


def test_neighbour_of_a_smaller_incarnation_is_heard_after_its_clock_was_wrong() -> None:
    """Its former life began in 2107 and is over, and its state was lost."""
    hearing = Hearing()
    assert hearing.hears(hearing.hello("x", 4_323_000_000), first_sequence(4_323_000_000))
    hearing.receive(hearing.pipes, Goodbye(4_323_000_000))
    assert hearing.hears(hearing.hello("x", 1_796_000_000), first_sequence(1_796_000_000))


def test_neighbour_that_comes_back_in_the_same_life_repeats_nothing() -> None:
    """What it had sent before a partition is old, also after it."""
    hearing = Hearing()
    assert hearing.hears(hearing.hello("x", 5), (5 << 32) + 3)
    hearing.receive(hearing.pipes, Goodbye(5))
    assert not hearing.hears(hearing.hello("x", 5), (5 << 32) + 3)


def test_life_whose_sequences_are_above_keeps_what_is_known() -> None:
    """A deadline of a stream must be missed also when the node restarted and does not send it any more."""
    lives, x = Lives(), NodeId("x")
    assert lives.begin(x, 5, Role.RSU) == first_sequence(5)  # type: ignore[arg-type]
    assert lives.begin(x, 6, Role.RSU) == first_sequence(6)  # type: ignore[arg-type]
    assert lives.begin(x, 6, Role.VEHICLE) is None  # type: ignore[arg-type]
    assert lives.begin(x, 4, Role.VEHICLE) == 0  # type: ignore[arg-type]
    hearing = Hearing()
    assert hearing.hears(hearing.hello("x", 5), (5 << 32) + 3)
    hearing.hello("x", 6)
    hearing.engine.readings.handle_timer(hearing.now + 2 * limits.SECOND)
    assert [event.key for event in hearing.engine.readings.events()] == ["veh/x/a"]  # type: ignore[union-attr]


def test_node_whose_entry_is_known_from_a_later_life_publishes_above_it() -> None:
    """Its clock was at 2107 once, and then it lost its state. Others would take what it signs for replays."""
    alone = Alone(seal=seal("me"))
    alone.lane("x")
    alone.engine.gossip.put("address", b"now", 3_600, alone.now)
    assert alone.engine.readings.next_sequence == first_sequence(1_000)
    later = 4_323_000_000
    alone.receive(alone.pipes, handed(entry("me", first_version(later) + 5)))
    alone.timers(2 * limits.SECOND)
    (own,) = alone.engine.gossip.entries(alone.now)
    assert (own.author, own.kind, own.version) == ("me", "address", first_version(later + 1))
    assert alone.engine.readings.next_sequence == first_sequence(later + 1)
