"""One emulation, from its first certificate to its result.

First come networks, certificates, nodes that are loaded and held, and the wire. Then comes the run, whose instant 0 all
processes know. At last everything ends, and the journals are read. Ctrl-C ends the run early and keeps what was seen
until then. Networks have no names, and processes are bound to this one, so that nothing survives it, however it ends.

Left out: drift of the monotonic clocks, which all processes of a host share, and classes of computers. Only the time of
models follows the class; everything else takes what it takes here.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import msgspec

from protocols.base.limits import SECOND
from sims.emulator.air.disturbances import ON_THE_AIR
from sims.emulator.air.process import Job
from sims.emulator.air.wire import WireReport
from sims.emulator.hosts import ON_HOSTS, Hosts
from sims.emulator.lies import LIAR_LOG
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
from sims.emulator.workplace import workplace
from sims.errors import EmulatorError
from sims.media.media import Media
from sims.results.recorder import Recording
from sims.results.result import Result
from sims.roads.mobility import places
from sims.scenario.file import Fault, Scenario
from sims.world.faults import Faults, plan

MAX_NODES = 64
"""The most nodes, which are processes of 60 MB each: more would fill most laptops."""
SUPPORTED = ON_THE_AIR | ON_HOSTS | {"relay-outage"}
LATE_SHARE = 0.25
"""How late the wire may be at p99, as a share of the radio's latency: a later wire is another radio. 0.25 is how far
the two harnesses may be apart in a comparison."""
LEAST_LATE_MS = 1.0
MOST_LATE_MS = 20.0
_LEAD_S = 0.5
"""How long before the start of the run all processes know it. In this time the wire makes its models."""
_LOOK_S = 0.25
_WIRE_ENDS_S = 10.0
_RELAY_ENDS_S = 10.0

Say = Callable[[str], None]


def emulate(scenario: Scenario, seed: int, say: Say = lambda _: None, keep: Path | None = None) -> Result:
    """Run the scenario with real nodes. It takes the scenario's duration and about a second for each node.

    ``keep``: a folder for the journals. Ctrl-C during the run ends it early; the result says so.

    :raises EmulatorError: when this host can't, or the scenario has what an emulation does not; names it.
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
    for place, asked in enumerate(scenario.inference):
        has = "cuts" if asked.cuts else "rows" if asked.rows > 1 else "private = true" if asked.private else ""
        if has:
            raise EmulatorError(
                f"{scenario.name} has {has} in inference[{place}], which the models of an emulation don't know: leave "
                f"it out, or simulate; {STILL_WORKS}"
            )
    if scenario.releases is not None:
        raise EmulatorError(
            f"{scenario.name} has [releases], which an emulation does not publish: leave it out, or simulate; "
            f"{STILL_WORKS}"
        )
    if scenario.has_rules:
        raise EmulatorError(
            f"{scenario.name} has rules, expected records or own_readings = false in [curation], which an emulation "
            f"does not use: leave them out, or simulate; {STILL_WORKS}"
        )
    for place, traffic in enumerate(scenario.traffic):
        if traffic.value != "zeros":
            raise EmulatorError(
                f"{scenario.name} has value = {traffic.value!r} in traffic[{place}], which nodes of an emulation don't "
                f"sense: leave it out, or simulate; {STILL_WORKS}"
            )
    tape = plan(scenario, seed)
    if unsupported := sorted({fault.kind for fault in tape} - SUPPORTED):
        raise EmulatorError(
            f"{scenario.name} has {', '.join(unsupported)}, which can't be done to real nodes on one host (possible "
            f"are {', '.join(sorted(SUPPORTED))}): leave it out, or simulate; {STILL_WORKS}"
        )
    return tape


