"""A chain of four nodes whose second one is an insider: it alters, invents and replays what it should pass on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

import meshnode
from meshnode.gossip.running import RunningGossip
from protocols.base.errors import UnknownFrame
from protocols.base.ids import NodeId
from protocols.base.sequences import first_sequence
from protocols.engine import Engine
from protocols.machine import Event
from protocols.readings.events import ReadingRefused
from protocols.readings.quality import Quality
from protocols.wire.codec import encode_frame
from protocols.wire.frame import Frame, number_of
from protocols.wire.parcels import encode_alone, reading_statement
from protocols.wire.readings import EventTime, Reading, Readings, SignedReadings
from sims.virtual.driver import EPOCH_UTC_NS, SimDriver
from tests.tools.eventually import LIMIT_S, until
from tests.tools.mesh_fixture import HERE, Open, given_house, given_opened, wanted
from tests.tools.readings_fixture import SECOND
from tests.tools.signed_fixture import signed_world
from tests.tools.strategies import HOW

__all__ = ["given_house", "given_opened"]
KEY = "veh/veh-1/hazard"


@contextmanager
def kept_back(engine: Engine) -> Iterator[list[SignedReadings]]:
    """Let a node keep back the signed readings that it gets, instead of delivering and passing them on."""
    taken: list[SignedReadings] = []
    decode = engine._decode

    def keep(data: bytes | bytearray) -> Frame:
        frame = decode(data)
        if type(frame) is SignedReadings:
            taken.append(frame)
            raise UnknownFrame(number_of(SignedReadings))
        return frame

    engine._decode = keep
    try:
        yield taken
    finally:
        engine._decode = decode


def altered(frame: SignedReadings, old: bytes, new: bytes) -> SignedReadings:
    """The frame with other bytes in its parcel."""
    assert frame.parcel.tobytes().count(old) == 1
    return replace(frame, parcel=memoryview(frame.parcel.tobytes().replace(old, new)))


def invented(sequence: int, utc_ns: int, sign: Callable[[bytes], tuple[bytes, bytes]]) -> SignedReadings:
    """A reading of veh-1 that somebody else has made and signed."""
    made_up = Reading(KEY, "veh-1", sequence, "made up", HERE, EventTime(utc_ns, 0), HOW, 3, 0, 2)
    parcel = encode_alone(made_up)
    certificate, signature = sign(reading_statement(parcel))
    return SignedReadings(1, certificate, signature, memoryview(parcel))


def drops_of(node: meshnode.Node) -> dict[tuple[str, str], int]:
    """What a node dropped, by neighbour and reason."""
    counts: dict[tuple[str, str], int] = {}
    for (peer, _, reason), count in node.drops():
        counts[peer, reason] = counts.get((peer, reason), 0) + count
    return counts


# --- real nodes ----------------------------------------------------------------------------------------------------
async def test_forwarder_with_a_real_certificate_that_alters_invents_or_replays_is_found_out_and_named(
    opened: Open,
) -> None:
    """Every frame of the insider comes through a link that TLS has proven, and three hops still mean what the author
    said."""
    author = await opened("veh-1")
    insider = await opened("rsu-1", author.port, role="rsu")
    victim = await opened("rsu-2", insider.port, role="rsu")
    last = await opened("veh-2", victim.port)
    told: list[Event] = []
    for node in (victim, last):
        node.on_event(told.append)
    subscription = last.subscribe(KEY, hops=2)
    await wanted(author, KEY)
    for node in (insider, victim, last):
        await until(lambda node=node: "veh-1" in {one.author for one in node.entries()}, "its certificate has spread")  # type: ignore[misc]

    async def send(frame: Frame, reason: str) -> None:
        before = drops_of(victim).get(("rsu-1", reason), 0)
        insider.driver.act(lambda engine, now: engine._put(NodeId("rsu-2"), frame, now))
        await until(lambda: drops_of(victim).get(("rsu-1", reason), 0) == before + 1, f"it is counted as {reason}")

    author.publish(KEY, "ice", hops=3)
    assert (await subscription.next(LIMIT_S)).value == "ice"

    with kept_back(insider.driver.engine) as taken:
        author.publish(KEY, "fog", hops=3)
        await until(lambda: taken, "the insider has it")
    (genuine,) = taken
    await send(altered(genuine, b"fog", b"sun"), "forged")
    sequence = first_sequence(author.incarnation) + 1_000
    own = insider.part(RunningGossip)._notary.sign_reading
    utc_ns = time.time_ns()
    await send(invented(sequence, utc_ns, lambda statement: (genuine.certificate, own(statement)[1])), "forged")
    await send(invented(sequence, utc_ns, own), "author_unknown")
    await send(invented(sequence, 1, own), "expired")
    made_up = Reading(KEY, "veh-1", sequence, "made up", HERE, EventTime(utc_ns, 0), HOW, 3, 0, 2)
    await send(Readings((made_up,)), "unsigned")
    await send(replace(genuine, hops=4), "malformed")

    insider.driver.act(lambda engine, now: engine._put(NodeId("rsu-2"), replace(genuine, hops=2), now))
    assert (await subscription.next(LIMIT_S)).value == "fog", "what it kept back is still good"
    await send(replace(genuine, hops=2), "stale")

    author.publish(KEY, "clear", hops=3)
    assert (await subscription.next(LIMIT_S)).value == "clear", "nothing that it sent has silenced the author"
    await until(lambda: any(type(event) is ReadingRefused for event in told), "it is told of the forger")
    refused = [event for event in told if type(event) is ReadingRefused]
    assert [(event.source, event.because) for event in refused] == [("rsu-1", "forged")]
    assert drops_of(last) == {}, "the honest forwarder behind it is not blamed"
    assert subscription.dropped == 0


# --- simulated nodes -----------------------------------------------------------------------------------------------
def chain() -> SimDriver:
    """``veh-1`` – ``rsu-1`` – ``rsu-2`` – ``veh-2``, where the last wants what the first says."""
    sim, authors = signed_world(7)
    names = ["veh-1", "rsu-1", "rsu-2", "veh-2"]
    for name in names:
        authors.say_address(sim.add(name))
    for at in range(3):
        sim.meet(*names[at : at + 2])
    sim.run_for(SECOND)
    sim.subscribe("veh-2", KEY, Quality(hops=2))
    sim.run_for(SECOND)
    return sim


def values(sim: SimDriver) -> list[object]:
    """What has reached the last node."""
    return [reading.value for _, reading in sim.nodes[NodeId("veh-2")].received]


def sim_drops(sim: SimDriver, name: str) -> dict[tuple[str, str], int]:
    """What a simulated node dropped, by neighbour and reason."""
    counts: dict[tuple[str, str], int] = {}
    for (peer, _, reason), count in sim.nodes[NodeId(name)].engine.drops.items():
        counts[peer, reason] = counts.get((peer, reason), 0) + count
    return counts


def kept_back_in(sim: SimDriver, value: object, **more: Any) -> SignedReadings:
    """A reading of ``veh-1`` that the insider keeps back."""
    with kept_back(sim.nodes[NodeId("rsu-1")].engine) as taken:
        sim.publish("veh-1", KEY, value, hops=3, **more)
        sim.run_for(SECOND)
    return taken[0]


def slip_in(sim: SimDriver, frame: Frame) -> None:
    """The insider sends a frame to its neighbours."""
    sim.connections.slip_in(sim.nodes[NodeId("rsu-1")], encode_frame(frame))
    sim.run_for(SECOND)


def test_simulated_forwarder_that_alters_invents_or_replays_is_found_out_and_named() -> None:
    """The same engines, so that scenarios can have such an insider."""
    sim = chain()
    sim.publish("veh-1", KEY, "ice", hops=3)
    sim.run_for(SECOND)
    genuine = kept_back_in(sim, "fog")
    slip_in(sim, altered(genuine, b"fog", b"sun"))
    slip_in(sim, replace(genuine, signature=bytes(72)))
    made_up = Reading(KEY, "veh-1", 1 << 60, "made up", HERE, EventTime(EPOCH_UTC_NS, 0), HOW, 3, 0, 2)
    slip_in(sim, Readings((made_up,)))
    slip_in(sim, replace(genuine, hops=2))
    slip_in(sim, replace(genuine, hops=2))
    counted = {("rsu-1", "forged"): 2, ("rsu-1", "unsigned"): 1, ("rsu-1", "stale"): 1}
    assert sim_drops(sim, "rsu-2") == counted
    refused = [event for _, event in sim.nodes[NodeId("rsu-2")].events if type(event) is ReadingRefused]
    assert [(event.source, event.origin, event.because) for event in refused] == [("rsu-1", "veh-1", "forged")]
    assert values(sim) == ["ice", "fog"]
    assert sim_drops(sim, "veh-2") == {}


@pytest.mark.parametrize("restarted", ["author", "forwarder"])
def test_replay_after_a_restart_is_bounded_by_the_life_of_the_author_and_the_lifespan(restarted: str) -> None:
    """A node that has just started remembers no sequence."""
    sim = chain()
    kept = kept_back_in(sim, "old", lifespan_ms=10_000)
    if restarted == "author":
        sim.kill("veh-1")
        sim.restart("veh-1")
        sim.act(
            sim.nodes[NodeId("veh-1")], lambda engine, now: engine.gossip.put("address", b"here again", 86_400, now)
        )
        sim.meet("veh-1", "rsu-1")
        sim.run_for(3 * SECOND)
        expected = "stale"
    else:
        sim.run_for(20 * SECOND)
        expected = "expired"
    sim.kill("rsu-2")
    sim.restart("rsu-2")
    for name in ("rsu-1", "veh-2"):
        sim.meet("rsu-2", name)
    sim.run_for(5 * SECOND)
    slip_in(sim, replace(kept, hops=2))
    assert sim_drops(sim, "rsu-2") == {("rsu-1", expected): 1}
    assert values(sim) == []
