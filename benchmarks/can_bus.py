"""``python -m benchmarks.can_bus``: what a database of 200 signals costs a node at 2,000 frames a second.

A thread of this process sends on a virtual bus of python-can. A node in the same process listens and publishes each
signal ``--rate-hz`` times a second. What counts is the processor time of the node's sensor thread, which decodes and
publishes. At the end cantools decodes the same frames, and each published value has to be one of its signal. A socket
of the kernel (SocketCAN) costs some 10 us for a frame more, which a virtual bus does not.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any, Final

import meshnode
from benchmarks import can_vehicle
from benchmarks.lone_node import write_lone_node
from protocols.wire.readings import Reading

FRAMES_PER_S: Final = 2_000
BAR_SHARE: Final = 0.2
_CHANNEL: Final = "benchmark"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_CAN: Final = """
[sensors.can]
driver = "can"
interface = "virtual"
channel = "{channel}"
database = "vehicle.dbc"
rate_hz = {rate_hz}
"""


def processor_s(thread: threading.Thread) -> float:
    """Processor time of a thread of this process, in steps of 10 ms."""
    fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


class Vehicle:
    """Sends frames at their pace, and remembers them."""

    def __init__(self, frames_per_s: int, seed: int) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self._every_s, self._random = 1.0 / frames_per_s, Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        import can

        with can.Bus(interface="virtual", channel=_CHANNEL) as bus:
            begun_s = time.monotonic()
            while not self._stopping.wait(0.005):
                while len(self.sent) * self._every_s < time.monotonic() - begun_s:
                    self.sent.append(can_vehicle.frame(self._random, len(self.sent)))
                    identifier, data = self.sent[-1]
                    bus.send(can.Message(arbitration_id=identifier, data=data, is_extended_id=False))


async def run(folder: Path, seconds: float, rate_hz: float, frames_per_s: int, seed: int) -> dict[str, Any]:
    """Listen for that long; returns the figures."""
    config = write_lone_node(folder, _CAN.format(channel=_CHANNEL, rate_hz=rate_hz))
    (folder / "node" / "vehicle.dbc").write_text(can_vehicle.database())
    published: dict[str, set[float]] = defaultdict(set)
    count = 0

    def heard(reading: Reading) -> None:
        nonlocal count
        count += 1
        published[reading.key.split("/can/", 1)[1]].add(reading.value)

    vehicle = Vehicle(frames_per_s, seed)
    async with meshnode.open(config) as node:
        sensing = next(thread for thread in threading.enumerate() if thread.name == "sensor-can")
        node.subscribe("veh/veh-1/can/*/*", callback=heard)
        vehicle.start()
        await asyncio.sleep(0.5)
        before_s, begun_s, sent = processor_s(sensing), time.monotonic(), len(vehicle.sent)
        await asyncio.sleep(seconds)
        took_s, lasted_s, frames = (
            processor_s(sensing) - before_s,
            time.monotonic() - begun_s,
            len(vehicle.sent) - sent,
        )
        vehicle.stop()
        await asyncio.sleep(0.2)
    return {
        "seconds": round(lasted_s, 1), "frames_per_s": round(frames / lasted_s), "rate_hz": rate_hz,
        "readings_per_s": round(count / lasted_s), "signals": len(published),
        "share_of_a_core": round(took_s / lasted_s, 4), "us_per_frame": round(1e6 * took_s / max(frames, 1), 1),
        "wrong_values": wrong_values(published, vehicle.sent),
    }  # fmt: skip


def wrong_values(published: dict[str, set[float]], sent: list[tuple[int, bytes]]) -> int:
    """How many of the published values no frame has, as cantools decodes them."""
    import cantools

    reference: Any = cantools.database.load_string(can_vehicle.database())
    possible: dict[str, set[float]] = defaultdict(set)
    for identifier, data in sent:
        message = reference.get_message_by_frame_id(identifier)
        for name, value in message.decode(data).items():
            possible[f"{message.name}/{name}"].add(value)
    return sum(len(values - possible[name]) for name, values in published.items())


def main() -> int:
    """Measure and print. Returns 1 when a value is wrong, or with ``--check`` when the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.can_bus", description="200 signals of a CAN bus.")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate-hz", type=float, nargs="+", default=[2.0, 10.0], help="of each signal")
    parser.add_argument("--frames-per-s", type=int, default=FRAMES_PER_S)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    rounds = []
    for rate_hz in asked.rate_hz:
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(run(Path(folder), asked.seconds, rate_hz, asked.frames_per_s, asked.seed))
        print(json.dumps(figures), flush=True)
        rounds.append(figures)
    missed = asked.check and rounds[0]["share_of_a_core"] > BAR_SHARE
    return 1 if missed or any(figures["wrong_values"] for figures in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
