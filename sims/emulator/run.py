"""One emulation from its first certificate to its result.

Order: networks, certificates, nodes loaded and held, the wire; then the run, whose instant 0 all processes know; then
the ends, and the journals are read. Ctrl-C ends the run early and keeps what was seen until then. Networks have no
names and processes are bound to this one, so that nothing survives it, however it ends.

Left out: clock jumps (all processes of a host have one clock, and moving it would move everybody's), full disks, and
peers that lie, which would need a node that is not the real one. A scenario that has them is refused with their names.
"""

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import msgspec

from protocols.limits import SECOND
from sims.emulator.disturbances import ON_THE_AIR, Disturbances
from sims.emulator.namespaces import STILL_WORKS, Network, check_possible, open_network
from sims.emulator.nodes import (
    HARNESS_URGENCY,
    MESH_RELAY,
    WIRE_URGENCY,
    RealNode,
    end_all,
    hold_all,
    launch,
    prepare,
    subscriptions,
)
from sims.emulator.observation import Found, Observation, read_journals
from sims.emulator.relay import Account, RealRelay, has_relay
from sims.emulator.wire import WireReport
from sims.emulator.wire_process import Job
from sims.emulator.workplace import workplace
from sims.errors import EmulatorError
from sims.faults import plan
from sims.media import Media
from sims.mobility import places
from sims.recorder import Recording
from sims.result import Result
from sims.scenario import Fault, Scenario

MAX_NODES = 64
"""Processes of 60 MB each; a host with more memory and cores than most laptops is no reason to fill it."""
TO_PROCESSES = frozenset({"crash", "slow-node"})
SUPPORTED = ON_THE_AIR | TO_PROCESSES
WITH_RELAY = frozenset({"relay-outage"})
LATE_SHARE = 0.25
"""Of the radio's latency: a wire that is later than this at p99 is another radio. 0.25 is how far the two harnesses may
be apart in a comparison."""
LEAST_LATE_MS = 1.0
MOST_LATE_MS = 20.0
_LEAD_S = 0.5
"""From knowing when the run starts to its start: the wire makes its models in it."""
_LOOK_S = 0.25
_WIRE_ENDS_S = 10.0
_RELAY_ENDS_S = 10.0
_PULSE_S = 0.1
"""Period of the stops of a slow node."""

Say = Callable[[str], None]


def emulate(scenario: Scenario, seed: int, say: Say = lambda _: None, keep: Path | None = None) -> Result:
    """Run the scenario with real nodes; takes its duration and about a second for each node.

    ``keep``: a folder for the journals. Ctrl-C during the run ends it early; the result says so.

    :raises EmulatorError: this host can't, or the scenario has what an emulation does not; names it.
    """
    check_possible()
    tape = _checked(scenario, seed)
    began_s = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(workplace())
        emulation = Emulation(scenario, seed, tape, folder, say)
        stack.callback(emulation.close)
        emulation.set_up()
        emulation.run()
        return emulation.result(began_s, keep)


def _checked(scenario: Scenario, seed: int) -> tuple[Fault, ...]:
    number = len(scenario.names)
    if number > MAX_NODES:
        raise EmulatorError(
            f"{scenario.name} has {number} nodes, and the emulator starts at most {MAX_NODES} processes: make it "
            f"smaller, or simulate it; {STILL_WORKS}"
        )
    tape = plan(scenario, seed)
    supported = SUPPORTED | WITH_RELAY if has_relay(scenario) else SUPPORTED
    if unsupported := sorted({fault.kind for fault in tape} - supported):
        raise EmulatorError(
            f"{scenario.name} has {', '.join(unsupported)}, which can't be done to real nodes on one host (possible "
            f"are {', '.join(sorted(supported))}): leave it out, or simulate; {STILL_WORKS}"
        )
    if scenario.inference:
        raise EmulatorError(
            f"{scenario.name} asks for inferences, which the emulator's nodes have no models for: leave [[inference]] "
            f"out, or simulate; {STILL_WORKS}"
        )
    return tape


