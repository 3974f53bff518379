"""The neighbourhood of :mod:`benchmarks.policies` with real nodes, each in a network of its own on the emulator's wire.

Each node is a process with mutual TLS to all others. The wire delays frames and carries as many bytes a second as in
the simulated neighbourhood. The model is *timed*: a run takes as long as on that class of computer, and uses no
processor, so that two cores can hold eleven computers. Queues, budgets, offers, sockets and all decisions are real.

A *trial* is one mesh of new processes, one policy and one load. Arrivals follow from the seed, so that each policy gets
the same. A trial counts only if the wire was on time. It needs Linux and root, as ``meshsim emulate`` does.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from benchmarks.children import ChildFailed
from benchmarks.measures import percentile
from benchmarks.neighbourhood_node import MEET_S, Account, Opening, Schedule
from benchmarks.policies import COMPUTE_MS, COMPUTERS, LINK_BYTES_PER_S, LINK_DELAY_NS, SERVER, Device, mean_between_ns
from protocols.base.limits import MS, SECOND
from sims.emulator.air.process import Job
from sims.emulator.air.wire import WireReport
from sims.emulator.namespaces import Network, check_possible, open_network
from sims.emulator.nodes import (
    NODE_URGENCY,
    WIRE_URGENCY,
    RealNode,
    end_process,
    launch,
    prepare,
)
from sims.emulator.run import late_bound_ms
from sims.scenario.devices import DEVICES
from sims.scenario.file import Backbone, Fixed, Group, Radio, Scenario

WARM_UP_S: Final = 8.0
_HOLD_S: Final = 120.0
_LEAD_S: Final = 0.5
_DRAIN_S: Final = 10.0
_LEAVE_S: Final = 5.0
_LINE_BYTES: Final = 1 << 16


class Trial(Struct):
    """What was seen of one policy at one load."""

    policy: str
    load: float
    seed: int
    asked: int
    in_time: int
    wrong: int
    away: int
    p50_ms: float
    p99_ms: float
    """Both of the requests in time."""
    missed_by: dict[Device, int]
    """Requests that were not answered in time, by the class of the computer that asked."""
    counters: dict[str, int]
    """The sums over all nodes, warm-up included."""
    asked_late_p99_ms: float
    wire_late_p99_ms: float
    busy_share: float
    """The share of this computer's processors that was busy."""
    on_time: bool
    """Whether the wire was: otherwise the trial says nothing."""


def _scenario() -> Scenario:
    groups = tuple(
        Group(name=device, count=count, mobility=Fixed(points=((0.0, 0.0),) * count), role="rsu", device=device)
        for device, count in COMPUTERS.items()
    )  # fmt: skip
    wires = Backbone(groups=tuple(COMPUTERS), latency_ms=LINK_DELAY_NS / MS, bit_rate_mbps=LINK_BYTES_PER_S * 8 / 1e6)
    return Scenario(
        name="neighbourhood", description="Computers of four classes, all wired to one another", duration_s=3_600,
        groups=groups, radio=Radio(model="ideal", shared=False), backbone=(wires,),
    )  # fmt: skip


class _Process:
    """A node for the time of one trial."""

    def __init__(self, node: RealNode, config: Path, network: Network) -> None:
        command = [sys.executable, "-m", "benchmarks.neighbourhood_node", str(config)]
        self.node = node
        self.process: subprocess.Popen[bytes] = launch(command, network, errors=node.errors)
        self._read = b""

    def tell(self, order: Struct) -> None:
        """Give it its next line."""
        assert self.process.stdin is not None, "launch() gives it a pipe"
        with contextlib.suppress(BrokenPipeError):  # answer() tells
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")
            self.process.stdin.flush()

    def answer(self, until_s: float) -> bytes:
        """Its next line. :raises ChildFailed: there is none by that instant of the monotonic clock."""
        assert self.process.stdout is not None, "launch() gives it a pipe"
        output = self.process.stdout.fileno()
        while b"\n" not in self._read:
            ready, _, _ = select.select([output], [], [], max(until_s - time.monotonic(), 0.0))
            part = os.read(output, _LINE_BYTES) if ready else b""
            if not part:
                said = self.node.last_words() or "it wrote nothing to standard error"
                raise ChildFailed(f"{self.node.name} did not answer in time, or has ended: {said}")
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line

    def leave(self) -> None:
        """Tell it to leave; :meth:`answer` has given all that is wanted of it."""
        assert self.process.stdin is not None, "launch() gives it a pipe"
        self.process.stdin.close()

    def make_urgent(self) -> None:
        """Run it before other processes of this host; threads that it starts from now on too."""
        with contextlib.suppress(OSError):
            os.sched_setscheduler(self.process.pid, os.SCHED_RR, os.sched_param(NODE_URGENCY))


