"""``python -m benchmarks.gnss``: a node that follows gpsd through losses of the fix, restarts, silence and clock steps.

A receiver on a pseudo-terminal drives in a circle and says so five times a second; gpsd listens to it, and a node
listens to gpsd. At random moments the receiver loses its fix or says nothing, gpsd is killed and started again, and the
time of the receiver is moved against that of the host, as if the host's clock had been set. At the end

- each position is the one that the receiver said for that time;
- each gap between two positions has a reading that says why, at least every three seconds;
- the accuracy that the node claims is never less than what it is off by;
- the clock uncertainty that it claims is never less than what its clock is off by, once a fix has told.
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import meshnode
from benchmarks.fake_receiver import FakeReceiver, fix_sentences, no_fix_sentences
from benchmarks.gpsd_process import GPSD, Gpsd
from benchmarks.lone_node import write_lone_node
from demo.processes import free_port
from meshnode.sensors.gnss.tracking import SILENT_S
from protocols.wire.readings import Reading

EVERY_S: Final = 0.2
SPEED_MPS: Final = 20.0
STEP_S: Final = 30.0
GAP_S: Final = 1.5
"""A longer time between two positions is a gap."""
TOLD_EVERY_S: Final = SILENT_S + 1.0
"""A receiver that says nothing is told after two seconds, and then once a second; the rest is for a busy machine."""
_RADIUS_M: Final = 500.0
_DEGREE_M: Final = 111_195.0
_LATITUDE_DEG: Final = 48.7
_LATENCY_S: Final = 1.0
_RECEIVER: Final = """
[sensors.gnss]
driver = "gpsd"
port = {port}
"""


def place(utc_s: float) -> tuple[float, float]:
    """Where the vehicle is, in degrees."""
    angle = utc_s * SPEED_MPS / _RADIUS_M
    north_m, east_m = _RADIUS_M * math.sin(angle), _RADIUS_M * math.cos(angle)
    return (
        _LATITUDE_DEG + north_m / _DEGREE_M,
        11.4 + east_m / (_DEGREE_M * math.cos(math.radians(_LATITUDE_DEG))),
    )


def apart_m(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Metres between two places that are near to each other."""
    east = (one[1] - other[1]) * math.cos(math.radians(_LATITUDE_DEG))
    return math.hypot(one[0] - other[0], east) * _DEGREE_M


class Drive:
    """The receiver on its way, and what goes wrong with it."""

    def __init__(self, receiver: FakeReceiver) -> None:
        self._receiver = receiver
        self.said: dict[int, tuple[float, float]] = {}
        """The place by the time that the receiver said, in hundredths of a second."""
        self.ahead_s = 0.0
        """How far the receiver's time is ahead of this host's clock."""
        self.has_fix, self.is_mute = True, False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S - time.time() % EVERY_S):
            now_s = time.time()
            told_s = round(now_s + self.ahead_s, 2)
            if self.is_mute:
                continue
            if not self.has_fix:
                self._receiver.say(no_fix_sentences(told_s))
                continue
            self.said[round(told_s * 100)] = here = place(now_s)
            self._receiver.say(fix_sentences(told_s, *here, SPEED_MPS))