class Emulation:
    """See the module. :meth:`set_up`, :meth:`run`, :meth:`result`, and :meth:`close` whatever happened."""

    def __init__(self, scenario: Scenario, seed: int, tape: tuple[Fault, ...], folder: Path, say: Say) -> None:
        self._scenario, self._seed, self._tape, self._folder, self._say = scenario, seed, tape, folder, say
        self._networks: list[Network] = []
        self._nodes: list[RealNode] = []
        self._spares: dict[tuple[str, float], RealNode] = {}
        self._relay: RealRelay | None = None
        self._accounts: list[Account] = []
        self._wire: subprocess.Popen[bytes] | None = None
        self._report = WireReport()
        self._zero_ns = 0
        self._ended_ns = 0
        self._interrupted = False
        self._findings: list[tuple[int, str, str]] = []
        self._slow: list[threading.Event] = []

    # --- before ----------------------------------------------------------------------------------------------------
    def set_up(self) -> None:
        """Everything is there and waits. :raises EmulatorError: something could not be made."""
        names = self._scenario.names
        hosts = len(names) + has_relay(self._scenario)
        for number in range(hosts):
            self._networks.append(open_network(number, hosts))
        self._say(f"{len(names)} networks; making certificates")
        self._nodes = prepare(self._scenario, self._folder, self._networks)
        command = [sys.executable, "-m", "sims.emulator.wire_process"]
        taps = [network.tap for network in self._networks]
        self._wire = launch(command, None, taps, WIRE_URGENCY, errors=self._folder / "wire.log")
        self._say(f"loading {len(names)} nodes")
        hold_all(self._nodes)
        if hosts > len(names):
            self._relay = RealRelay(len(names), self._networks[-1], self._folder / MESH_RELAY)
            self._relay.start()
            self._relay.wait_until_ready()

    # --- the run ---------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """From instant 0 to the end of the scenario, or to Ctrl-C."""
        self._zero_ns = time.monotonic_ns() + int(_LEAD_S * 1e9)
        taps = tuple(network.tap for network in self._networks)
        job = Job(self._scenario, self._seed, self._tape, taps, self._zero_ns)
        assert self._wire is not None, "set_up() starts it"
        assert self._wire.stdin is not None, "launch() gives it a pipe"
        try:
            self._wire.stdin.write(msgspec.json.encode(job) + b"\n")
            self._wire.stdin.flush()
            self._say(f"running for {self._scenario.duration_s:g} s")
            with _punctual():
                self._follow(self._schedule())
        except KeyboardInterrupt:
            self._interrupted = True
            self._say("interrupted: keeping what was seen")
        except BrokenPipeError as error:
            raise EmulatorError(f"the wire ended: {self._wire_words()}") from error
        self._ended_ns = min(time.monotonic_ns() - self._zero_ns, int(self._scenario.duration_s * 1e9))
        for over in self._slow:
            over.set()
        stuck = end_all(self._nodes)
        self._findings += [(self._ended_ns, name, "did not leave when told to") for name in stuck]
        if self._relay is not None:  # it has what the nodes sent when they left
            self._relay.end(_RELAY_ENDS_S)
            self._accounts = self._relay.accounts()
        self._report = self._end_wire()

    def _schedule(self) -> list[tuple[float, int, Callable[[], None]]]:
        """(second, order, what to do), the latest first."""
        entries: list[tuple[float, Callable[[], None]]] = []
        for node in self._nodes:
            index = int(node.name.rpartition("-")[2])
            entries.append((node.group.start_s + index * node.group.stagger_s, self._starter(node)))
        by_name = {node.name: node for node in self._nodes}
        for fault in self._tape:
            if fault.kind == "relay-outage" and self._relay is not None:
                entries.append((fault.at_s, self._relay.kill))
                if fault.for_s:
                    entries.append((fault.at_s + fault.for_s, self._relay.start))
            for name in fault.nodes if fault.kind in TO_PROCESSES else ():
                entries += self._trouble(fault, by_name[name])
        ordered = [(at_s, order, action) for order, (at_s, action) in enumerate(entries)]
        return sorted(ordered, key=lambda entry: entry[:2], reverse=True)

    def _starter(self, node: RealNode) -> Callable[[], None]:
        return lambda: node.let_go((time.monotonic_ns() - self._zero_ns) / SECOND)

    def _trouble(self, fault: Fault, node: RealNode) -> list[tuple[float, Callable[[], None]]]:
        over_s = fault.at_s + fault.for_s
        if fault.kind == "slow-node":
            over = threading.Event()
            self._slow.append(over)
            entries: list[tuple[float, Callable[[], None]]] = [(fault.at_s, lambda: _slow_down(node, fault, over))]
            return [*entries, (over_s, over.set)] if fault.for_s else entries
        entries = [(fault.at_s, node.kill)]
        if fault.for_s:
            entries.append((fault.at_s, node.hold))  # its next life loads while it is down
            if not fault.keep_disk:
                entries.append((fault.at_s, node.lose_disk))
            entries.append((over_s, self._starter(node)))
        return entries

    def _follow(self, schedule: list[tuple[float, int, Callable[[], None]]]) -> None:
        while True:
            passed_s = (time.monotonic_ns() - self._zero_ns) / 1e9
            while schedule and schedule[-1][0] <= passed_s:
                schedule.pop()[2]()
            if passed_s >= self._scenario.duration_s:
                return
            self._look_after(passed_s)
            next_s = min(schedule[-1][0] if schedule else self._scenario.duration_s, passed_s + _LOOK_S)
            time.sleep(max(0.0, next_s - (time.monotonic_ns() - self._zero_ns) / 1e9))

    def _look_after(self, passed_s: float) -> None:
        for node in self._nodes:
            if node.ended_unasked():
                node.wanted = False
                self._findings.append((int(passed_s * 1e9), node.name, f"ended by itself: {node.last_words()}"))
        assert self._wire is not None, "set_up() starts it"
        if self._wire.poll() is not None:
            raise EmulatorError(f"the wire ended after {passed_s:.1f} s: {self._wire_words()}")

    # --- after -----------------------------------------------------------------------------------------------------
    def _end_wire(self) -> WireReport:
        wire = self._wire
        assert wire is not None, "set_up() starts it"
        try:
            output, _ = wire.communicate(timeout=_WIRE_ENDS_S)  # closes its input, which tells it
            return msgspec.json.decode(output, type=WireReport)
        except (subprocess.TimeoutExpired, msgspec.DecodeError) as error:
            wire.kill()
            raise EmulatorError(f"the wire gave no report: {self._wire_words()}") from error

    def _wire_words(self) -> str:
        with suppress(OSError):
            return (self._folder / "wire.log").read_text(errors="replace")[-600:].strip() or "no word"
        return "no word"

    def close(self) -> None:
        """End what still runs, at once."""
        for over in self._slow:
            over.set()
        end_all(self._nodes, 0.0)
        if self._relay is not None:
            self._relay.kill()
        if self._wire is not None:
            self._wire.kill()
            self._wire.communicate()
        for network in self._networks:
            network.close()

    def result(self, began_s: float, keep: Path | None) -> Result:
        """What came of it."""
        scenario, seed = self._scenario, self._seed
        if keep is not None:
            self._keep(keep)
        recording = Recording(scenario)
        where = places(scenario, Random(f"{seed}/places"))
        media = Media(scenario, where, Random(f"{seed}/links"))
        disturbances = Disturbances(scenario.names, self._tape, media)
        observation = Observation(scenario, recording, where, media, disturbances)
        for node in self._nodes:
            observation.subscribed(node.name, frozenset(subscriptions(scenario, node.group)))
        lines = read_journals({node.name: node.journal for node in self._nodes}, self._zero_ns, self._ended_ns)
        found = observation.replay(lines, self._ended_ns)
        for at_ns, name, what in self._findings:
            recording.judge("processes_live", False, f"{name} {what}", at_ns)
        failed = {name for _, name, _ in self._findings}
        for name in scenario.names:
            if name not in failed:
                recording.judge("processes_live", True, "", self._ended_ns)
        for account in self._accounts:
            detail = (
                f"{account.origin}: of {account.issued} records {account.stored} are stored, the rest is unexplained"
            )
            recording.judge("records_accounted_for", account.adds_up, detail, self._ended_ns)
        for at_ns, what, fault in _told(self._tape):
            if at_ns <= self._ended_ns:
                recording.occurred(what, at_ns, ", ".join(fault.nodes), ", ".join(fault.others))
        for second, share in enumerate(self._report.load):
            recording.busy(second * 1_000_000_000, share)
        result = recording.result(
            "emulator", seed, round(self._ended_ns / 1e9, 3), round(time.monotonic() - began_s, 3), faults=self._tape
        )
        self._fill_in(result, found)
        return result

    def _fill_in(self, result: Result, found: Found) -> None:
        report = self._report
        bound_ms = late_bound_ms(self._scenario)
        result.versions = {"python": platform.python_version(), "kernel": platform.release(),
                           "cores": str(os.cpu_count() or 1)}  # fmt: skip
        if report.late.p99_ms > bound_ms:
            result.valid = False
            result.why_invalid = (
                f"the wire was {report.late.p99_ms:.2f} ms late at p99, more than {bound_ms:.2f} ms: this host is too "
                "busy for so many nodes"
            )
        elif self._interrupted:
            result.valid, result.why_invalid = False, f"interrupted after {result.virtual_s:.1f} s"
        result.drops = dict(sorted(found.drops.items()))
        result.counters |= dict(sorted(found.counters.items()))
        figures = {
            "wire_late_p50_ms": report.late.p50_ms, "wire_late_p99_ms": report.late.p99_ms,
            "wire_late_max_ms": report.late.max_ms, "wire_late_bound_ms": bound_ms, "wire_cpu_s": report.cpu_s,
            "wire_realtime": float(report.realtime), "wire_frames": float(report.delivered),
            "wire_lost": float(report.lost), "wire_overflowed": float(report.overflowed),
            "nodes_cpu_s": found.node_cpu_s, "last_start_s": found.last_start_s,
            "pairs_found": float(found.found_pairs), "pairs_linked": float(found.linked_pairs),
        }  # fmt: skip
        if self._relay is not None:
            figures["records_issued"] = float(sum(account.issued for account in self._accounts))
            figures["records_stored"] = float(sum(account.stored for account in self._accounts))
        if found.found_all_s is not None:
            figures["found_all_s"] = found.found_all_s
        if found.linked_all_s is not None:
            figures["linked_all_s"] = found.linked_all_s
            result.figures["nodes_cpu_until_linked_s"] = _cpu_until(found, found.last_start_s + found.linked_all_s)
        result.figures |= {name: round(value, 4) for name, value in figures.items()}

    def _keep(self, keep: Path) -> None:
        """Journals and what processes wrote to standard error; no keys."""
        keep.mkdir(parents=True, exist_ok=True)
        for node in self._nodes:
            for source, suffix in ((node.journal, "jsonl"), (node.errors, "log")):
                if source.exists():
                    (keep / f"{node.name}.{suffix}").write_bytes(source.read_bytes())