class Neighbourhood:
    """The certificates and configurations of all nodes, in one folder; :meth:`trial` uses them again and again."""

    def __init__(self, folder: Path) -> None:
        """:raises EmulatorError: this host can't emulate; says why."""
        check_possible()
        self._scenario = _scenario()
        # Configurations need no networks, and each trial makes new ones.
        self._nodes = prepare(self._scenario, folder, [Network(-1, -1)] * len(self._scenario.names), (), 1)
        self._errors = folder / "wire.log"
        for node in self._nodes:
            alone = "\n[inference]\noffload = false\nhedge = false\n"
            (node.folder / "local.toml").write_text((node.folder / "node.toml").read_text() + alone)

    def trial(self, policy: str, load: float, seed: int, seconds: float, warm_up_s: float = WARM_UP_S) -> Trial:
        """Measure for that long, after the warm-up. :raises ChildFailed: a process ended or did not answer."""
        with contextlib.ExitStack() as stack:
            networks = []
            for number in range(len(self._nodes)):
                networks.append(open_network(number, len(self._nodes)))
                stack.callback(networks[-1].close)
            wire = self._start_wire(networks, seed)
            stack.callback(_kill, wire)
            processes = []
            for node, network in zip(self._nodes, networks, strict=True):
                config = "local.toml" if policy == "local" else "node.toml"
                processes.append(_Process(node, node.folder / config, network))
                stack.callback(_kill, processes[-1].process)
            _meet(processes, policy, seed)
            busy = _Busy()
            accounts = _ask(processes, load, warm_up_s, seconds)
            busy_share = busy.share()
            for process in processes:
                process.leave()
            report = self._end_wire(wire)
        return self._account(policy, load, seed, accounts, report, busy_share)

    def _start_wire(self, networks: Sequence[Network], seed: int) -> "subprocess.Popen[bytes]":
        taps = tuple(network.tap for network in networks)
        command = [sys.executable, "-m", "sims.emulator.air.process"]
        wire = launch(command, None, taps, WIRE_URGENCY, errors=self._errors)
        assert wire.stdin is not None, "launch() gives it a pipe"
        wire.stdin.write(msgspec.json.encode(Job(self._scenario, seed, (), taps, time.monotonic_ns())) + b"\n")
        wire.stdin.flush()
        return wire

    def _end_wire(self, wire: "subprocess.Popen[bytes]") -> WireReport:
        try:
            output, _ = wire.communicate(timeout=_LEAVE_S)  # this closes its input, which tells it to end
            return msgspec.json.decode(output, type=WireReport)
        except (subprocess.TimeoutExpired, msgspec.DecodeError) as error:
            raise ChildFailed(f"the wire gave no report: {self._errors.read_text()[-600:]}") from error

    def _account(
        self, policy: str, load: float, seed: int, accounts: Sequence[Account], report: WireReport, busy_share: float
    ) -> Trial:
        took_us = sorted(took for account in accounts for took in account.took_us) or [0]
        asked_late_us = sorted(late for account in accounts for late in account.asked_late_us) or [0]
        missed_by: dict[Device, int] = dict.fromkeys(COMPUTERS, 0)
        counters: dict[str, int] = {}
        for node, account in zip(self._nodes, accounts, strict=True):
            missed_by[node.group.device] += account.asked - account.in_time
            for name, count in account.counters.items():
                counters[name] = counters.get(name, 0) + count
        return Trial(
            policy, load, seed, sum(account.asked for account in accounts),
            sum(account.in_time for account in accounts), sum(account.wrong for account in accounts),
            sum(account.away for account in accounts), percentile(took_us, 0.5) / 1e3, percentile(took_us, 0.99) / 1e3,
            missed_by, counters, percentile(asked_late_us, 0.99) / 1e3, report.late.p99_ms, round(busy_share, 3),
            report.late.p99_ms <= late_bound_ms(self._scenario),
        )  # fmt: skip


def _meet(processes: Sequence[_Process], policy: str, seed: int) -> None:
    """Open all nodes, and wait until each has met all others."""
    for process in processes:
        process.answer(time.monotonic() + _HOLD_S)
    for process in processes:
        process.make_urgent()
        compute_ms = COMPUTE_MS * DEVICES[process.node.group.device].factor
        process.tell(Opening(policy, seed, compute_ms, len(processes) - 1))
    meet_by_s = time.monotonic() + MEET_S
    for process in processes:
        process.answer(meet_by_s)


def _ask(processes: Sequence[_Process], load: float, warm_up_s: float, seconds: float) -> list[Account]:
    """Have all but the server ask."""
    begins_ns = time.monotonic_ns() + int(_LEAD_S * SECOND)
    counts_ns = begins_ns + int(warm_up_s * SECOND)
    ends_ns = counts_ns + int(seconds * SECOND)
    mean_ns = mean_between_ns(load)
    for process in processes:
        asks = process.node.group.device != SERVER
        process.tell(Schedule(mean_ns if asks else 0, begins_ns, counts_ns, ends_ns))
    answer_by_s = ends_ns / SECOND + _DRAIN_S
    return [msgspec.json.decode(process.answer(answer_by_s), type=Account) for process in processes]


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        end_process(process, 0.0)


class _Busy:
    """How busy the processors of this computer are from now on."""

    def __init__(self) -> None:
        self._before = self._look()

    @staticmethod
    def _look() -> tuple[int, int]:
        times = [int(part) for part in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        return sum(times) - times[3] - times[4], sum(times)

    def share(self) -> float:
        """Between 0 and 1."""
        busy, whole = (now - before for now, before in zip(self._look(), self._before, strict=True))
        return busy / max(whole, 1)
