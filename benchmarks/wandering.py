"""``python -m benchmarks.wandering``: whether nodes stay a mesh while their networks, names and clocks change.

Real nodes run on computers of their own (:mod:`benchmarks.lan`), and so does a relay. Meanwhile, at random but by a
seed: addresses change, interfaces go down and up, are removed and made anew, second ones come and go, names lead
elsewhere, clocks step, and the relay is out of reach. Two thirds of the nodes find one another by mDNS. The others know
everybody by name, from an ``/etc/hosts`` of their own. Half of them start before their network.

Each node publishes numbered readings and records. Then the disturbances end. It passes when

- everybody has met everybody, alive in both directions, within ``--whole-s``, and readings flow between all of them;
- everybody who uses mDNS is heard by the others that do at its address and at no other;
- each record that a node took is at the relay exactly once, or counted by that node;
- no process died, and memory, descriptors and threads are bounded.

It writes ``build/wandering.json``. It needs Linux and root.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import command
from benchmarks.command import between, finish, measuring
from benchmarks.disturbances import FIRST, RELAY, Step, addresses_after, first_address, plan
from benchmarks.fleet import FleetFailed
from benchmarks.lan import Computer, Lan, LanFailed, why_not
from benchmarks.wanderer import ROOT, Wanderer, WandererFailed
from cloud_relay.query.audit import OriginAccount, audit
from cloud_relay.store.schema import open_for_reading
from meshnode.identity import create_mesh, issue

WHOLE_S: Final = 5.0
ENGINES: Final = ("express", "nng")
MAX_GROWTH_BYTES: Final = 4_000_000
"""Of the median of a node's memory, from the second third of the disturbances to the last."""
MAX_MORE_DESCRIPTORS, MAX_MORE_THREADS = 24, 12
"""How many more a node may have once all is whole again than before the first disturbance: descriptors of links that
are not given up yet, and threads of the pool, which grows up to its bound."""
_PATIENCE_S: Final = 60.0
_SAMPLE_S: Final = 5.0
_FLOW_S: Final = 30.0
_PORT, _RELAY_PORT, _RELAY_ADDRESS = 7_000, 7_450, "10.50.254.1"
_PREFIX: Final = 16


@dataclass(slots=True)
class Outcome:
    """The outcome of a run on one engine."""

    engine: str
    seed: int
    nodes: int
    minutes: float
    done: dict[str, int] = field(default_factory=dict)
    """The number of disturbances, by kind."""
    steps: int = 0
    late_s: float = 0.0
    """How late the latest step was: a busy computer."""
    first_whole_s: float | None = None
    """From the moment at which the last node had its network until all had met."""
    whole_s: float | None = None
    """From the end of the disturbances until all had met again; None: not within a minute."""
    late: list[str] = field(default_factory=list)
    """Who lacked whom when the promised time was over."""
    readings: int = 0
    records: int = 0
    stored: int = 0
    counted: int = 0
    """Records that their nodes counted as expired, evicted, refused or dropped."""
    growth_bytes: dict[str, int] = field(default_factory=dict)
    more_descriptors: dict[str, int] = field(default_factory=dict)
    more_threads: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    load_average: float = 0.0

    def missed_bars(self, whole_s: float) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed = list(self.faults)
        if self.whole_s is None:
            missed.append(f"not everybody had everybody {_PATIENCE_S:g} s after the last disturbance")
        elif self.whole_s > whole_s:
            missed.append(f"everybody had everybody after {self.whole_s:.1f} s, not {whole_s:g}")
        for name, growth in self.growth_bytes.items():
            if growth >= MAX_GROWTH_BYTES:
                missed.append(f"the memory of {name} grew by {growth / 1e6:.1f} MB")
        descriptors = "descriptors", self.more_descriptors, MAX_MORE_DESCRIPTORS
        threads = "threads", self.more_threads, MAX_MORE_THREADS
        for what, found, most in (descriptors, threads):
            missed += [f"{name} has {more} more {what}" for name, more in found.items() if more > most]
        return [f"{self.engine}, seed {self.seed}: {sentence}" for sentence in missed]


