"""The emulator: its wire on socket pairs, its networks and real nodes as root, and what it leaves behind: nothing."""

import contextlib
import fcntl
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from sims.emulator import namespaces, run
from sims.emulator.air import wire
from sims.emulator.air.disturbances import Disturbances
from sims.emulator.air.wire import Wire, WireReport
from sims.emulator.namespaces import address_of, hardware_address_of, open_network
from sims.emulator.run import emulate
from sims.emulator.workplace import PREFIX, remove_leftovers, workplace
from sims.errors import EmulatorError
from sims.media.wires import Wires
from sims.results.result import Result
from sims.roads.mobility import Map
from sims.scenario.file import FAULT_KINDS, Cut, Fault, Fixed, Group, Inference, Radio, Scenario, Spread, Traffic
from tests.tools.emulator_fixture import (
    POSSIBLE,
    WHY_NOT,
    as_root,
    children_of,
    command_of,
    emulation,
    processes_below,
)
from tests.tools.eventually import LIMIT_S, eventually

pytestmark = pytest.mark.processes

MS = 1_000_000

THREE = Scenario(
    "three", "three nodes, one of which crashes", 9.0,
    (Group("car", 3, Fixed(((0.0, 0.0), (20.0, 0.0), (40.0, 0.0))), relay=True),),
    radio=Radio(bit_rate_mbps=100.0), traffic=(Traffic("car"),), gossip=(Spread(2.5, "car-0"),),
    faults=(Fault("crash", 3.0, 1.5, ("car-2",)), Fault("partition", 5.4, 0.4, ("car-0",), ("car-1",)),
            Fault("relay-outage", 4.0, 1.5)),
)  # fmt: skip


