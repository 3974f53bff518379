"""The longest that one frame of readings or interest, and one timer, hold a node whose tables are full."""

import gc
import time
from collections.abc import Callable
from random import Random

import msgpack
import pytest

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.readings.quality import Quality
from protocols.wire.readings import Interest, Provenance, Reading, Want
from tests.tools.lone_node_fixture import Alone
from tests.tools.quiet import bound_ms
from tests.tools.readings_fixture import SECOND, A, Bench
from tests.tools.strategies import HERE, HOW, NOW_UTC_NS, WHEN

BOUND_S = bound_ms(20) / 1e3
"""In processor time of this thread, which other programs do not take."""
NEIGHBOURS = tuple(NodeId(f"n{number}") for number in range(limits.MAX_NEIGHBOURS - 1))


def expression(random: Random, number: int) -> str:
    """Any shape of expression, with a part that no other has."""
    chunks = [random.choice(["a", "*", "veh"]) for _ in range(random.randint(1, 12))]
    for _ in range(random.randint(0, limits.MAX_DOUBLE_WILDCARDS)):
        chunks.insert(random.randint(0, len(chunks)), "**")
    return "/".join([*chunks, f"{random.choice('q*')}{number}".replace(f"*{number}", "*")])


def wants(random: Random, count: int) -> tuple[Want, ...]:
    """Wants of one neighbour, of a random shape and reach."""
    hops = random.choice([0, 1, 8])
    return tuple(Want(expression(random, n), n, random.random() < 0.2, True, hops) for n in range(count))


