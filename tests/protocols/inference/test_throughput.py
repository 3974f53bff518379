"""How fast a link is: what the estimate promises, and that the planner keeps away from a slow one."""

import asyncio
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.ids import Lane, NodeId, Role
from protocols.base.limits import MS, SECOND
from protocols.inference.events import Answered
from protocols.inference.placement import LocalModel
from protocols.links.throughput import FASTEST_BYTES_PER_S, MIN_SAMPLE_BYTES, SLOWEST_BYTES_PER_S, Throughput
from protocols.wire.tensors import NamedTensor, Tensor
from sims.virtual.driver import SimDriver
from tests.tools.eventually import until
from tests.tools.lone_node_fixture import Alone
from tests.tools.mesh_fixture import Open, given_house, given_opened, wanted
from tests.tools.strategies import MODEST

__all__ = ["given_house", "given_opened"]
DIGEST = "ab" * 32
SAMPLES = st.lists(st.tuples(st.integers(0, 2**40), st.integers(-(2**60), 2**80)), max_size=30)


@MODEST
@given(SAMPLES)
def test_throughput_of_any_samples_lies_within_its_bounds(samples: list[tuple[int, int]]) -> None:
    """Times come from clocks and claims; none may make the planner divide by nothing or promise the impossible."""
    throughput = Throughput()
    counted = [throughput.measured(size_bytes, took_ns) for size_bytes, took_ns in samples]
    assert counted == [size_bytes >= MIN_SAMPLE_BYTES for size_bytes, _ in samples]
    if any(counted):
        assert SLOWEST_BYTES_PER_S * 0.999 <= throughput.bytes_per_s <= FASTEST_BYTES_PER_S * 1.001
    else:
        assert throughput.bytes_per_s == 0.0


@MODEST
@given(st.lists(st.tuples(st.integers(MIN_SAMPLE_BYTES, 2**24), st.integers(10**5, 10**10)), min_size=1, max_size=30))
def test_throughput_lies_between_its_slowest_and_its_fastest_sample(samples: list[tuple[int, int]]) -> None:
    """An average that leaves its samples behind would predict what was never seen."""
    throughput = Throughput()
    for size_bytes, took_ns in samples:
        throughput.measured(size_bytes, took_ns)
    rates = [min(max(size_bytes / took_ns * 1e9, 1e3), 10e9) for size_bytes, took_ns in samples]
    assert min(rates) * 0.999 <= throughput.bytes_per_s <= max(rates) * 1.001


def test_throughput_follows_a_link_that_changes() -> None:
    """A vehicle drives out of the good radio: within ten answers the planner must know."""
    throughput = Throughput()
    throughput.measured(1_000_000, SECOND // 100)
    assert abs(throughput.bytes_per_s - 100e6) < 1e3
    for _ in range(10):
        throughput.measured(1_000_000, SECOND)
    assert 0.9e6 < throughput.bytes_per_s < 1.1e6


def test_lane_that_drains_slowly_is_shown_of_its_neighbour() -> None:
    """What the driver measures on a lane belongs to whoever it reaches, and to nobody when it is gone."""
    alone = Alone()
    dial = alone.lane("rsu-1")
    alone.engine.lane_drained(dial, 1_000_000, SECOND)
    alone.engine.lane_drained(dial + 100, 1_000_000, 1)
    (view,) = alone.engine.peers(alone.now)
    assert (view.node, view.throughput_bytes_per_s, view.lanes) == ("rsu-1", 1e6, (Lane.REALTIME,))


def asked(sim: SimDriver, count: int, size_bytes: int = 200_000) -> list[Answered]:
    """One request after the other, each answered."""
    tensor = NamedTensor("x", Tensor("u1", (size_bytes,), memoryview(bytes(size_bytes))))
    me = sim.nodes[NodeId("me")]
    for _ in range(count):
        sim.act(me, lambda engine, now: engine.inference.ask("m", (tensor,), (), 30 * SECOND, True, now))
        sim.run_for(3 * SECOND)
    return [event for _, event in me.events if type(event) is Answered]


def served_by(sim: SimDriver, *names: str) -> None:
    """Offer one model there, and none here."""
    for name in names:
        node = sim.nodes[NodeId(name)]
        model = LocalModel("m", DIGEST, node.compute_ns, 0, True)
        sim.act(node, lambda engine, now, model=model: engine.inference.set_models((model,), now))


def test_planner_keeps_away_from_the_neighbour_behind_a_slow_link() -> None:
    """Same model, same computer, ten megabytes a second against half of one: soon nobody waits for it."""
    sim = SimDriver(7)
    for name in ("me", "a-slow", "b-fast"):
        sim.add(name, Role.RSU if name != "me" else Role.VEHICLE)
    for name, bytes_per_s in (("a-slow", 500_000), ("b-fast", 10_000_000)):
        sim.shape("me", name, MS, bytes_per_s)
        sim.shape(name, "me", MS, bytes_per_s)
    sim.meet()
    sim.run_for(2 * SECOND)
    served_by(sim, "a-slow", "b-fast")
    sim.run_for(SECOND)
    answers = asked(sim, 12)
    assert len(answers) == 12
    first_asked = [answer.attempts[0].node if answer.attempts else "" for answer in answers]
    assert all(answer.winner is not None and answer.winner.node == "b-fast" for answer in answers), first_asked
    settled = answers[6:]
    assert all(len(answer.attempts) == 1 and answer.took_ns < 200 * MS for answer in settled)
    view = next(peer for peer in sim.nodes[NodeId("me")].engine.peers(sim.now) if peer.node == "b-fast")
    assert 5e6 < view.throughput_bytes_per_s < 11e6


def test_planner_keeps_to_its_own_node_when_the_only_neighbour_is_behind_a_slow_link() -> None:
    """A neighbour never makes the caller slower than doing it alone."""
    sim = SimDriver(8)
    sim.add("me")
    sim.add("rsu-1", Role.RSU).compute_ns = 10 * MS
    sim.nodes[NodeId("me")].compute_ns = 100 * MS
    sim.shape("me", "rsu-1", MS, 500_000)
    sim.shape("rsu-1", "me", MS, 500_000)
    sim.meet()
    sim.run_for(2 * SECOND)
    served_by(sim, "me", "rsu-1")
    sim.run_for(SECOND)
    answers = asked(sim, 10)
    assert [answer.winner.node for answer in answers if answer.winner] == ["me"] * 10
    assert all(answer.took_ns == 100 * MS and len(answer.attempts) == 1 for answer in answers[6:])


async def test_node_whose_neighbour_takes_tensors_slowly_knows_how_slowly(opened: Open) -> None:
    """Before it asks that neighbour to compute on a large input, the lane has told what that would take."""
    here = await opened("paced-1")
    there = await opened("paced-2", here.port)
    await there.wait_for_peers(1)
    here.subscribe("veh/paced-2/image", callback=lambda _: time.sleep(0.05), history=False)  # 20 MB a second
    await wanted(there, "veh/paced-2/image")
    image = np.ones(1_000_000, np.uint8)
    assert there.peers()[0].throughput_bytes_per_s == 0.0

    def measured() -> float:
        for _ in range(10):  # more than the neighbour takes until the next look
            there.publish("veh/paced-2/image", image)
        return there.peers()[0].throughput_bytes_per_s

    await until(measured, "the lane is full and has drained")
    for _ in range(100):
        measured()
        await asyncio.sleep(0.02)
    # Of the order of what it takes: buffers below come in lumps, and a machine that stands still counts at first.
    await until(lambda: 2e6 < measured() < 200e6, lambda: f"{measured():,.0f} bytes each second")
