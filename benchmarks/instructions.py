"""``python -m benchmarks.instructions [--only NAME] [--json]``: how many instructions the hot paths take.

Valgrind's callgrind counts the instructions of whole processes, which other programs do not disturb. Each figure is the
difference between runs of *n* and of 2 *n* operations, divided by *n*, so what a process needs to start cancels out.
Both runs prepare the same frames. The garbage collector is off, because a collection would fall into one run and not
the other.

An operation is what a driver does:

- ``publish_1``, ``publish_8``: publish one number to one or eight neighbours that want it, and take a frame for each;
- ``receive_readings``: receive a frame of one reading that a local subscription wants;
- ``receive_heartbeat``: receive a heartbeat that asks for nothing;
- ``timer_11``: a timer with eleven neighbours, and take the frames that it decides on.

``PYTHONPATH=build/compiled python -P -m benchmarks.instructions`` counts the instructions of compiled modules.
"""

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from random import Random

import protocols.engine
from protocols.base.ids import Incarnation, MeshName, NodeId, PeerIdentity, Role
from protocols.base.limits import MS, SECOND
from protocols.engine import Engine
from protocols.gossip.entries import Seal
from protocols.membership.events import Dial
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from protocols.wire.codec import encode_frame
from protocols.wire.membership import Heartbeat, Hello
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Reading, Readings, Want

UTC_NS = 1_700_000_000 * SECOND
HERE = Position(48.77, 11.42, 2.0)
HOW = Provenance("gnss", "m/s")
SEAL = Seal(lambda statement: (b"", b"signature"), lambda entry: True, lambda data: sha256(data).digest())

Operation = Callable[[int], None]
"""A function that does one operation, given its number from 0."""


class Bench:
    """An engine with neighbours ``n0``, ``n1``, … at both ends of a link each, which want ``wanted``."""

    def __init__(self, neighbours: int, wanted: str) -> None:
        self.now = SECOND
        mesh = MeshName("bench")
        self.engine = Engine(
            NodeSettings(mesh, NodeId("me"), Role.VEHICLE, Incarnation(5), 7000, seal=SEAL), Random(1)
        )  # fmt: skip
        for number in range(neighbours):
            node = NodeId(f"n{number}")
            identity, host = PeerIdentity(mesh, Role.VEHICLE, node), f"192.0.2.{number}"
            self.engine.membership.hint(node, node, ((host, 7000),), self.now)
            self.engine.handle_timer(self.now)
            (dial,) = [effect.dial for effect in self.engine.outgoing() if type(effect) is Dial]
            self.engine.lane_opened(dial, identity, self.now)
            self.engine.membership.inbound_opened(number, identity, host, self.now)
            for frame in (Hello(1, 1, node, 5, 7000, "realtime"), Interest(1, (Want(wanted),) if wanted else ())):
                self.engine.receive(encode_frame(frame), number, self.now, UTC_NS)
        self.settle()
        assert len(self.engine.membership.reachable(0)) == neighbours

    def settle(self) -> None:
        """What a driver does after a timer."""
        engine = self.engine
        lanes, effects, events = engine.lanes.taken(), engine.outgoing(), engine.events()
        for lane in lanes:
            while engine.next_frame(lane.dial, self.now) is not None:
                pass
        del effects, events


def publishing(neighbours: int) -> Operation:
    """Publish one number to ``neighbours`` neighbours."""
    bench = Bench(neighbours, "veh/me/**")
    engine, publication = bench.engine, checked_publication("veh/me/speed", HOW, HERE)
    router = engine.readings

    def publish(number: int) -> None:
        now = bench.now = bench.now + MS
        utc_ns = UTC_NS + now
        router.publish(publication, number * 0.5, None, EventTime(utc_ns, MS), now, utc_ns)
        lanes = engine.flushes()
        router.next_timer_at()
        assert lanes is not None
        assert len(lanes) == neighbours
        for lane in lanes:
            engine.next_frame(lane.dial, now)

    return publish


