"""Real nodes as processes: their certificates, configurations and trial plans, their starts and ends.

``meshnode mesh`` makes the certificates, and nodes run as ``meshnode trial``. The harness knows nodes only by their
command line and their journals, and imports none of their code.

A node is started *held*: it loads everything and then waits for a line on its standard input. So nodes start when the
scenario says, not when this host has loaded them.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from protocols.base.limits import MS
from sims.emulator.disks import RealDisk
from sims.emulator.namespaces import Network, address_of
from sims.errors import EmulatorError
from sims.scenario.devices import DEVICES
from sims.scenario.file import Fault, Group, Scenario

NODE_URGENCY, HARNESS_URGENCY, WIRE_URGENCY = 1, 2, 3
"""Priorities among the processes that run before all others on this host; see :mod:`sims.emulator.launch`."""
URGENT_NODES_PER_CORE = 8
"""More nodes than these fill the processors when they meet. Then the 100 ms that each may run at a time make the others
lose what is sent to them: forty nodes found one another after 5.1 s instead of 1.9."""
MESH = "emulation"
MESH_RELAY = "relay-1"
"""The name of the relay in its certificate."""
RELAY_PORT = 7_450
INBOX_PORT = 7_000
GHOST = "ghost"
"""The folder, below that of a lying node, with a genuine certificate whose name is not a node of the scenario."""
ELSEWHERE = "elsewhere"
"""The same folder for a certificate of another mesh, and the name of that mesh."""
_LAUNCH = Path(__file__).with_name("launch.py")
_HOLD_S = 60.0
"""The time for one node to load everything, on a busy host."""
_ISSUE_S = 60.0
_LEAVE_S = 10.0
_SHOWN_CHARS = 600
_PHASES = 16


def program(name: str) -> list[str]:
    """The command line of ``meshnode`` or ``cloud-relay`` of this installation."""
    module = {"meshnode": "meshnode.cli", "cloud-relay": "cloud_relay"}[name]
    return [sys.executable, "-m", module]


def launch(
    command: Sequence[str], network: Network | None, descriptors: Iterable[int] = (), urgency: int = 0,
    errors: Path | None = None, disk: RealDisk | None = None,
) -> "subprocess.Popen[bytes]":  # fmt: skip
    """Start a program in a network, bound to the life of this process. It gets none of the terminal's signals."""
    namespaces = [network.namespace if network is not None else -1, disk.namespace if disk is not None else -1]
    inherited = [*descriptors, *(namespace for namespace in namespaces if namespace >= 0)]
    settings = [str(number) for number in (os.getpid(), *namespaces, urgency)]
    start = [sys.executable, "-I", "-S", str(_LAUNCH), *settings, *command]
    log = subprocess.DEVNULL if errors is None else os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - our own programs
            start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, pass_fds=inherited, start_new_session=True
        )
    finally:
        if errors is not None:
            os.close(log)


def last_words(log: Path) -> str:
    """The end of a log."""
    try:
        return log.read_text(errors="replace")[-_SHOWN_CHARS:].strip()
    except OSError:
        return ""


def end_process(process: "subprocess.Popen[bytes]", patience_s: float) -> bool:
    """Wait for the end of a process that was told to stop, and kill it after ``patience_s``. Returns whether it had to
    be killed."""
    stuck = False
    try:
        process.wait(max(0.0, patience_s))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        stuck = True
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    return stuck