@contextmanager
def _punctual() -> Iterator[None]:
    """Starts and faults are on time though nodes run before all else."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(HARNESS_URGENCY))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, *before)


def late_bound_ms(scenario: Scenario) -> float:
    """How late the wire may be at p99."""
    return min(MOST_LATE_MS, max(LEAST_LATE_MS, LATE_SHARE * scenario.radio.latency_ms))


def _told(tape: tuple[Fault, ...]) -> list[tuple[int, str, Fault]]:
    """What happens when, in the simulator's words."""
    told: list[tuple[int, str, Fault]] = [(round(fault.at_s * SECOND), fault.kind, fault) for fault in tape]
    for fault in tape:
        if fault.for_s:
            back = "restart" if fault.keep_disk else "restart without disk"
            what = back if fault.kind == "crash" else f"{fault.kind} over"
            told.append((round((fault.at_s + fault.for_s) * SECOND), what, fault))
    return sorted(told, key=lambda entry: entry[0])


def _cpu_until(found: Found, second: float) -> float:
    return max((cpu_s for at_s, cpu_s in found.cpu_at if at_s <= second + 1.0), default=0.0)


def _slow_down(node: RealNode, fault: Fault, over: threading.Event) -> None:
    """Stop the process for most of each period, so that it gets its share of the time."""
    threading.Thread(target=_pulse, args=(node, fault.factor, over), name="pulse", daemon=True).start()


def _pulse(node: RealNode, factor: float, over: threading.Event) -> None:
    while not over.is_set():
        node.stop()
        over.wait(_PULSE_S * (1 - 1 / factor))
        node.go_on()
        over.wait(_PULSE_S / factor)