def receiving(frames: list[bytes]) -> Operation:
    """Receive one of the frames from ``n0``."""
    bench = Bench(1, "")
    engine = bench.engine
    engine.readings.subscribe("veh/**", Quality(), bench.now)
    engine.carry(bench.now)
    bench.settle()
    (neighbour,) = engine.membership.neighbours.values()

    def receive(number: int) -> None:
        now = bench.now = bench.now + MS
        neighbour.beats = 0  # as a round does, without which thousands of heartbeats are a flood
        engine.receive(frames[number], 0, now, UTC_NS + now)
        lanes = engine.flushes()
        engine.readings.next_timer_at()
        assert not lanes

    return receive


def receiving_readings(prepared: int) -> Operation:
    """Receive a frame of one reading, which is delivered here."""
    return receiving([
        encode_frame(Readings((
            Reading("veh/n0/speed", "n0", number, number * 0.5, HERE, EventTime(UTC_NS + number * MS, MS), HOW),
        )))
        for number in range(1, prepared + 1)
    ])  # fmt: skip


def receiving_heartbeat(prepared: int) -> Operation:
    """Receive a heartbeat of a neighbour that suspects nobody."""
    return receiving([
        encode_frame(Heartbeat(number, number * MS, 1, number * MS, 0)) for number in range(1, prepared + 1)
    ])  # fmt: skip


def timing(neighbours: int) -> Operation:
    """Handle a timer with ``neighbours`` neighbours, all of which were heard just before."""
    bench = Bench(neighbours, "veh/me/**")
    engine = bench.engine
    known = list(engine.membership.neighbours.values())

    def ring(number: int) -> None:
        del number
        now = bench.now = max(engine.next_timer_at(), bench.now + 1)
        for neighbour in known:
            neighbour.last_heard_ns = now
        engine.handle_timer(now)
        bench.settle()

    return ring


OPERATIONS: dict[str, tuple[Callable[[int], Operation], int]] = {
    "publish_1": (lambda _: publishing(1), 3_000),
    "publish_8": (lambda _: publishing(8), 1_000),
    "receive_readings": (receiving_readings, 3_000),
    "receive_heartbeat": (receiving_heartbeat, 3_000),
    "timer_11": (lambda _: timing(11), 1_000),
}
"""By name: a function that makes the operation, given how many frames to prepare, and *n*."""


def run(name: str, operations: int) -> None:
    """Do ``operations`` of the 2 *n* operations that are prepared. It runs in a child."""
    make, base = OPERATIONS[name]
    operation = make(2 * base)
    gc.disable()
    for number in range(operations):
        operation(number)


def count(name: str, operations: int) -> int:
    """Count the instructions of a child that does ``operations`` operations."""
    child = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command(name, operations)],
        check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    found = re.search(r"Collected\s*:\s*(\d+)", child.stderr)
    assert found is not None, f"callgrind said no number: {child.stderr[-500:]}"
    return int(found.group(1))


def command(name: str, operations: int) -> list[str]:
    """The command line of a child."""
    options = ["-P"] if sys.flags.safe_path else []
    return [sys.executable, *options, "-m", "benchmarks.instructions", "--child", name, str(operations)]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", choices=OPERATIONS, help="count only this (may be repeated)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run(options.child[0], int(options.child[1]))
        return 0
    if shutil.which("valgrind") is None:
        print("counting instructions needs valgrind: on Debian and Ubuntu 'apt install valgrind'", file=sys.stderr)
        return 2
    interpreted = (protocols.engine.__file__ or "").endswith(".py")
    figures = {}
    for name in options.only or OPERATIONS:
        operations = OPERATIONS[name][1]
        try:
            subprocess.run(command(name, 1), check=True, capture_output=True, text=True)  # caches the bytecode
            once, twice = count(name, operations), count(name, 2 * operations)
        except subprocess.CalledProcessError as error:
            print(f"{name} could not be measured: {error}\n{error.stderr[-2_000:]}", file=sys.stderr)
            return 2
        figures[name] = round((twice - once) / operations)
        if not options.json:
            print(f"{name:<20}{figures[name]:>10,} instructions an operation", flush=True)
    if options.json:
        print(json.dumps({
            "build": "interpreted" if interpreted else "compiled",
            "python": sys.version.split()[0],
            "instructions": figures,
        }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