class RealNode:
    """One node and its lives."""

    def __init__(self, name: str, number: int, group: Group, network: Network, folder: Path) -> None:
        self.name, self.number, self.group, self.network, self.folder = name, number, group, network, folder
        self.held: subprocess.Popen[bytes] | None = None
        self.running: subprocess.Popen[bytes] | None = None
        self.wanted = False
        """Whether it should be running. If it ends while this is true, that is reported."""
        self.urgent = False
        """Whether it runs before all other processes of this host."""
        self.disk: RealDisk | None = None
        """A disk of its own for what it stores; None: it uses the disk of this host."""
        self._told: dict[str, bytes] = {}
        self._clock_ns = self._drift_ppb = 0
        self._made_ns = time.monotonic_ns()

    @property
    def journal(self) -> Path:
        """The journal of all its lives."""
        return self.folder / "journal.jsonl"

    @property
    def errors(self) -> Path:
        """What it wrote to standard error."""
        return self.folder / "errors.log"

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        return last_words(self.errors)

    def hold(self) -> None:
        """Start its next life, up to the point where it waits."""
        command = [*program("meshnode"), "trial", str(self.folder / "node.toml"), "--plan",
                   str(self.folder / "plan.toml"), "--journal", str(self.journal), "--hold"]  # fmt: skip
        self.held = launch(command, self.network, errors=self.errors, disk=self.disk)

    def let_go(self, age_s: float) -> None:
        """Let the held life begin now, when the run is ``age_s`` old."""
        process, self.held = self.held, None
        assert process is not None, "a node is held before it is let go"
        self.running, self.wanted = process, True
        assert process.stdin is not None, "launch() gives it a pipe"
        if self.urgent:  # only now, because loading must not hold up what runs
            with contextlib.suppress(OSError):
                os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(NODE_URGENCY))
        with contextlib.suppress(BrokenPipeError):  # it died while it was loading; that is noticed as any death is
            process.stdin.write(b"".join(self._told.values()) + f"{age_s:.6f}\n".encode())
            process.stdin.flush()

    def tell(self, command: str, *arguments: Any) -> None:
        """Have the running life obey a command, as ``meshnode.trial.control`` lists it."""
        process = self.running
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):  # it has just ended, which is seen elsewhere
                process.stdin.write(msgspec.json.encode((command, *arguments)) + b"\n")
                process.stdin.flush()

    def set(self, command: str, *arguments: Any) -> None:
        """:meth:`tell` this life, and every later life before it begins."""
        self._told[command] = msgspec.json.encode((command, *arguments)) + b"\n"
        self.tell(command, *arguments)

    def kill(self) -> None:
        """Kill the process without a goodbye, as a power failure does."""
        self.wanted = False
        if self.running is not None:
            end_process(self.running, 0.0)
            self.running = None

    def set_clock(self, random: Random) -> None:
        """Draw how wrong its UTC is from the start, and how much it gains. Its monotonic clock is that of this host."""
        self._clock_ns = int(random.gauss(0, self.group.clock_skew_ms) * MS)
        self._drift_ppb = int(random.gauss(0, self.group.clock_drift_ppm) * 1_000)
        if self._clock_ns or self._drift_ppb:
            self.clock_jump(0)

    def clock_jump(self, by_ns: int) -> None:
        """Move its UTC by ``by_ns`` from now on."""
        self._clock_ns += by_ns
        self.set("clock", self._clock_ns, self._drift_ppb, self._made_ns)

    def lose_disk(self) -> None:
        """Lose what its last life stored."""
        if self.disk is not None:
            self.disk.lose()
            return
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    def stop(self) -> None:
        """Take the processor from it from now on."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undoes :meth:`stop`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        process = self.running
        if process is not None:
            process.send_signal(number)

    def ended_unasked(self) -> bool:
        """Whether its process has ended without being killed or told to leave."""
        return self.wanted and self.running is not None and self.running.poll() is not None


def prepare(
    scenario: Scenario, folder: Path, networks: Sequence[Network], tape: Sequence[Fault], seed: int
) -> list[RealNode]:
    """Write everything that the nodes need below ``folder``. Certificates are valid for a day. When there is one
    network more than nodes, it is that of the relay, whose certificate is made too. ``tape``: tells whose disk needs
    room of its own.

    :raises EmulatorError: when certificates or disks can't be made.
    """
    clocks = Random(f"{seed}/clocks")
    own_disks = frozenset(name for fault in tape if fault.kind == "full-disk" for name in fault.nodes)
    authority = folder / "authority"
    _finish(_run([*program("meshnode"), "mesh", "init", "--name", MESH, "--days", "1", str(authority)]))
    nodes: list[RealNode] = []
    issuing: list[subprocess.Popen[bytes]] = []
    groups = [group for group in scenario.groups for _ in range(group.count)]
    for number, (name, group) in enumerate(zip(scenario.names, groups, strict=True)):
        node = RealNode(name, number, group, networks[number], folder / name)
        issuing.append(_run(_issue(group.role, name, node.folder, authority)))
        nodes.append(node)
        if len(issuing) >= (os.cpu_count() or 1):
            _finish(issuing.pop(0))
    if len(networks) > len(nodes):
        issuing.append(_run(_issue("relay", MESH_RELAY, folder / MESH_RELAY, authority)))
    for name in dict.fromkeys(name for fault in tape if fault.kind == "false-adverts" for name in fault.nodes):
        issuing += _strangers(name, folder, authority)
    for process in issuing:
        _finish(process)
    phases = _phases(scenario, seed)
    for node in nodes:
        node.urgent = len(nodes) <= URGENT_NODES_PER_CORE * (os.cpu_count() or 1)
        node.set_clock(clocks)
        if node.name in own_disks:
            node.disk = RealDisk(node.folder / "state")
        (node.folder / "node.toml").write_text(_config(scenario, node))
        (node.folder / "plan.toml").write_text(_plan(scenario, node, phases))
    return nodes


def ghost_of(name: str) -> str:
    """The name of the stranger who knocks from the host of a node, the same as in :mod:`sims.world.faults`."""
    return f"ghost-{name}"[:63]


def _issue(role: str, name: str, folder: Path, authority: Path) -> list[str]:
    command = [*program("meshnode"), "mesh", "issue", "--role", role, "--id", name, "--days", "1"]
    return [*command, "--out", str(folder), str(authority)]


def _strangers(name: str, folder: Path, authority: Path) -> "list[subprocess.Popen[bytes]]":
    """Make the certificates of the stranger on the host of a lying node: one of this mesh, one of another."""
    elsewhere = folder / ELSEWHERE
    if not elsewhere.exists():
        _finish(_run([*program("meshnode"), "mesh", "init", "--name", ELSEWHERE, "--days", "1", str(elsewhere)]))
    ghost, of_node = ghost_of(name), folder / name
    return [
        _run(_issue("vehicle", ghost, of_node / GHOST, authority)),
        _run(_issue("vehicle", ghost, of_node / ELSEWHERE, elsewhere)),
    ]


def _run(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # noqa: S603 - our own program


def _finish(process: "subprocess.Popen[bytes]") -> None:
    try:
        _, errors = process.communicate(timeout=_ISSUE_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise EmulatorError(f"making a certificate took more than {_ISSUE_S:g} s: this host is too busy") from error
    if process.returncode:
        raise EmulatorError(f"certificates can't be made: {errors.decode(errors='replace')[-_SHOWN_CHARS:].strip()}")


def hold_all(nodes: Sequence[RealNode], at_once: int | None = None) -> None:
    """Have every node load and wait, a few at a time. :raises EmulatorError: when one ended instead, or is too slow."""
    at_once = at_once or os.cpu_count() or 1
    waiting, loading = list(nodes), 0
    with selectors.DefaultSelector() as selector:
        while waiting or loading:
            while waiting and loading < at_once:
                node = waiting.pop(0)
                node.hold()
                assert node.held is not None, "hold() starts it"
                assert node.held.stdout is not None, "launch() gives it a pipe"
                selector.register(node.held.stdout, selectors.EVENT_READ, node)
                loading += 1
            found = selector.select(_HOLD_S)
            if not found:
                raise EmulatorError(f"no node was loaded within {_HOLD_S:g} s: this host is too busy for so many nodes")
            for key, _ in found:
                node = key.data
                selector.unregister(key.fileobj)
                loading -= 1
                if not os.read(key.fd, 4_096).startswith(b"holding"):
                    raise EmulatorError(f"{node.name} ended before it was ready: {node.last_words() or 'no word'}")


def end_all(nodes: Sequence[RealNode], patience_s: float = _LEAVE_S) -> list[str]:
    """Have every node leave, and kill those that don't within ``patience_s``. Returns the names of these."""
    processes = {node.name: p for node in nodes for p in (node.held, node.running) if p is not None}
    for process in processes.values():
        process.terminate()
    deadline_s = time.monotonic() + patience_s
    stuck = [name for name, process in processes.items() if end_process(process, deadline_s - time.monotonic())]
    for node in nodes:
        node.held = node.running = None
        node.wanted = False
    return stuck


