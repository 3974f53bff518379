"""Six nodes as an operator runs them (``meshnode run``, HTTP on, mDNS on loopback), and what their logs say.

Times are those of the nodes' own log lines, in milliseconds; all processes of a computer share one clock. Invariant: no
process outlives :class:`Fleet` or its parent, however that ends, because a node leaves when its standard input ends.
"""

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from meshnode.identity import create_mesh, issue

NAMES = ("rsu-1", "rsu-2", "veh-1", "veh-2", "veh-3", "veh-4")
NEIGHBOURS = len(NAMES) - 1
START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 30.0
_EVENT = re.compile(r"(Neighbour(?:Met|Suspected|Refuted|Dead|Left))\(node='([^']+)'")
_TOML = """\
[node]
id = "{name}"
position = {{ latitude_deg = 48.7661, longitude_deg = 11.4298, accuracy_m = 3.0 }}
[listen]
host = "127.0.0.1"
advertise = ["127.0.0.1"]
[discovery]
interfaces = ["127.0.0.1"]
[http]
port = 0
"""


class FleetFailed(Exception):
    """The fleet could not be brought to where a measurement begins."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One node logged something about another."""

    at_s: float
    node: str
    kind: str
    about: str


class FleetNode:
    """One life of one node. Times are those of ``time.time``."""

    def __init__(self, name: str, config: Path, seen: Callable[[Sighting], None]) -> None:
        self.name, self._seen = name, seen
        self.started_s = time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet_node", str(config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        )  # fmt: skip
        self.usage = psutil.Process(self.process.pid)
        self.http_port = 0
        self.ready_s = 0.0
        """When its ready line came; 0 before that."""
        self.ready_cpu_s = 0.0
        """Processor time that it had used by then."""
        self.last_words = ""
        for target in (self._read_ready, self._read_log):
            threading.Thread(target=target, daemon=True).start()

    def _read_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.ready_s, self.ready_cpu_s = time.time(), self.cpu_s()
                self.http_port = int(line.split()[6])

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.last_words = line.strip()
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if found := _EVENT.match(entry["message"]):
                at_s = datetime.fromisoformat(entry["time"]).timestamp()
                self._seen(Sighting(at_s, self.name, found[1], found[2]))

    def check(self) -> None:
        """Check that it runs. :raises FleetFailed: when it ended by itself."""
        if self.process.poll() is not None:
            raise FleetFailed(f"{self.name} ended with {self.process.returncode}: {self.last_words}")

    def cpu_s(self) -> float:
        """Processor seconds used so far."""
        times = self.usage.cpu_times()
        return float(times.user + times.system)

    def resident_mb(self) -> float:
        """Resident memory in megabytes of 10^6 bytes."""
        return float(self.usage.memory_info().rss / 1e6)

    def statistics(self) -> dict[str, int]:
        """Its counters, asked for by HTTP."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v1/node", timeout=20) as answer:
            counted: dict[str, int] = json.load(answer)["statistics"]
        return counted

    def kill(self) -> float:
        """Send SIGKILL. Returns the time at which it was sent."""
        at_s = time.time()
        self.process.kill()
        self.process.wait()
        return at_s

    def tell_to_leave(self) -> None:
        """Send SIGTERM, but only once: at the second one a node drops everything."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def left(self) -> int:
        """Wait for the end of a node that was told to leave. Returns its exit status."""
        try:
            return self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def wait_until(
    condition: Callable[[], bool], nodes: Iterable[FleetNode], what: str, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Wait for ``condition`` while ``nodes`` run. :raises FleetFailed: when it does not come true, or one of them
    ended."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        for node in nodes:
            node.check()
        if time.monotonic() > ends_s:
            raise FleetFailed(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)


def prepare(folder: Path, name: str) -> Path:
    """Issue a certificate of the authority in ``folder`` and write a configuration. Returns its path."""
    issue(folder / "authority", "rsu" if name.startswith("rsu") else "vehicle", name, folder / name)
    config = folder / name / "node.toml"
    config.write_text(_TOML.format(name=name))
    return config


class Fleet:
    """All six nodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sightings: list[Sighting] = []
        self.nodes: dict[str, FleetNode] = {}

    def __enter__(self) -> Self:
        create_mesh(self._folder / "authority", f"bench-{os.getpid()}")
        for name in NAMES:
            prepare(self._folder, name)
        for name in NAMES:
            self.start(name)
        return self

    def start(self, name: str) -> None:
        """Start a node, or start it again."""
        self.nodes[name] = FleetNode(name, self._folder / name / "node.toml", self._note)

    def _note(self, sighting: Sighting) -> None:
        with self._lock:
            self._sightings.append(sighting)

    def sightings(self, kind: str, about: str | None = None, since_s: float = 0.0) -> list[Sighting]:
        """The sightings of a kind, in the order in which they were read."""
        with self._lock:
            return [s for s in self._sightings if s.kind == kind and about in (None, s.about) and s.at_s >= since_s]

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for a condition. :raises FleetFailed: when it does not come true, or a node ended."""
        wait_until(condition, self.nodes.values(), what, timeout_s)

    def check(self) -> None:
        """Check that all run. :raises FleetFailed: when a node ended by itself."""
        for node in self.nodes.values():
            node.check()

    def wait_until_met(self) -> float:
        """Wait until every node has met every other in its present life. Returns the time of the last meeting."""

        def meetings() -> list[float]:
            found = []
            for node in self.nodes.values():
                for other in self.nodes.values():
                    if node is not other:
                        since_s = max(node.started_s, other.started_s)
                        met = [s for s in self.sightings("NeighbourMet", other.name, since_s) if s.node == node.name]
                        found += [met[0].at_s] if met else []
            return found

        self.wait(lambda: len(meetings()) == len(NAMES) * NEIGHBOURS, "all have met")
        self.wait(lambda: all(node.http_port for node in self.nodes.values()), "all serve HTTP")
        return max(meetings())

    def stop(self) -> dict[str, int]:
        """Stop all by SIGTERM. Returns their exit statuses."""
        for node in self.nodes.values():
            node.tell_to_leave()
        return {name: node.left() for name, node in self.nodes.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            node.process.kill()
            node.process.wait()


def _processor_model() -> str:
    """The name of the processor, where the system tells it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or "unknown"


def machine() -> dict[str, Any]:
    """What the machine is that it ran on."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "model": _processor_model(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