class Account:
    """What the node said, held against what was so."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.worst_m = self.longest_gap_s = 0.0
        self._positioned_s = self._told_s = time.monotonic()

    def heard(self, reading: Reading) -> None:
        """Note a reading of the node."""
        now_s = time.monotonic()
        kind = reading.key.rsplit("/", 1)[1]
        self.counts[kind] += 1
        if kind == "gnss":
            self._gap(now_s)
            self.counts[f"told {str(reading.value.get('why', 'fix')).split(' at ')[0]}"] += 1
        elif kind == "position":
            self._gap(now_s)
            self._positioned_s = now_s
            said = self._drive.said.get(round(reading.when.utc_ns / 1e7))
            if said is None:
                self._note(f"a position of {reading.when.utc_ns / 1e9:.2f}, of which the receiver said nothing")
                return
            off_m = apart_m(said, (reading.value["latitude_deg"], reading.value["longitude_deg"]))
            self.worst_m = max(self.worst_m, off_m)
            if off_m > 0.05:
                self._note(f"a position is {off_m:.2f} m off what the receiver said")

    def looked(self, node: Any, since_step_s: float) -> None:
        """Hold what the node believes now against what is so."""
        self.counts["looks"] += 1
        believed = node.position
        if believed is not None:
            off_m = apart_m(place(time.time()), (believed.latitude_deg, believed.longitude_deg))
            # a place is that of the last fix, and its accuracy grows once the next one is overdue
            if off_m > believed.accuracy_m + SPEED_MPS * (_LATENCY_S + SILENT_S):
                self._note(f"the node is {off_m:.0f} m from where it believes to be within {believed.accuracy_m:.0f} m")
        is_fixed = time.monotonic() - self._positioned_s < GAP_S
        off_s = abs(self._drive.ahead_s)
        if is_fixed and since_step_s > 3.0 and node.clock_uncertainty_ns / 1e9 < off_s - _LATENCY_S:
            self._note(f"the clock is {off_s:.0f} s off, within {node.clock_uncertainty_ns / 1e9:.3f} s as it believes")

    def _gap(self, now_s: float) -> None:
        gap_s = now_s - self._positioned_s
        self.longest_gap_s = max(self.longest_gap_s, gap_s)
        if gap_s > GAP_S and now_s - max(self._told_s, self._positioned_s) > TOLD_EVERY_S:
            self._note(f"nothing was said for {now_s - self._told_s:.1f} s of a gap")
        self._told_s = now_s

    def _note(self, what: str) -> None:
        self.counts["wrong"] += 1
        if len(self.wrong) < 20:
            self.wrong.append(what)


async def run(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Drive for that long; returns the account."""
    random = Random(seed)
    port = free_port()
    config = write_lone_node(folder, _RECEIVER.format(port=port), is_placed=False)
    with FakeReceiver() as receiver:
        gpsd, drive = Gpsd(port, receiver.device), Drive(receiver)
        gpsd.start()
        try:
            async with meshnode.open(config) as node:
                account = Account(drive)
                heard = node.subscribe("veh/veh-1/*")
                listening = asyncio.create_task(_listen(heard, account))
                await _disturb(node, drive, gpsd, account, random, minutes)
                listening.cancel()
        finally:
            gpsd.kill()
            drive.stop()
    return {
        "minutes": minutes, "seed": seed, "counts": dict(sorted(account.counts.items())),
        "largest_error_m": round(account.worst_m, 3), "longest_gap_s": round(account.longest_gap_s, 1),
        "wrong": account.wrong,
    }  # fmt: skip


async def _listen(heard: Any, account: Account) -> None:
    async for reading in heard:
        account.heard(reading)


async def _disturb(node: Any, drive: Drive, gpsd: Gpsd, account: Account, random: Random, minutes: float) -> None:
    ends_s = time.monotonic() + 60 * minutes
    stepped_s = time.monotonic()

    async def wait(seconds: float) -> None:
        until_s = min(time.monotonic() + seconds, ends_s)
        while time.monotonic() < until_s:
            await asyncio.sleep(0.1)
            account.looked(node, time.monotonic() - stepped_s)

    trouble = 0
    while time.monotonic() < ends_s:
        await wait(random.uniform(4, 12))
        kind = ("no fix", "mute", "restart", "step")[trouble % 4]
        trouble += 1
        account.counts[f"times {kind}"] += 1
        if kind == "step":
            drive.ahead_s, stepped_s = STEP_S - drive.ahead_s, time.monotonic()
        elif kind == "restart":
            gpsd.kill()
            await wait(random.uniform(1, 6))
            await asyncio.to_thread(gpsd.start)
        else:
            drive.has_fix, drive.is_mute = kind != "no fix", kind == "mute"
            await wait(random.uniform(3, 20))
            drive.has_fix, drive.is_mute = True, False
    await wait(5)


def main() -> int:
    """Run it and print the account. Returns 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gnss", description="A node behind gpsd, disturbed.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if GPSD is None:
        print("gpsd is not installed: 'sudo .ci/servers' installs it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        account = asyncio.run(run(Path(folder), asked.minutes, asked.seed))
        print(json.dumps(account, indent=1))
        return 1 if account["wrong"] or not account["counts"].get("position") else 0
    return 130


if __name__ == "__main__":
    sys.exit(main())