class Emulation:
    """One emulation: :meth:`set_up`, :meth:`run`, :meth:`result`, and :meth:`close` whatever happened."""

    def __init__(self, scenario: Scenario, seed: int, tape: tuple[Fault, ...], folder: Path, say: Say) -> None:
        self._scenario, self._seed, self._tape, self._folder, self._say = scenario, seed, tape, folder, say
        self._networks: list[Network] = []
        self._nodes: list[RealNode] = []
        self._relay: RealRelay | None = None
        self._accounts: list[Account] = []
        self._wire: subprocess.Popen[bytes] | None = None
        self._report = WireReport()
        self._zero_ns = 0
        self._ended_ns = 0
        self._interrupted = False
        self._findings: list[tuple[int, str, str]] = []
        self._hosts: Hosts | None = None
        self._recording = Recording(scenario)

    # --- before ----------------------------------------------------------------------------------------------------
    def set_up(self) -> None:
        """Make everything, up to where it waits. :raises EmulatorError: when something could not be made."""
        names = self._scenario.names
        hosts = len(names) + has_relay(self._scenario)
        for number in range(hosts):
            self._networks.append(open_network(number, hosts))
        self._say(f"{len(names)} networks; making certificates")
        self._nodes = prepare(self._scenario, self._folder, self._networks, self._tape, self._seed)
        command = [sys.executable, "-m", "sims.emulator.air.process"]
        taps = [network.tap for network in self._networks]
        self._wire = launch(command, None, taps, WIRE_URGENCY, errors=self._folder / "wire.log")
        self._say(f"loading {len(names)} nodes")
        hold_all(self._nodes)
        if hosts > len(names):
            self._relay = RealRelay(len(names), self._networks[-1], self._folder / MESH_RELAY)
            self._relay.start()
            self._relay.wait_until_ready()
        self._hosts = Hosts(self._nodes, self._relay, self._tape, self._seed)

    # --- the run ---------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Run from instant 0 to the end of the scenario, or to Ctrl-C."""
        self._zero_ns = time.monotonic_ns() + int(_LEAD_S * 1e9)
        taps = tuple(network.tap for network in self._networks)
        job = Job(self._scenario, self._seed, self._tape, taps, self._zero_ns)
        assert self._wire is not None, "set_up() starts it"
        assert self._wire.stdin is not None, "launch() gives it a pipe"
        assert self._hosts is not None, "set_up() knows them"
        self._hosts.begin(self._zero_ns)
        Faults(self._tape, self._scenario, self._hosts, self._recording).arm()
        try:
            self._wire.stdin.write(msgspec.json.encode(job) + b"\n")
            self._wire.stdin.flush()
            self._say(f"running for {self._scenario.duration_s:g} s")
            with _punctual():
                self._follow(self._hosts)
        except KeyboardInterrupt:
            self._interrupted = True
            self._say("interrupted: keeping what was seen")
        except BrokenPipeError as error:
            raise EmulatorError(f"the wire ended: {self._wire_words()}") from error
        self._ended_ns = min(time.monotonic_ns() - self._zero_ns, int(self._scenario.duration_s * 1e9))
        self._hosts.end()
        stuck = end_all(self._nodes)
        self._findings += [(self._ended_ns, name, "did not leave when told to") for name in stuck]
        if self._relay is not None:  # it has what the nodes sent when they left
            self._relay.end(_RELAY_ENDS_S)
            self._accounts = self._relay.accounts()
        self._report = self._end_wire()

    def _follow(self, hosts: Hosts) -> None:
        while True:
            due_ns, passed_s = hosts.play(), hosts.now / SECOND
            if passed_s >= self._scenario.duration_s:
                return
            self._look_after(passed_s)
            hosts.look_after()
            end_s = min(self._scenario.duration_s, passed_s + _LOOK_S)
            next_s = end_s if due_ns is None else min(end_s, due_ns / SECOND)
            time.sleep(max(0.0, next_s - (time.monotonic_ns() - self._zero_ns) / SECOND))

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
            output, _ = wire.communicate(timeout=_WIRE_ENDS_S)  # this closes its input, which tells it to end
            return msgspec.json.decode(output, type=WireReport)
        except (subprocess.TimeoutExpired, msgspec.DecodeError) as error:
            wire.kill()
            raise EmulatorError(f"the wire gave no report: {self._wire_words()}") from error

    def _wire_words(self) -> str:
        with suppress(OSError):
            return (self._folder / "wire.log").read_text(errors="replace")[-600:].strip() or "no word"
        return "no word"

    def close(self) -> None:
        """End everything that still runs, at once."""
        if self._hosts is not None:
            self._hosts.end()
        end_all(self._nodes, 0.0)
        for node in self._nodes:
            if node.disk is not None:
                node.disk.close()
        if self._relay is not None:
            self._relay.kill()
        if self._wire is not None:
            self._wire.kill()
            self._wire.communicate()
        for network in self._networks:
            network.close()

    def result(self, began_s: float, keep: Path | None) -> Result:
        """The result of what was seen."""
        scenario, seed = self._scenario, self._seed
        if keep is not None:
            self._keep(keep)
        recording = self._recording
        where = places(scenario, Random(f"{seed}/places"))
        media = Media(scenario, where, Random(f"{seed}/links"))
        observation = Observation(scenario, self._tape, recording, where, media)
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
        for second, share in enumerate(self._report.load):
            recording.busy(second * 1_000_000_000, share)
        result = recording.result(
            "emulator", seed, round(self._ended_ns / 1e9, 3), round(time.monotonic() - began_s, 3), faults=self._tape
        )
        self._fill_in(result, found)
        if where.left_out.rows:
            result.counters["trace_rows_left_out"] = where.left_out.rows
        return result

    def _fill_in(self, result: Result, found: Found) -> None:
        report = self._report
        bound_ms = late_bound_ms(self._scenario)
        result.versions = {"python": platform.python_version(), "kernel": platform.release(),
                           "cores": str(os.cpu_count() or 1)}  # fmt: skip
        if self._interrupted:  # told first: whoever interrupts a run asks for its status
            result.valid, result.why_invalid = False, f"interrupted after {result.virtual_s:.1f} s"
        elif report.late.p99_ms > bound_ms:
            result.valid = False
            result.why_invalid = (
                f"the wire was {report.late.p99_ms:.2f} ms late at p99, more than {bound_ms:.2f} ms: this host is too "
                "busy for so many nodes"
            )
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
        """Keep the journals and what processes wrote to standard error, but no keys."""
        keep.mkdir(parents=True, exist_ok=True)
        for node in self._nodes:
            files = ((node.journal, "jsonl"), (node.errors, "log"), (node.folder / LIAR_LOG, LIAR_LOG))
            for source, suffix in files:
                if source.exists():
                    (keep / f"{node.name}.{suffix}").write_bytes(source.read_bytes())


@contextmanager
def _punctual() -> Iterator[None]:
    """Keep starts and faults on time though nodes run before all other processes."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(HARNESS_URGENCY))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, *before)


def late_bound_ms(scenario: Scenario) -> float:
    """How late the wire may be at p99, in milliseconds."""
    return min(MOST_LATE_MS, max(LEAST_LATE_MS, LATE_SHARE * scenario.radio.latency_ms))


def _cpu_until(found: Found, second: float) -> float:
    return max((cpu_s for at_s, cpu_s in found.cpu_at if at_s <= second + 1.0), default=0.0)