# --- files ---------------------------------------------------------------------------------------------------------
def _config(scenario: Scenario, node: RealNode) -> str:
    address = address_of(node.number)
    latitude, longitude = scenario.origin
    return f"""\
[node]
id = "{node.name}"
position = {{ latitude_deg = {latitude}, longitude_deg = {longitude}, accuracy_m = 1.0 }}

[listen]
host = "{address}"
port = {INBOX_PORT}
advertise = ["{address}"]
spin_us = 0  # nodes share processors here: one that stays awake would keep others from waking

[discovery]
interfaces = ["{address}"]

[http]
enabled = false

[local]
enabled = false

[log]
level = "warning"
{_multicast(address) if node.group.multicast else ""}{_uplink(scenario, node) if node.group.relay else ""}"""


def _multicast(address: str) -> str:
    return f"""
[multicast]
enabled = true
interfaces = ["{address}"]
"""


def _uplink(scenario: Scenario, node: RealNode) -> str:
    curation = scenario.curation
    return f"""
[relay]
address = "{address_of(len(scenario.names))}:{RELAY_PORT}"
id = "{MESH_RELAY}"

[[curation]]
name = "emulation"
keys = "{_kind(node.group)}/{node.name}/*"
min_interval_ms = {round(curation.interval_s * 1_000)}
lifespan_s = {max(1, round(curation.lifespan_s))}

[outbox]
max_records = {curation.max_records}
"""


