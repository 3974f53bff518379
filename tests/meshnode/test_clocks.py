"""Whole nodes whose clock was wrong, or is."""

import signal

import pytest

import meshnode
from protocols.base.sequences import MAX_SEQUENCE, first_sequence
from protocols.membership.neighbour import State
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Member, Open, given_house, given_opened, wanted  # noqa: F401 -- fixtures

KEY = "veh/veh-1/speed"


async def test_node_that_booted_with_clocks_of_other_years_is_heard_in_each_life(opened: Open, house: House) -> None:
    """What is on its disk is of 2039, of 2107, of 2300, of today, and unreadable; it never needs a person."""
    here = await opened("rsu-1", role="rsu")
    subscription = here.subscribe("veh/**", hops=1)
    config = house.config("veh-1", here.port)
    config.node.state_dir.mkdir(exist_ok=True)
    for number, kept in enumerate(["2180000000", "4323000000", "10413792000", "1790000000", "?"]):
        (config.node.state_dir / "incarnation").write_text(kept)
        async with meshnode.open(config) as there:
            await wanted(there, KEY)
            assert there.publish(KEY, number, unit="m/s", sensor="wheel", hops=1).queued == 1
            reading = await subscription.next(20)
            assert (reading.value, reading.origin) == (number, "veh-1")
            assert first_sequence(there.incarnation) <= reading.sequence <= MAX_SEQUENCE
        await until(lambda: here.peers()[0].state is State.LEFT, "the goodbye is heard")


@pytest.mark.processes
async def test_node_with_an_older_life_alive_elsewhere_is_back_once_that_is_dead(opened: Open, house: House) -> None:
    """The larger incarnation is right while it lives; here its process was killed without a goodbye."""
    here = await opened("rsu-1", role="rsu")
    path = house.file("veh-2", f"[discovery]\nmdns = false\nseeds = ['127.0.0.1:{here.port}']\n")
    incarnation = path.parent / "state" / "incarnation"
    incarnation.parent.mkdir()
    incarnation.write_text("4323000000")
    with Member(path) as former:
        await here.wait_for_peers(1)
        former.send(signal.SIGKILL)
    incarnation.unlink()
    async with meshnode.open(path) as there:
        assert here.peers()[0].incarnation == 4_323_000_001 > there.incarnation
        await until(lambda: here.peers()[0].incarnation == there.incarnation, "it is met again", 60)
        assert here.peers()[0].state is State.ALIVE