def full(random: Random) -> Bench:
    """A node with as many neighbours, wants, subscriptions and streams as it can have."""
    bench = Bench(A, *NEIGHBOURS)
    for number in range(random.choice([10, limits.MAX_SUBSCRIPTIONS])):
        quality = Quality(deadline_ns=random.choice([0, SECOND]), hops=random.choice([0, 3]))
        bench.machine.subscribe(random.choice(["**", expression(random, number)]), quality, 0)
    for node in NEIGHBOURS:
        bench.wants(node, *wants(random, 40))
    for number in range(limits.MAX_STREAMS // 8):
        bench.now += 20 * limits.MS
        bench.accept(A, Reading(f"veh/a/{number}", "a", 1, 1, HERE, WHEN, HOW, hops=8))
        bench.publish(f"veh/me/{number}", number)
        if number % 64 == 0:
            settle(bench)
    return bench


def settle(bench: Bench) -> None:
    """What a driver does between frames."""
    bench.machine.events()
    bench.machine.interest_changed = False
    for peer in bench.peers.values():
        peer.realtime.clear("taken")
        peer.bulk.clear("taken")


def held_for_s(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    gc.disable()
    before = time.thread_time()
    call()
    took_s = time.thread_time() - before
    gc.enable()
    return took_s


def frame_of(random: Random, number: int, source: NodeId) -> tuple[Reading, ...]:
    """64 readings: new or known keys, of the neighbour or of others, short or long, with any context."""
    origin = random.choice([source, "far", "n1"])
    tail = "/".join(["a" * random.choice([1, 10])] * random.choice([1, 13]))
    how = random.choice([HOW, Provenance("😀" * 200, "u", 1.0, "", ("x" * 200,) * 16)])
    value = random.choice([1, "x" * 400, [1] * 100, {"k": [{}] * 50}])
    keys = [
        f"veh/{origin}/{tail}/{number}-{one}" if random.random() < 0.8 else f"veh/{origin}/{one}" for one in range(64)
    ]
    return tuple(
        Reading(key, origin, number + 2, value, HERE, WHEN, how, one % 8, 0, 8) for one, key in enumerate(keys)
    )


@pytest.mark.parametrize("seed", range(3))
def test_worst_frame_found_holds_the_machine_for_less_than_its_bound(seed: int) -> None:
    """A frame that holds the engine's lock delays every other neighbour; 25 s made an honest one seem dead."""
    costs = costs_of(seed)
    if max(costs)[0] >= BOUND_S:  # the same again: the machine may have stood still in one of them
        costs = [min(pair) for pair in zip(costs, costs_of(seed), strict=True)]
    worst_s, worst = max(costs)
    print(f"\nseed {seed}: the longest was {worst_s * 1e3:.1f} ms, for {worst}")
    assert worst_s < BOUND_S, worst


def costs_of(seed: int) -> list[tuple[float, str]]:
    """Processor time of each call, and what it was."""
    random = Random(seed)
    bench = full(random)
    costs: list[tuple[float, str]] = []
    for number in range(60):
        bench.now += SECOND
        source = random.choice([A, *NEIGHBOURS[:3]])
        if random.random() < 0.5:
            interest = Interest(1_000 + number, wants(random, limits.MAX_SUBSCRIPTIONS))
            what = "Interest"
            took_s = held_for_s(lambda i=interest, s=source: bench.machine.receive_interest(i, s, bench.now, bench.utc))
        else:
            frame = frame_of(random, number, source)
            what = "Readings"
            took_s = held_for_s(
                lambda f=frame, s=source: bench.machine.accept(f, s, Role.VEHICLE, bench.now, bench.utc, 0)
            )
        costs.append((took_s, what))
        told = bench.machine.untold(list(bench.peers), bench.now)
        costs.append((held_for_s(lambda t=told: [bench.machine.interest_for(node) for node in t]), "telling"))
        for _ in range(3):
            bench.now = max(bench.now, min(bench.machine.next_timer_at(), bench.now + SECOND))
            costs.append((held_for_s(lambda: bench.machine.handle_timer(bench.now)), "timer"))
        settle(bench)
    return costs


def _array(element: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4) + element * count


_MOST = limits.MAX_ELEMENTS - 60
VALUES = {
    "maps in a frame that is not counted": lambda: _array(b"\x80", limits.LARGE_FRAME_BYTES - 200),
    "maps": lambda: _array(b"\x80", _MOST),
    "maps beside bytes": lambda: b"\x92" + _array(b"\x80", _MOST) + b"\xc5\xff\xff" + bytes(65_535),
    "lists in lists": lambda: _array(b"\x91\x80", _MOST // 2),
    "floats": lambda: _array(b"\xcb" + bytes(8), _MOST),
    "texts": lambda: _array(b"\xa3\xe2\x82\xac", _MOST),
    "a text": lambda: b"\xdb" + (15_000_000).to_bytes(4) + b"a" * 15_000_000,
    "an exotic text": lambda: b"\xdb" + (15_000_000).to_bytes(4) + b"\xf0\x9f\x98\x80" * 3_750_000,
    "bytes": lambda: b"\xc6" + (15_000_000).to_bytes(4) + bytes(15_000_000),
}
"""Encoded values, as large as a frame of readings lets them be."""


@pytest.mark.parametrize("name", VALUES)
def test_worst_value_holds_the_engine_for_less_than_its_bound(name: str) -> None:
    """Decoding, checking and weighing it all happen under the lock. Empty maps once took 47 ms."""
    alone = Alone()
    pipe = alone.hello("veh-1")
    alone.engine.readings.subscribe("**", Quality(hops=1), alone.now)
    costs_s = []
    for sequence in range(1, 4):
        alone.now += 10 * SECOND
        before, behind = [msgpack.packb(field) for field in ("veh/veh-1/x", "veh-1", sequence)], (
            [1.0, 2.0, 3.0, None, None], [NOW_UTC_NS, 0], ["sensor", "1", 1.0, "", []], 3, 0, 0,
        )  # fmt: skip
        frame = b"\x92\x06\x91\x9a" + b"".join([*before, VALUES[name](), *map(msgpack.packb, behind)])
        accepted = alone.engine.statistics()["readings_accepted"]
        costs_s.append(held_for_s(lambda f=frame: alone.engine.receive(f, pipe, alone.now, NOW_UTC_NS)))  # type: ignore[misc]
        assert alone.engine.statistics()["readings_accepted"] == accepted + 1
    print(f"\n{name}: {min(costs_s) * 1e3:.1f} ms")
    assert min(costs_s) < BOUND_S