def subscriptions(scenario: Scenario, group: Group) -> list[str]:
    """The key expressions that the nodes of a group subscribe to."""
    kinds = {other.name: _kind(other) for other in scenario.groups}
    wanted = [
        f"{kinds[traffic.group]}/*/{traffic.topic}"
        for traffic in scenario.traffic
        if not traffic.to or group.name in traffic.to
    ]
    return list(dict.fromkeys(wanted))


def _kind(group: Group) -> str:
    """The first chunk of the keys of its readings."""
    return "veh" if group.role == "vehicle" else "rsu"


def _phases(scenario: Scenario, seed: int) -> dict[tuple[int, str], float]:
    """By number of the inference and name of the node: when in each period it is asked for, in seconds, as the
    simulator draws it. With a common rhythm, nodes that start one after the other would fall into step."""
    random = Random(f"{seed}/traffic")
    for traffic in scenario.traffic:
        for _ in scenario.members(traffic.group):
            random.random()
    return {
        (number, name): random.random() / asked.rate_hz
        for number, asked in enumerate(scenario.inference)
        for name in scenario.members(asked.group)
    }


def _plan(scenario: Scenario, node: RealNode, phases: Mapping[tuple[int, str], float]) -> str:
    text = f"subscribe = {json.dumps(subscriptions(scenario, node.group))}\n"
    for number, traffic in enumerate(scenario.traffic):
        if traffic.group == node.group.name:
            # Otherwise nodes that start together would publish together, at the same moment of each period.
            phase_s = (node.number * 7 + number) % _PHASES / _PHASES / traffic.rate_hz
            text += f"""
[[publish]]
key = "{_kind(node.group)}/{node.name}/{traffic.topic}"
rate_hz = {traffic.rate_hz}
size_bytes = {traffic.size_bytes}
priority = {traffic.priority}
lifespan_ms = {traffic.lifespan_ms}
hops = {traffic.hops}
phase_s = {phase_s}
"""
    for spread in scenario.gossip:
        if spread.author == node.name:
            text += f"\n[[spread]]\nat_s = {spread.at_s}\nsize_bytes = {spread.size_bytes}\n"
    for number, asked in enumerate(scenario.inference):
        if not asked.offered_by or node.group.name in asked.offered_by:
            text += f"""
[[models]]
name = "model-{number}"
compute_ms = {asked.compute_ms * DEVICES[node.group.device].factor}
output_bytes = {asked.output_bytes}
"""
        if asked.group == node.group.name:
            text += f"""
[[infer]]
model = "model-{number}"
rate_hz = {asked.rate_hz}
input_bytes = {asked.input_bytes}
deadline_ms = {asked.deadline_ms}
phase_s = {phases[number, node.name]}
"""
    return text