class _Hosts:
    """The ``/etc/hosts`` of each computer."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        right = {name: first_address(number) for number, name in enumerate(names)}
        self._right = {reader: dict(right) for reader in names}
        self._wrong: dict[str, dict[str, str]] = {reader: {} for reader in names}
        self.files = {reader: folder / f"{reader}.hosts" for reader in names}
        for reader in names:
            self._write(reader)

    def resolve(self, reader: str, what: str) -> None:
        """``name=address``; an address that is not one of the right ones is told until ``name=``."""
        name, _, address = what.partition("=")
        if not address:
            self._wrong[reader].pop(name, None)
        elif address.startswith("10.50.255."):
            self._wrong[reader][name] = address
        else:
            self._right[reader][name] = address
        self._write(reader)

    def _write(self, reader: str) -> None:
        lines = ["127.0.0.1 localhost", f"{_RELAY_ADDRESS} {RELAY}.street"]
        lines += [
            f"{address} {name}.street" for name, address in {**self._right[reader], **self._wrong[reader]}.items()
        ]
        with self.files[reader].open("r+" if self.files[reader].exists() else "w") as file:  # in place: it is mounted
            file.write("\n".join(lines) + "\n")
            file.truncate()


class _Street:
    """All computers and processes of one run."""

    def __init__(self, folder: Path, names: Sequence[str], engine: str, lan: Lan, stack: ExitStack) -> None:
        self.names, self._folder, self._lan = list(names), folder, lan
        self.after: dict[str, str] = {}
        """The address of each node once the disturbances have ended."""
        self.late: list[str] = []
        """Who lacked whom when the time for it was over."""
        create_mesh(folder / "authority", "street")
        self.hosts = _Hosts(folder, names)
        self.relay_config = self._prepare_relay()
        self._relay_log = folder / RELAY / "relay.log"
        self.relay = self._start_relay(stack)
        self.computers: dict[str, Computer] = {}
        self.nodes: dict[str, Wanderer] = {}
        for number, name in enumerate(names):
            computer = self.computers[name] = lan.computer(name)
            if number % 2:
                computer.plug(FIRST, f"{first_address(number)}/{_PREFIX}")
            config = self._prepare(name, number, engine)
            self.nodes[name] = stack.enter_context(Wanderer(computer, config, self.hosts.files[name]))
        for node in self.nodes.values():
            node.ready()
            node.ask("publish")
        for number, name in enumerate(names):
            if not number % 2:
                self.computers[name].plug(FIRST, f"{first_address(number)}/{_PREFIX}")
        self.computers[RELAY] = lan.computers[RELAY]

    def _prepare_relay(self) -> Path:
        home = self._folder / RELAY
        issue(self._folder / "authority", "relay", RELAY, home)
        self._lan.computer(RELAY).plug(FIRST, f"{_RELAY_ADDRESS}/{_PREFIX}")
        config = home / "relay.toml"
        config.write_text(f'[relay]\nid = "{RELAY}"\nport = {_RELAY_PORT}\n')
        return config

    def _start_relay(self, stack: ExitStack) -> "subprocess.Popen[str]":
        start = [sys.executable, "-P", "-m", "cloud_relay", "run", "--config", str(self.relay_config)]
        with self._relay_log.open("w") as log:
            process = self._lan.computers[RELAY].start(
                start, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=log
            )
        stack.callback(_kill, process)
        assert process.stdout is not None
        if "ready" not in process.stdout.readline():
            raise FleetFailed(f"the relay did not start: {self._relay_log.read_text()[-500:]}")
        return process

    def _prepare(self, name: str, number: int, engine: str) -> Path:
        home = self._folder / name
        issue(self._folder / "authority", "vehicle", name, home)
        seeds = ", ".join(f'"{other}.street:{_PORT}"' for other in self.names if other != name)
        discovery = f"mdns = false\nseeds = [{seeds}]" if number % 3 == 2 else "mdns = true"
        config = home / "node.toml"
        config.write_text(
            f'[node]\nid = "{name}"\nposition = {{ latitude_deg = 48.76, longitude_deg = 11.42, accuracy_m = 2.0 }}\n'
            f'[listen]\nlink_engine = "{engine}"\nport = {_PORT}\nspin_us = 0\npriority = "normal"\n'
            f"[discovery]\n{discovery}\n[http]\nenabled = false\n[local]\nenabled = false\n"
            f'[relay]\naddress = "{RELAY}.street:{_RELAY_PORT}"\nid = "{RELAY}"\n'
            '[[curation]]\nname = "wandering"\nkeys = "veh/*/record"\nlifespan_s = 86400\n'
        )
        return config

    # --- what happens ------------------------------------------------------------------------------------------
    def take(self, step: Step) -> None:
        """Do one step."""
        computer, address = self.computers[step.who], f"{step.value}/{_PREFIX}"
        match step.do:
            case "resolve":
                self.hosts.resolve(step.who, step.value)
            case "clock":
                self.nodes[step.who].ask("clock", round(float(step.value) * 1e9))
            case "add":
                computer.add(step.interface, address)
            case "remove":
                computer.remove(step.interface, address)
            case "up":
                computer.up(step.interface)
            case "down":
                computer.down(step.interface)
            case "plug":
                computer.plug(step.interface, address)
            case "unplug":
                computer.unplug(step.interface)

    def whole(self) -> bool:
        """Whether everybody has met everybody."""
        everybody = set(self.names)
        return all(node.met() == everybody - {name} for name, node in self.nodes.items())

    def wait_until_whole(self, limit_s: float, late_s: float = _PATIENCE_S) -> float | None:
        """Seconds until everybody has met everybody; None when they have not within the limit. After ``late_s`` it
        notes who lacks whom."""
        began_s = time.monotonic()
        while not self.whole():
            waited_s = time.monotonic() - began_s
            if waited_s > late_s and not self.late:
                self.late = list(self.gaps())
            if waited_s > limit_s:
                return None
            time.sleep(0.05)
        return time.monotonic() - began_s

    def gaps(self) -> Iterator[str]:
        """Who lacks whom, and what they know of each other."""
        for name, node in self.nodes.items():
            met = node.met()
            known = {peer["node"]: peer for peer in node.ask("peers")}
            if met != set(self.names) - {name}:
                has = " ".join(self.computers[name].addresses().split())
                yield f"{name} has {has}, failures {node.ask('failures')[-3:]}, discovery {node.ask('discovery')}"
            for other in self.names:
                if other != name and other not in met:
                    yield f"{name} lacks {other}: {known.get(other, 'unknown')}"


def _kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


# --- a run -----------------------------------------------------------------------------------------------------------
def measure(folder: Path, engine: str, seed: int, nodes: int, minutes: float, whole_s: float) -> Outcome:
    """Make one run. :raises FleetFailed: it could not be made."""
    outcome = Outcome(engine, seed, nodes, minutes)
    names = [f"veh-{number}" for number in range(1, nodes + 1)]
    try:
        with Lan() as lan, ExitStack() as stack:
            street = _Street(folder, names, engine, lan, stack)
            outcome.first_whole_s = street.wait_until_whole(_PATIENCE_S)
            if outcome.first_whole_s is None:
                outcome.faults += [f"not whole before the first disturbance: {gap}" for gap in street.gaps()]
            _run(street, outcome, whole_s)
    except LanFailed as error:
        raise FleetFailed(str(error)) from error
    except WandererFailed as error:
        outcome.faults.append(str(error))
    outcome.load_average = os.getloadavg()[0]
    return outcome


def _run(street: _Street, outcome: Outcome, whole_s: float) -> None:
    before = _held(street)
    samples = _disturb(street, outcome, outcome.seed, outcome.minutes * 60)
    outcome.whole_s = street.wait_until_whole(_PATIENCE_S, whole_s)
    outcome.late = street.late
    _check_heard(street, outcome)
    if outcome.whole_s is None:
        outcome.faults += list(street.gaps())
    else:
        _check_flow(street, outcome)
    after = _held(street)
    for name in street.names:
        outcome.more_descriptors[name] = after[name]["descriptors"] - before[name]["descriptors"]
        outcome.more_threads[name] = after[name]["threads"] - before[name]["threads"]
        third = len(samples) // 3
        if third >= 3:
            middle, last = (
                statistics.median(sample[name]["resident_bytes"] for sample in part)
                for part in (samples[third : 2 * third], samples[2 * third :])
            )
            outcome.growth_bytes[name] = round(last - middle)
    _check_records(street, outcome)


def _held(street: _Street) -> dict[str, dict[str, int]]:
    return {name: node.ask("held") for name, node in street.nodes.items()}


def _disturb(street: _Street, outcome: Outcome, seed: int, seconds: float) -> list[dict[str, dict[str, int]]]:
    """Do all that is planned. Returns samples of what the nodes held meanwhile."""
    planned = plan(street.names, seconds, seed)
    outcome.done, outcome.steps = dict(planned.counts), len(planned.steps)
    samples = []
    began_s = time.monotonic()
    sample_s = _SAMPLE_S
    for step in planned.steps:
        at_s = min(step.at_s, seconds)  # what has begun ends with the disturbances
        while (left_s := began_s + at_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.5))
        outcome.late_s = max(outcome.late_s, round(-left_s, 3))
        street.take(step)
        if at_s < seconds and time.monotonic() - began_s >= sample_s:
            sample_s += _SAMPLE_S
            samples.append(_held(street))
            _tell(outcome, street, time.monotonic() - began_s)
    street.after = addresses_after(street.names, planned.steps)
    for name in street.names:
        street.nodes[name].ask("clock", 0)
    return samples


def _tell(outcome: Outcome, street: _Street, at_s: float) -> None:
    links = sum(len(node.met()) for node in street.nodes.values())
    full = outcome.nodes * (outcome.nodes - 1)
    print(f"{outcome.engine}: {at_s:.0f} s, {links} of {full} neighbours met", file=sys.stderr, flush=True)


def _check_heard(street: _Street, outcome: Outcome) -> None:
    """Whoever uses mDNS must hear all others that do, at the addresses that they have, and at no other."""
    ends_s = time.monotonic() + _FLOW_S
    while True:
        views = {name: view for name, node in street.nodes.items() if (view := node.ask("discovery")) is not None}
        wrong = []
        for name, view in views.items():
            heard = {advert["node"]: {at.rpartition(":")[0] for at in advert["addresses"]} for advert in view["heard"]}
            for other, announced in views.items():
                if other != name and heard.get(other) != set(announced["addresses"]):
                    wrong.append(
                        f"{name} hears {other} at {heard.get(other)}, which announces {announced['addresses']}"
                    )
            if set(view["addresses"]) != {street.after[name]}:
                wrong.append(f"{name} announces {view['addresses']} and has {street.after[name]}")
        if not wrong or time.monotonic() > ends_s:
            outcome.faults += wrong
            return
        time.sleep(0.05)


def _check_flow(street: _Street, outcome: Outcome) -> None:
    """Readings must flow from each to each."""
    before = {name: node.ask("received") for name, node in street.nodes.items()}
    ends_s = time.monotonic() + _FLOW_S
    while True:
        now = {name: node.ask("received") for name, node in street.nodes.items()}
        silent = [
            f"{name} receives nothing of {other}, though they have met"
            for name in street.names
            for other in street.names
            if name != other and now[name].get(other, 0) <= before[name].get(other, 0)
        ]
        if not silent or time.monotonic() > ends_s:
            outcome.faults += silent
            return
        time.sleep(0.05)


def _check_records(street: _Street, outcome: Outcome) -> None:
    """Let nodes deliver what waits, end them, and compare what they took with what the relay has."""
    published: dict[str, dict[str, Any]] = {}
    for name, node in street.nodes.items():
        node.ask("hush")
        published[name] = node.ask("published")
    ends_s = time.monotonic() + _PATIENCE_S
    waiting = set(street.names)
    while waiting and time.monotonic() < ends_s:
        waiting = {name for name in waiting if street.nodes[name].ask("statistics")["outbox_pending"]}
        time.sleep(0.1)
    outcome.faults += [f"records of {name} still wait after {_PATIENCE_S:g} s" for name in sorted(waiting)]
    dropped: Counter[str] = Counter()
    for name, node in street.nodes.items():
        own = f"veh/{name}/record"
        dropped[name] = sum(
            n for peer, key, reason, n in node.ask("drops") if not peer and key == own and "outbox" in reason
        )
    for name, node in street.nodes.items():
        if (status := node.end()) != 0:
            outcome.faults.append(f"{name} ended with status {status}: {node.last_words()}")
    if street.relay.poll() is not None:
        outcome.faults.append(f"the relay has ended with status {street.relay.poll()}")
    _kill(street.relay)
    with contextlib.closing(open_for_reading(_store_of(street.relay_config))) as db:
        accounts = {account.origin: account for account in audit(db)}
        for name in street.names:
            rows = db.execute("SELECT value FROM records WHERE origin = ?", (name,)).fetchall()
            stored = Counter(str(row[0]) for row in rows)
            compare(outcome, name, published[name], stored, dropped[name], accounts.get(name))


def _store_of(config: Path) -> Path:
    from cloud_relay.config import load_config

    store = load_config(config).store
    assert isinstance(store, Path), "this relay's store is a file"
    return store


def compare(
    outcome: Outcome, name: str, published: Mapping[str, Any], stored: Counter[str], dropped: int,
    account: OriginAccount | None,
) -> None:  # fmt: skip
    """Note what became of the records of one node: published, at the relay by value, dropped, and its account."""
    outcome.readings += published["readings"]
    outcome.records += published["records"]
    outcome.stored += len(stored)
    if published["failed"]:
        outcome.faults.append(f"{name} could not publish: {published['failed']}")
    if twice := [value for value, count in stored.items() if count > 1]:
        outcome.faults.append(f"{len(twice)} records of {name} are at the relay twice: {sorted(twice)[:5]}")
    if account is None:
        outcome.faults.append(f"the relay has heard nothing of {name}")
        return
    if not account.adds_up:
        outcome.faults.append(f"the account of {name} does not add up: {account}")
    counted = account.expired + account.evicted + account.refused + dropped
    outcome.counted += counted
    if (lost := published["records"] - len(stored) - counted) != 0:
        outcome.faults.append(
            f"{lost} records of {name} are neither at the relay nor counted: {account}, {dropped} dropped"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("wandering", "Networks, names and clocks change under real nodes.", "a promise was broken")
    minutes, nodes, whole = between(0.02, 600.0), between(2, 40), between(0.1, 60.0)
    parser.add_argument("--minutes", type=minutes, default=10.0, help="minutes on each engine (default: %(default)s)")
    parser.add_argument("--nodes", type=nodes, default=10, help="number of nodes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what happens follows from it (default: %(default)s)")
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both", help="default: %(default)s")
    parser.add_argument(
        "--whole-s", type=whole, default=WHOLE_S,
        help="seconds after the last disturbance within which everybody has to have everybody (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(f"wandering could not be measured: {reason}", file=sys.stderr)
        return 2
    outcomes = []
    for engine in ENGINES if options.engine == "both" else (options.engine,):
        with measuring(f"wandering on {engine}") as folder:
            outcome = measure(folder, engine, options.seed, options.nodes, options.minutes, options.whole_s)
        outcomes.append(outcome)
        _report(outcome)
    missed = [sentence for outcome in outcomes for sentence in outcome.missed_bars(options.whole_s)]
    return finish(options, {"runs": [asdict(outcome) for outcome in outcomes]}, missed)


def _report(outcome: Outcome) -> None:
    done = ", ".join(f"{count} × {kind}" for kind, count in outcome.done.items())
    whole = "not" if outcome.whole_s is None else f"after {outcome.whole_s:.2f} s"
    for sentence in outcome.late:
        print(f"  late: {sentence}")
    print(
        f"{outcome.engine}, seed {outcome.seed}, {outcome.nodes} nodes, {outcome.minutes:g} min: {done} "
        f"({outcome.steps} steps, at most {outcome.late_s:.2f} s late)\n"
        f"  whole {whole}; {outcome.readings} readings, {outcome.records} records published, {outcome.stored} at the "
        f"relay, {outcome.counted} counted as lost\n"
        f"  memory {max(outcome.growth_bytes.values(), default=0) / 1e6:+.2f} MB, descriptors "
        f"{max(outcome.more_descriptors.values(), default=0):+d}, threads "
        f"{max(outcome.more_threads.values(), default=0):+d} at most"
    )


if __name__ == "__main__":
    sys.exit(main())
