"""Inboxes of simulated nodes: frames come out in order, at a cost that does not depend on how often somebody looks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.readings.quality import Quality
from sims.virtual.driver import SimDriver
from sims.virtual.frames import SimFrame
from sims.virtual.inbox import FEW, all_of, clear, drop, put_back, taken
from sims.virtual.node import Coming, Pipe, SimNode

MS, SECOND = limits.MS, limits.SECOND


def receiver(pipes: int = 1) -> tuple[SimNode, list[Pipe]]:
    """A node, and pipes into its inbox."""
    sim = SimDriver(1)
    node, sender = sim.prepare("n0", Role.VEHICLE), sim.prepare("n1", Role.VEHICLE)
    return node, [Pipe(number, sender, number, node) for number in range(1, pipes + 1)]


def send(pipe: Pipe, tick_ns: int, number: int) -> None:
    """Put a frame on its way."""
    pipe.under_way += 1
    pipe.inbox.append(Coming(tick_ns, pipe, SimFrame(number.to_bytes(4), None)))


def all_taken(node: SimNode, until_ns: int) -> list[Coming]:
    """Everything that has come in."""
    found: list[Coming] = []
    while due := taken(node, until_ns):
        found += due
    return found


@pytest.mark.parametrize("scale", [1, 40])
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 3), st.integers(0, 3)),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_frames_come_out_by_tick_and_then_as_they_were_sent(
    scale: int, looks: list[tuple[list[int], int, int]]
) -> None:
    """Whether few wait or many, and whether their receiver had time for all that it took out: a history must not depend
    on how frames are kept."""
    node, (pipe,) = receiver()
    waiting: list[tuple[int, int]] = []
    now = number = 0
    for delays, passed, left in looks:
        for delay in delays * scale:
            number += 1
            send(pipe, now + 1 + delay, number)
            waiting.append((now + 1 + delay, number))
        now += passed
        waiting.sort()
        due = taken(node, now)
        while due:
            found = [(coming.tick_ns, int.from_bytes(coming.frame.data or b"")) for coming in due]
            assert found == waiting[: len(found)]
            done = max(len(due) - left, 0)
            if done < len(due):
                put_back(node, due[done:])
            del waiting[:done]
            if done < len(due):
                break
            due = taken(node, now)
        else:
            assert not [tick for tick, _ in waiting if tick <= now]
        assert len(all_of(node)) == len(waiting)


class _Watched(Coming):
    """A frame that counts how often anybody looks at its tick."""

    __slots__ = ("_at_ns",)
    looks = 0

    @property
    def tick_ns(self) -> int:  # type: ignore[override]
        type(self).looks += 1
        return self._at_ns

    @tick_ns.setter
    def tick_ns(self, at_ns: int) -> None:
        self._at_ns = at_ns


@pytest.mark.parametrize("waiting", [4 * FEW, 40 * FEW])
def test_looking_at_a_crowd_again_and_again_costs_no_more_than_looking_once(waiting: int) -> None:
    """Eighty vehicles on one channel had thousands of frames each on their way, all of which were sorted at each look:
    a minute of theirs took longer than ten of ours."""
    node, (pipe,) = receiver()
    node.inbox += [_Watched(1_000 + number, pipe, SimFrame(None, None)) for number in range(waiting)]
    _Watched.looks = 0
    for _ in range(100):
        assert taken(node, 999) == []
    assert _Watched.looks <= 2 * waiting
    for number in range(waiting):
        (coming,) = taken(node, 1_000 + number)
        put_back(node, [coming])  # its processor is busy
        assert taken(node, 1_000 + number) == [coming]
    assert _Watched.looks <= 4 * waiting
    assert not all_of(node)


@pytest.mark.parametrize("frames", [FEW // 2, 3 * FEW])
def test_pipe_that_is_gone_takes_its_frames_and_no_others(frames: int) -> None:
    """A neighbour that died must not take another's frames along, nor stay in the crowd."""
    node, (gone, stays) = receiver(2)
    for number in range(frames):
        send(gone, 100 - number % 7, number)
        send(stays, 100 - number % 7, number)
    assert taken(node, 0) == []  # many are a crowd by now
    send(gone, 200, frames)
    assert len(drop(gone)) == frames + 1
    assert drop(gone) == []
    left = all_taken(node, 1_000)
    assert [coming.pipe for coming in left] == [stays] * frames
    assert [coming.tick_ns for coming in left] == sorted(coming.tick_ns for coming in left)


def test_killed_node_has_no_frames() -> None:
    """Its next life begins with an empty kernel."""
    node, (pipe,) = receiver()
    for number in range(2 * FEW):
        send(pipe, 100, number)
    assert taken(node, 0) == []
    send(pipe, 100, 0)
    clear(node)
    assert all_of(node) == []


def test_readings_in_a_crowd_are_counted_when_their_receiver_dies() -> None:
    """No engine can count them, and every reading is accounted for."""
    sim = SimDriver(1)
    for name in ("n0", "n1"):
        sim.add(name)
    sim.subscribe("n0", "**", Quality(own=False))
    sim.meet()
    sim.run_for(SECOND)
    sim.shape("n1", "n0", 100 * MS)
    for number in range(60):
        sim.publish("n1", "veh/n1/x", number)
    sim.run_for(10 * MS)
    sim.kill("n0")
    sim.run_for(SECOND)
    assert sim.pipes.readings_lost == 60


def test_pipe_that_is_full_again_and_again_delivers_everything_in_order_and_in_time() -> None:
    """Its sender goes on with each frame that is taken in, so none of them may wait until its receiver looks."""
    sim = SimDriver(1)
    for name in ("n0", "n1"):
        sim.add(name).attentive = False
    sim.subscribe("n0", "**", Quality(own=False))
    sim.meet()
    sim.run_for(SECOND)
    sim.nodes[NodeId("n0")].attentive = False
    sim.shape("n1", "n0", MS, 20_000)
    for number in range(400):
        sim.publish("n1", f"veh/n1/{number}", bytes(100), priority=7)  # others are held back sooner
        sim.run_for(3 * MS if number % 100 < 60 else 40 * MS)
    sim.run_for(10 * SECOND)
    received = sim.nodes[NodeId("n0")].received
    assert [reading.key for _, reading in received] == [f"veh/n1/{number}" for number in range(400)]
    gaps_ms = [(later - sooner) // MS for (sooner, _), (later, _) in itertools.pairwise(received)]
    assert max(gaps_ms) <= 40
    assert sim.pipes.late == 0