# --- the wire --------------------------------------------------------------------------------------------------------
class _Air:
    """A running wire between socket pairs instead of TAPs."""

    def __init__(self, links: Wires, nodes: int) -> None:
        links.nodes = nodes
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(nodes)]
        self.nodes = [pair[0] for pair in pairs]
        self._taps = [pair[1] for pair in pairs]
        for tap in self._taps:
            tap.setblocking(False)
        for node in self.nodes:
            node.settimeout(LIMIT_S)
        self._stop, self._stopped = socket.socketpair()
        macs = [hardware_address_of(node) for node in range(nodes)]
        self.wire = Wire(
            [tap.fileno() for tap in self._taps], macs, links, Map(nodes), _no_disturbances(), time.monotonic_ns()
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.report = self.wire.run(self._stopped.fileno())

    def end(self) -> WireReport:
        self._stop.close()
        self._thread.join(LIMIT_S)
        for end in (*self.nodes, *self._taps, self._stopped):
            end.close()
        return self.report


def _no_disturbances() -> Disturbances:
    return Disturbances([], [], _Notes())


def _frame(target: int | None, sender: int, text: bytes) -> bytes:
    """``target`` None: to everybody."""
    to = b"\x01\x00\x5e\x00\x00\xfb" if target is None else hardware_address_of(target)
    return to + hardware_address_of(sender) + b"\x08\x00" + text


@pytest.fixture
def air() -> Iterator[Callable[[Wires, int], _Air]]:
    made: list[_Air] = []

    def make(links: Wires, nodes: int) -> _Air:
        made.append(_Air(links, nodes))
        return made[-1]

    yield make
    for each in made:
        each.end()


def _silent(node: socket.socket, for_s: float = 0.05) -> bool:
    node.settimeout(for_s)
    try:
        node.recv(2_000)
    except TimeoutError:
        return True
    return False


def test_wire_unicast_frame_reaches_its_node_alone_after_the_delay(air: Callable[[Wires, int], _Air]) -> None:
    """A frame for one node that others saw would be a hub, and one that came early a faster radio."""
    running = air(Wires(30 * MS), 3)
    before_s = time.monotonic()
    running.nodes[0].send(_frame(2, 0, b"hello"))
    assert running.nodes[2].recv(2_000) == _frame(2, 0, b"hello")
    assert time.monotonic() - before_s > 0.028
    assert _silent(running.nodes[1])
    assert _silent(running.nodes[0])


def test_wire_multicast_frame_reaches_everybody_else_once(air: Callable[[Wires, int], _Air]) -> None:
    """Discovery lives on it; an echo to the sender would be a second node with its address."""
    running = air(Wires(MS), 3)
    running.nodes[0].send(_frame(None, 0, b"who"))
    for node in running.nodes[1:]:
        assert node.recv(2_000) == _frame(None, 0, b"who")
        assert _silent(node)
    assert _silent(running.nodes[0])


def test_wire_frames_of_a_pair_keep_their_order_despite_jitter(air: Callable[[Wires, int], _Air]) -> None:
    """TCP takes frames out of order for loss; the link layer of 802.11 delivers a pair's frames in order."""

    class Jittery(Wires):
        def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
            self.delay_ns = max(self.delay_ns - 3 * MS, MS)
            return now_ns + self.delay_ns

    running = air(Jittery(40 * MS), 2)
    for number in range(10):
        running.nodes[0].send(_frame(1, 0, bytes([number])))
    assert [running.nodes[1].recv(2_000)[-1] for _ in range(10)] == list(range(10))


def test_wire_counts_what_is_lost_and_what_is_for_nobody(air: Callable[[Wires, int], _Air]) -> None:
    """The report is how a run is judged: nothing may vanish uncounted."""
    links = Wires(MS)
    links.cut(0, 1)
    running = air(links, 2)
    running.nodes[0].send(_frame(1, 0, b"lost"))
    running.nodes[0].send(_frame(7, 0, b"nobody"))
    running.nodes[1].send(_frame(0, 1, b"back"))
    assert running.nodes[0].recv(2_000).endswith(b"back")
    assert _silent(running.nodes[1])
    report = running.end()
    assert (report.unicast, report.lost, report.unknown, report.delivered) == (3, 1, 1, 1)
    assert 0 <= report.late.p50_ms <= report.late.max_ms + 0.05


def test_wire_full_of_frames_drops_and_counts(
    air: Callable[[Wires, int], _Air], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow medium with a busy sender must not take all memory."""
    monkeypatch.setattr(wire, "MAX_UNDER_WAY", 4)
    all_sent = threading.Event()

    class Held(Wires):
        def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
            assert all_sent.wait(LIMIT_S)
            return super().frame_ns(sender, receiver, size_bytes, now_ns)

    running = air(Held(50 * MS), 2)
    for number in range(10):
        running.nodes[0].send(_frame(1, 0, bytes([number])))
    all_sent.set()  # the wire reads them in one turn
    assert [running.nodes[1].recv(2_000)[-1] for _ in range(4)] == [0, 1, 2, 3]
    assert running.end().overflowed == 6


# --- faults on the air -----------------------------------------------------------------------------------------------
class _Notes:
    """An overlay that notes what is set."""

    def __init__(self) -> None:
        self.cuts: list[tuple[int, int]] = []
        self.losses: dict[tuple[int, int], float] = {}
        self.clogs: dict[tuple[int, int], int] = {}

    def cut(self, sender: int, receiver: int) -> None:
        self.cuts.append((sender, receiver))

    def uncut(self, sender: int, receiver: int) -> None:
        self.cuts.remove((sender, receiver))

    def lose(self, sender: int, receiver: int, share: float) -> None:
        self.losses[sender, receiver] = share

    def clog(self, sender: int, receiver: int, delay_ns: int) -> None:
        self.clogs[sender, receiver] = delay_ns

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


def test_disturbances_begin_and_end_on_the_air_as_on_the_tape() -> None:
    """The same tape has to do the same in both harnesses: a partition both ways, a loss one way, each in its time."""
    notes = _Notes()
    tape = [
        Fault("partition", 1.0, 2.0, ("a",), ("b", "c")),
        Fault("one-way-loss", 2.0, 2.0, ("c",), ("b",), share=0.5),
        Fault("crash", 1.0, 1.0, ("a",)),
    ]
    disturbances = Disturbances(["a", "b", "c"], tape, notes)
    disturbances.advance(999 * MS)
    assert not notes.cuts
    disturbances.advance(1_000 * MS)
    assert sorted(notes.cuts) == [(0, 1), (0, 2), (1, 0), (2, 0)]
    disturbances.advance(2_500 * MS)
    assert notes.losses == {(2, 1): 0.5}
    assert len(notes.cuts) == 4
    disturbances.advance(3_100 * MS)
    assert not notes.cuts
    assert notes.losses == {(2, 1): 0.5}
    disturbances.advance(4_000 * MS)
    assert not notes.losses


def test_disturbances_that_overlap_have_the_strongest_hold() -> None:
    """As in the simulator; the sum of two clogs would be a third."""
    notes = _Notes()
    tape = [
        Fault("clog", 0.0, 9.0, ("a",), ("b",), delay_ms=50.0),
        Fault("clog", 1.0, 2.0, ("a",), ("b",), delay_ms=80),
    ]
    disturbances = Disturbances(["a", "b"], tape, notes)
    seen = []
    for second in (0, 1, 4):
        disturbances.advance(second * 1_000 * MS)
        seen.append(notes.clogs[0, 1] // MS)
    assert seen == [50, 80, 50]


# --- folders ---------------------------------------------------------------------------------------------------------
def test_workplace_left_by_a_killed_run_is_removed_by_the_next(tmp_path: Path) -> None:
    """It holds private keys."""
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / "lock").touch()
    (left / "car-0.key").touch()
    with workplace(tmp_path) as folder:
        assert not left.exists()
        assert folder.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_workplace_in_use_is_left_alone(tmp_path: Path) -> None:
    """Two emulations of one host must not take away each other's keys."""
    with workplace(tmp_path) as used:
        assert remove_leftovers(tmp_path) == 0
        young = tmp_path / f"{PREFIX}young"
        young.mkdir()  # somebody is about to lock it
        assert remove_leftovers(tmp_path) == 0
        assert used.exists()
        young.rmdir()


# --- who may ---------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes nobody")
def test_emulator_without_root_says_so_and_what_still_works() -> None:
    """The most common way to start it wrong."""
    program = (
        "import os\nfrom sims.emulator.namespaces import check_possible\nfrom sims.errors import EmulatorError\n"
        "os.setuid(65534)\ntry:\n    check_possible()\nexcept EmulatorError as error:\n    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "needs root, this is user 65534" in told
    assert "meshsim run" in told


def test_emulator_without_tap_says_which_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers have root but often no /dev/net/tun: the way out is an option of the container."""
    monkeypatch.setattr(namespaces, "TUN", tmp_path / "tun")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(EmulatorError, match=r"tun is missing.*--device.*meshsim run"):
        namespaces.check_possible()


@as_root
def test_emulator_refuses_more_nodes_than_it_starts() -> None:
    """Sixty-five processes where somebody slipped with a digit would take a laptop down."""
    with pytest.raises(EmulatorError, match="has 65 nodes"):
        emulate(replace(THREE, groups=(Group("car", 65, Fixed(((0.0, 0.0),) * 65)),), faults=(), gossip=()), 1)


@as_root
@pytest.mark.parametrize(("work", "says"), [
    (Inference("car", private=True), r"has private = true in inference\[0\]"),
    (Inference("car", cuts=(Cut(0.5, 9),)), r"has cuts in inference\[0\], which the models of an emulation don't know"),
])  # fmt: skip
def test_emulator_refuses_models_that_it_would_compute_otherwise(work: Inference, says: str) -> None:
    """A model that is never cut would look like splitting that gains nothing."""
    with pytest.raises(EmulatorError, match=says):
        emulate(replace(THREE, inference=(work,)), 1)


@as_root
def test_emulator_refuses_a_fault_that_it_would_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that silently never happens would be a false proof."""
    monkeypatch.setattr(run, "SUPPORTED", frozenset({"crash", "partition"}))
    with pytest.raises(EmulatorError, match="has relay-outage, which can't be done to real nodes"):
        emulate(THREE, 1)


def test_emulator_does_every_fault_that_a_scenario_can_have() -> None:
    """A new kind has to be done to real processes, or to be taken off this list on purpose."""
    assert frozenset(FAULT_KINDS) == run.SUPPORTED


@as_root
def test_network_of_a_node_has_its_address_and_no_name() -> None:
    """What has a name can be left behind; what belongs to a descriptor goes with it."""
    before = sorted(Path("/run/netns").iterdir()) if Path("/run/netns").exists() else []
    network = open_network(3, 5)
    try:
        program = (
            "import ctypes, fcntl, os, socket, struct, sys\n"
            f"ctypes.CDLL(None).setns({network.namespace}, 0x40000000)\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "print(socket.inet_ntoa(fcntl.ioctl(s, 0x8915, struct.pack('40s', b'wlan0'))[20:24]))\n"
            "print(len(open('/proc/thread-self/net/arp').read().splitlines()) - 1)\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", program], pass_fds=[network.namespace], capture_output=True, text=True, check=True
        ).stdout
        assert told.split() == [address_of(3), "4"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours, pytest.raises(OSError):
            fcntl.ioctl(ours, 0x8915, struct.pack("40s", b"wlan0"))  # this process is where it was
    finally:
        network.close()
    assert (sorted(Path("/run/netns").iterdir()) if Path("/run/netns").exists() else []) == before


# --- real nodes ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run of three real nodes, looked at by several tests."""
    return emulation(THREE, tmp_path_factory, undisturbed)


def undisturbed(result: Result) -> bool:
    """Whether no process stood still, or took so long to load, that others died meanwhile or came back too late."""
    return (
        result.valid
        and result.latency.quantiles.get("p50", math.inf) < 6.0
        and lives_and_deaths(result) == ["crash", "death", "death", "restart"]
        and result.discovery.count >= 10
        and result.figures["pairs_linked"] == 6
    )


def lives_and_deaths(result: Result) -> list[str]:
    """In order."""
    return [entry.kind for entry in result.happenings if entry.kind in {"crash", "death", "restart"}]


def test_emulation_real_nodes_find_each_other_and_deliver(emulated: tuple[Result, Path]) -> None:
    """From mDNS over TLS to callbacks: the whole way, on the emulated air."""
    result, _ = emulated
    assert result.valid, result.why_invalid
    assert result.harness == "emulator"
    assert not result.broken, result.checks
    assert result.checks["readings_once_and_in_order"].passed > 200
    assert result.discovery.count >= 10  # six pairs, and four once more after the restart
    assert result.latency.count == result.counters["delivered"]


def test_emulation_latency_is_that_of_the_air_and_a_little(emulated: tuple[Result, Path]) -> None:
    """Less than the model's 2 ms: the wire let something through. Twice as much: the harness measures itself."""
    result, _ = emulated
    assert 2.0 < result.latency.quantiles["p50"] < 6.0


def test_emulation_crash_is_noticed_and_the_restart_is_met(emulated: tuple[Result, Path]) -> None:
    """Faults have to happen to real processes as they are written."""
    result, journals = emulated
    assert result.sometimes["crash"] == result.sometimes["restart"] == 1
    deaths = [entry for entry in result.happenings if entry.kind == "death" and entry.other == "car-2"]
    assert {entry.node for entry in deaths} == {"car-0", "car-1"}
    assert lives_and_deaths(result) == ["crash", "death", "death", "restart"]
    lives = (journals / "car-2.jsonl").read_text().count('["started"')
    assert lives == 2
    assert result.figures["pairs_linked"] == 6


def test_emulation_entry_of_the_scenario_is_spread(emulated: tuple[Result, Path]) -> None:
    """Dissemination is one of the three figures that the harnesses are compared by."""
    result, _ = emulated
    entries = [entry for entry in result.dissemination if entry.author == "car-0/spread"]
    assert len(entries) == 1
    assert entries[0].holders == 3
    assert entries[0].t50_s is not None
    assert entries[0].t50_s > 0.002


def test_emulation_records_reach_the_relay_and_are_accounted_for(emulated: tuple[Result, Path]) -> None:
    """The real relay, behind the cellular model, away for a while: its own audit has to add up."""
    result, _ = emulated
    assert result.sometimes["relay-outage"] == 1
    assert result.checks["records_accounted_for"].passed == 3
    # Three cars make one a second each. How many of them are there in time is up to the computer.
    assert result.figures["records_issued"] >= result.figures["records_stored"] >= 6


def test_emulation_reports_its_lateness_and_processor_time(emulated: tuple[Result, Path]) -> None:
    """Without them nobody can tell a slow mesh from a slow host."""
    figures = emulated[0].figures
    assert 0 < figures["wire_late_p50_ms"] <= figures["wire_late_p99_ms"] <= figures["wire_late_bound_ms"]
    assert figures["nodes_cpu_s"] > 0.1
    assert figures["wire_frames"] > 500


def test_emulation_that_ended_leaves_no_process_and_no_folder(emulated: tuple[Result, Path]) -> None:
    """Forty forgotten nodes fill a laptop."""
    assert emulated[0].nodes == 3
    commands = [command_of(child) for child in children_of(os.getpid())]  # others may emulate on this host as well
    assert not [command for command in commands if PREFIX in command or "sims.emulator" in command]


# --- the harness ends otherwise --------------------------------------------------------------------------------------
TROUBLED = """
name = "troubled"
description = "a pair, one with a full disk of its own, one with a liar on its host"
duration_s = 60
checks = { settle_s = 0 }
groups = [{ name = "car", count = 2, mobility = { kind = "fixed", points = [[0, 0], [20, 0]] } }]
[[faults]]
kind = "full-disk"
at_s = 0.3
nodes = ["car-0"]
[[faults]]
kind = "false-adverts"
at_s = 0.0
nodes = ["car-1"]
"""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """``meshsim emulate`` of the pair below, with nodes that run, working below ``tmp_path / 'work'``."""
    if not POSSIBLE:
        pytest.skip(WHY_NOT)
    work = tmp_path / "work"
    work.mkdir()
    scenario = tmp_path / "troubled.toml"
    scenario.write_text(TROUBLED)
    process = subprocess.Popen(
        [sys.executable, "-c", "from sims.cli.main import main; main()", "emulate", str(scenario), "--json"],
        env={**os.environ, "TMPDIR": str(work)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        eventually(
            lambda: sum('["ready"' in p.read_text() for p in work.glob(f"{PREFIX}*/car-*/journal.jsonl")) == 2, "both"
        )
        yield process
    finally:
        with contextlib.suppress(OSError):
            process.kill()
        process.communicate()


def test_harness_killed_leaves_no_process_and_the_next_removes_its_folder(
    harness: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """SIGKILL gives no chance to clean up: the kernel has to, and the next run what the kernel can't."""
    work = tmp_path / "work"
    children = children_of(harness.pid)
    commands = " ".join(map(command_of, children))
    assert len(processes_below(str(work))) == commands.count(" trial ") == 2
    assert "sims.emulator.air.process" in commands
    assert "sims.emulator.liar" in commands
    harness.kill()
    harness.wait()
    eventually(lambda: not any(map(command_of, children)), "all processes are gone")
    assert len(list(work.iterdir())) == 1
    with workplace(work) as folder:  # a disk that was still mounted could not be removed
        assert [path.name for path in work.iterdir()] == [folder.name]


def test_harness_interrupted_keeps_what_was_seen_and_leaves_nothing(
    harness: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """Whoever presses Ctrl-C after an hour wants the hour, and the computer back."""
    journals = list((tmp_path / "work").glob(f"{PREFIX}*/car-*/journal.jsonl"))
    eventually(lambda: all('["met"' in journal.read_text() for journal in journals), "there is something to keep")
    harness.send_signal(signal.SIGINT)
    output, errors = harness.communicate(timeout=60)
    assert harness.returncode == 130, errors
    told = json.loads(output)
    assert told["valid"] is False
    assert told["why_invalid"].startswith("interrupted after")
    assert told["discovery"]["count"] == 2
    assert not processes_below(str(tmp_path))
    assert not list((tmp_path / "work").iterdir())
