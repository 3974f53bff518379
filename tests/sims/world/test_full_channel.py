"""A channel from which more is asked than it gives: what comes is new, shared fairly, and nobody is taken for dead."""

import pytest

from benchmarks.jam import SHORT, missed, play
from protocols.base.limits import MS, SECOND
from sims.virtual.driver import SimDriver


@pytest.mark.parametrize("name", SHORT)
def test_vehicles_in_a_jam_get_what_the_channel_has_and_share_it(name: str) -> None:
    """The short form of ``python -m benchmarks.jam``.

    With sixteen vehicles the mesh stopped, and everything arrived after its time. In a crowd handshakes ran into
    time-outs and began again until nothing else was on the channel, and neighbours were given up. Where vehicles drive
    on, the others have to find out that there is room.
    """
    jam = SHORT[name]
    assert missed(jam, play(jam)) == []


def test_slow_neighbour_among_ten_good_ones_slows_nobody_but_itself() -> None:
    """A link of 100 kb/s, on which a third of what is published has room."""
    sim = SimDriver(1)
    names = [f"n{number}" for number in range(12)]
    for name in names:
        sim.add(name)
        sim.subscribe(name, "veh/*/x")
    sim.meet()
    sim.run_for(2 * SECOND)
    sim.shape("n0", "n11", 5 * MS, 100_000 // 8)
    for node in sim.numbered:
        node.received.clear()
    for number in range(200):
        sim.publish("n0", "veh/n0/x", bytes(1_000), lifespan_ms=1_000)
        sim.run_for(20 * MS)
        if number == 100:
            assert not sim.numbered[0].engine.lanes.pace.active
    for name in names[1:11]:
        received = sim.numbered[int(name[1:])].received
        assert len(received) >= 199, "each reading came"
    slow = sim.numbered[11].received
    assert 30 <= len(slow) <= 80
    newest = max(reading.sequence for _, reading in sim.numbered[1].received)
    assert newest - slow[-1][1].sequence < 45, "what comes there is from the last second"
