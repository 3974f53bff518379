"""One insider against a real node: what its honest neighbours notice, for each trick of ``benchmarks.insiders``.

Six neighbours publish ten hazards a second each to the node under attack, which also has a model computed five times a
second. Three kinds of windows alternate: quiet; *elsewhere*, in which another insider plays the same trick on another
node on the same computer; and attacked. The windows of all rounds are taken together, so that what other programs do to
the computer meanwhile hits all alike. A window begins a moment after its attack has begun or ended.

Elsewhere is the control. An insider has a computer of its own on the road; here it shares two cores with those that are
measured, and takes up to one of them. What this costs is in the windows elsewhere too, and what the trick costs is not.
"""

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

import meshnode
from benchmarks.children import Child, child
from benchmarks.churners import config
from benchmarks.insiders import NAMES, Target, attack, insider_name
from benchmarks.load import Cores, percentiles
from benchmarks.model import INPUT, NAME, OUTPUT, sample_input, write_model
from meshnode.identity import create_mesh, issue
from meshnode.inference.section import InferenceSection, ModelSection, ModelsSection
from meshnode.links.transport import Address
from protocols.base.effects import Event
from protocols.base.errors import MeshError
from protocols.base.ids import MeshName
from protocols.membership.events import NeighbourDead, NeighbourLeft, NeighbourSuspected

MAX_RATIO: Final = 2.0
MAX_GROWTH_BYTES: Final = 192 * 1024 * 1024
"""What all tables of a node that peers fill may hold together. See ``docs/reference/benchmarks.md``."""
MAX_RECOVERY_S: Final = 5.0
MIN_READINGS: Final = 0.5
"""Share of the hazards of a window that must come within it. One that comes later is not missing, but late."""
LATE_US: Final = 20_000.0
"""While the median is above this after an attack, and four times what it was before, the node still works it off."""
HONEST: Final = tuple(f"veh-{number}" for number in range(6))
RATE_HZ: Final = 10.0
INFERENCE_HZ: Final = 5.0
_MESH: Final = MeshName("hostile")
_BESIEGED: Final = "rsu-1"
_ELSEWHERE: Final = "rsu-2"
_MEET_S: Final = 30.0
_MAX_SETTLE_S: Final = 1.0


@dataclass(slots=True)
class Window:
    """What the node under attack noticed in one window."""

    latencies_us: list[float] = field(default_factory=list)
    """From ``put`` to the callback, of readings of honest neighbours."""
    missing: int = 0
    """Hazards of honest neighbours that were published and never came."""
    suspected: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Honest neighbours that were called dead, or left."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Readings and frames of honest neighbours that the node dropped, by reason."""
    inferred_ms: list[float] = field(default_factory=list)
    inferred_wrong: int = 0
    """Inferences that failed, or whose result was wrong."""
    lock_ms: float = 0.0
    """The most processor time that a thread took while it held the lock of the engine."""
    resident_bytes: int = 0
    peak_bytes: int = 0
    core_share: float = 0.0
    others_share: float = 0.0


@dataclass(slots=True)
class Figures:
    """The windows of one kind of a trick, taken together."""

    readings: int
    p50_us: float
    p99_us: float
    max_us: float
    missing: int
    suspected: list[str]
    lost: list[str]
    dropped: dict[str, int]
    inferences: int
    inference_p50_ms: float
    inference_max_ms: float
    inferred_wrong: int
    lock_ms: float
    resident_bytes: int
    """At the end of the last window."""
    peak_bytes: int
    core_share: float
    others_share: float

    @classmethod
    def of(cls, windows: list[Window]) -> "Figures":
        """Taken together."""
        latencies = [value for window in windows for value in window.latencies_us]
        inferred = percentiles([value for window in windows for value in window.inferred_ms])
        dropped: Counter[str] = Counter()
        for window in windows:
            dropped.update(window.dropped)
        return cls(
            len(latencies), *percentiles(latencies), sum(window.missing for window in windows),
            [node for window in windows for node in window.suspected],
            [node for window in windows for node in window.lost], dict(dropped),
            sum(len(window.inferred_ms) for window in windows), inferred[0], inferred[2],
            sum(window.inferred_wrong for window in windows), round(max(window.lock_ms for window in windows), 2),
            windows[-1].resident_bytes, max(window.peak_bytes for window in windows),
            round(statistics.mean(window.core_share for window in windows), 3),
            round(statistics.mean(window.others_share for window in windows), 3),
        )  # fmt: skip


@dataclass(slots=True)
class Trick:
    """What one trick did."""

    name: str
    before: Figures
    elsewhere: Figures
    """While another insider played the trick on another node on this computer."""
    during: Figures
    after: Figures
    recovery_s: float
    """The longest that readings were still late after an attack."""
    growth_bytes: int
    """The most that the node grew from the window before an attack to the peak within the attack."""
    done: dict[str, int]
    """What the insider did."""


@dataclass(slots=True)
class Siege:
    """The outcome of all tricks on one engine."""

    engine: str
    seconds: float
    rounds: int
    tricks: list[Trick] = field(default_factory=list)
    growth_bytes: int = 0
    """From the first quiet window to the highest peak of all."""
    counters: dict[str, int] = field(default_factory=dict)

    def missed_bars(self) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed = []
        for trick in self.tricks:
            what, during = f"{self.engine}, {trick.name}", trick.during
            quiet_us = max(trick.before.p99_us, trick.after.p99_us)
            allowed_us = MAX_RATIO * max(quiet_us, trick.elsewhere.p99_us)
            others = f"other programs took {during.others_share:.0%} of the cores"
            if during.p99_us > allowed_us:
                missed.append(
                    f"{what}: p99 of readings {during.p99_us / 1e3:.2f} ms, {quiet_us / 1e3:.2f} ms when it is quiet, "
                    f"{trick.elsewhere.p99_us / 1e3:.2f} ms when it happens to another node ({others})"
                )
            for when, figures in (("during", during), ("after", trick.after)):
                missed += [f"{what}: {who} was lost {when} it ({others})" for who in figures.lost]
                if figures.missing:
                    missed.append(f"{what}: {figures.missing} hazards missing {when} it, dropped {figures.dropped}")
                expected = len(HONEST) * RATE_HZ * self.seconds * self.rounds
                if figures.readings < MIN_READINGS * expected:
                    missed.append(
                        f"{what}: only {figures.readings} of {expected:.0f} hazards came {when} it ({others})"
                    )
                if figures.inferred_wrong:
                    missed.append(f"{what}: {figures.inferred_wrong} inferences wrong or failed {when} it")
            if trick.recovery_s > MAX_RECOVERY_S:
                missed.append(f"{what}: readings were late for {trick.recovery_s:.1f} s after it ({others})")
        if self.growth_bytes > MAX_GROWTH_BYTES:
            missed.append(f"{self.engine}: the node grew by {self.growth_bytes / 2**20:.0f} MiB")
        return missed

    def table(self) -> str:
        """For people: times of readings in milliseconds, the hold of the lock in milliseconds of processor time."""
        head = (
            "p50 quiet  during   p99 quiet  elsewh.  during  lost suspected missing wrong lock ms grew MiB late s "
            " node others"
        )
        lines = [f"{self.engine:16}{head}"]
        for trick in self.tricks:
            before, during, after = trick.before, trick.during, trick.after
            quiet = max(before.p50_us, after.p50_us) / 1e3, max(before.p99_us, after.p99_us) / 1e3
            lines.append(
                f"{trick.name:16}{quiet[0]:9.2f} {during.p50_us / 1e3:7.2f} {quiet[1]:11.2f} "
                f"{trick.elsewhere.p99_us / 1e3:8.2f} {during.p99_us / 1e3:7.2f} "
                f"{len(during.lost):5} {len(during.suspected):9} {during.missing:7} {during.inferred_wrong:5} "
                f"{during.lock_ms:7.1f} {trick.growth_bytes / 2**20:8.1f} {trick.recovery_s:6.1f} "
                f"{during.core_share:5.0%} {during.others_share:6.0%}"
            )
        return "\n".join(lines)


# --- processes -------------------------------------------------------------------------------------------------------
class _TimedLock:
    """A lock that knows the most processor time that was spent under it. Waiting for the processor does not count."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._began_ns = 0
        self.most_ns = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._began_ns = time.thread_time_ns()

    def __exit__(self, *_: object) -> None:
        self.most_ns = max(self.most_ns, time.thread_time_ns() - self._began_ns)
        self._lock.release()


class _Watch:
    """Collects what the node under attack notices of its honest neighbours."""

    def __init__(self, node: meshnode.Node) -> None:
        self._node = node
        self._window = Window()
        self._numbers: dict[str, int] = {}
        self._dropped: Counter[str] = Counter()
        self._lock = _TimedLock(node.driver._lock)
        with self._lock._lock:  # nobody else holds it: the node has no neighbours yet
            node.driver._lock = node.driver._outbound._lock = self._lock  # type: ignore[assignment]
        self._cpu_s, self._begin_s = time.process_time(), time.monotonic()
        node.on_event(self._noticed)
        node.subscribe("veh/*/hazard", callback=self._received, history=False, hops=2)

    def _received(self, reading: meshnode.Reading) -> None:
        if reading.origin in HONEST and isinstance(reading.value, int):
            self._window.latencies_us.append((time.time_ns() - reading.when.utc_ns) / 1e3)
            before = self._numbers.get(reading.origin, reading.value - 1)
            self._window.missing += reading.value - before - 1
            self._numbers[reading.origin] = reading.value

    def _noticed(self, event: Event) -> None:
        match event:
            case NeighbourSuspected(node=node) if node in HONEST:
                self._window.suspected.append(node)
            case NeighbourDead(node=node) | NeighbourLeft(node=node) if node in HONEST:
                self._window.lost.append(node)

    async def infer(self) -> None:
        """Have the model computed over and over."""
        value = sample_input()
        expected = value + 1
        while True:
            began_s = time.monotonic()
            try:
                result = await self._node.infer(NAME, {INPUT: value}, deadline_ms=2_000)
                self._window.inferred_wrong += not np.array_equal(np.asarray(result.outputs[OUTPUT]), expected)
            except MeshError:
                self._window.inferred_wrong += 1
            self._window.inferred_ms.append(round(1e3 * (time.monotonic() - began_s), 2))
            await asyncio.sleep(1 / INFERENCE_HZ)

    def take(self) -> Window:
        """What was noticed since the last call."""
        window, self._window = self._window, Window()
        window.lock_ms, self._lock.most_ns = self._lock.most_ns / 1e6, 0
        cpu_s, begin_s = time.process_time(), time.monotonic()
        window.core_share = (cpu_s - self._cpu_s) / (begin_s - self._begin_s)
        self._cpu_s, self._begin_s = cpu_s, begin_s
        window.resident_bytes, window.peak_bytes = _memory()
        dropped: Counter[str] = Counter()
        for (peer, _, reason), count in self._node.drops():
            if peer in HONEST:
                dropped[reason] += count
        window.dropped = dict(dropped - self._dropped)
        self._dropped = dropped
        return window


def _memory() -> tuple[int, int]:
    """Resident memory of this process now, and the most since the last call."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    with contextlib.suppress(OSError):  # some kernels forbid it; the peak is then that of the whole run
        Path("/proc/self/clear_refs").write_text("5")
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


def _besieged(folder: Path, engine: str, name: str, orders: Connection) -> None:
    if name == _ELSEWHERE:
        with contextlib.suppress(OSError):
            os.nice(10)  # it would have a computer of its own, like the insider
    asyncio.run(_serve(folder, engine, name, orders))


async def _serve(folder: Path, engine: str, name: str, orders: Connection) -> None:
    """Answer each order with what was noticed since the order before, until the parent is gone."""
    models = ModelsSection(models={NAME: ModelSection(path=folder / "add.onnx")})
    slow = InferenceSection(emulate_slowdown=100)  # so that it would have a neighbour compute
    async with meshnode.open(config(folder, name, engine).with_sections(models, slow)) as node:
        watch = _Watch(node)
        orders.send((node.port, node.models[NAME].digest))
        inferring = asyncio.create_task(watch.infer())
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await asyncio.to_thread(orders.recv)
                orders.send((watch.take(), node.statistics()))
        inferring.cancel()


def _neighbours(folder: Path, port: int, engine: str, orders: Connection) -> None:
    """Run the honest neighbours, each of which numbers its hazards, until the parent is gone."""

    async def one(name: str, index: int) -> None:
        async with meshnode.open(config(folder, name, engine, Address("127.0.0.1", port))) as node:
            await node.wait_for_peers(1, _MEET_S)
            publisher = node.publisher(f"veh/{name}/hazard", sensor="benchmark", priority=7)
            await asyncio.sleep(index / (RATE_HZ * len(HONEST)))  # not all at once
            number, due_s = 0, time.monotonic()
            while True:
                publisher.put(number)
                number += 1
                due_s += 1 / RATE_HZ
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def main() -> None:
        running = [asyncio.create_task(one(name, index)) for index, name in enumerate(HONEST)]
        with contextlib.suppress(EOFError, ConnectionError):
            await asyncio.to_thread(orders.recv)
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=5)

    asyncio.run(main())


# --- the run ---------------------------------------------------------------------------------------------------------
async def besiege(folder: Path, engine: str, seconds: float, rounds: int, tricks: Iterable[str] = NAMES) -> Siege:
    """Play each trick once in each round. :raises ChildFailed: when a process does not answer."""
    siege, chosen = Siege(engine, seconds, rounds), tuple(tricks)
    settle_s = min(_MAX_SETTLE_S, seconds / 2)
    create_mesh(folder / "authority", _MESH)
    for name in (_BESIEGED, _ELSEWHERE):
        issue(folder / "authority", "rsu", name, folder / name)
    for name in (*HONEST, *map(insider_name, chosen)):
        issue(folder / "authority", "vehicle", name, folder / name)
    files = {trick: config(folder, insider_name(trick), engine).identity.credentials for trick in chosen}
    write_model(folder / "add.onnx")
    before: dict[str, list[Window]] = {trick: [] for trick in chosen}
    elsewhere: dict[str, list[Window]] = {trick: [] for trick in chosen}
    during: dict[str, list[Window]] = {trick: [] for trick in chosen}
    after: dict[str, list[Window]] = {trick: [] for trick in chosen}
    done: dict[str, Counter[str]] = {trick: Counter() for trick in chosen}
    recovery_s = dict.fromkeys(chosen, 0.0)
    spawn = multiprocessing.get_context("spawn")
    with (
        child(spawn, _besieged, folder, engine, _BESIEGED) as besieged,
        child(spawn, _besieged, folder, engine, _ELSEWHERE) as other,
    ):
        port, digest = besieged.answer()
        target = Target(port, _MESH, digest, HONEST)
        other_target = replace(target, port=other.answer()[0])
        with (
            child(spawn, _neighbours, folder, port, engine),
            child(spawn, attack, target, files) as insider,
            child(spawn, attack, other_target, files) as insider_elsewhere,
        ):
            await _until_readings(besieged)
            await asyncio.sleep(2 * settle_s)
            quiet = await _window(besieged, 0.0, seconds)
            first_bytes = quiet.resident_bytes
            for _ in range(rounds):
                for trick in chosen:
                    before[trick].append(quiet)
                    insider_elsewhere.orders.send(trick)
                    elsewhere[trick].append(await _window(besieged, settle_s, seconds))
                    insider_elsewhere.orders.send(None)
                    await asyncio.to_thread(insider_elsewhere.answer)
                    insider.orders.send(trick)
                    during[trick].append(await _window(besieged, settle_s, seconds))
                    insider.orders.send(None)
                    done[trick].update(await asyncio.to_thread(insider.answer))
                    recovery_s[trick] = max(recovery_s[trick], await _recovery(besieged, quiet, settle_s))
                    quiet = await _window(besieged, settle_s, seconds, siege.counters)
                    after[trick].append(quiet)
    for trick in chosen:
        growth = [now.peak_bytes - then.resident_bytes for then, now in zip(before[trick], during[trick], strict=True)]
        siege.tricks.append(
            Trick(
                trick, Figures.of(before[trick]), Figures.of(elsewhere[trick]), Figures.of(during[trick]),
                Figures.of(after[trick]), recovery_s[trick], max(0, *growth), dict(done[trick]),
            )
        )  # fmt: skip
    siege.growth_bytes = max(trick.during.peak_bytes for trick in siege.tricks) - first_bytes
    return siege


async def _ask(besieged: Child) -> tuple[Window, dict[str, int]]:
    besieged.orders.send(None)
    answer: tuple[Window, dict[str, int]] = await asyncio.to_thread(besieged.answer)
    return answer


async def _until_readings(besieged: Child) -> None:
    """Wait until the node hears all its neighbours."""
    async with asyncio.timeout(_MEET_S):
        heard = 0
        while heard < len(HONEST) * RATE_HZ / 4:
            await asyncio.sleep(0.5)
            heard = len((await _ask(besieged))[0].latencies_us)


async def _recovery(besieged: Child, quiet: Window, step_s: float) -> float:
    """Wait until readings are no longer late. Returns how long that took, in s; 0 when they were not."""
    begin_s = time.monotonic()
    median_us = max(LATE_US, 4 * percentiles(quiet.latencies_us)[0])
    took_s = 0.0
    while took_s < 4 * MAX_RECOVERY_S:
        await asyncio.sleep(step_s / 2)
        window, _ = await _ask(besieged)
        if window.latencies_us and percentiles(window.latencies_us)[0] < median_us:
            return took_s
        took_s = round(time.monotonic() - begin_s, 2)
    return took_s


async def _window(besieged: Child, settle_s: float, seconds: float, counters: dict[str, int] | None = None) -> Window:
    """One window. What happens while it settles counts too, but for the times."""
    await asyncio.sleep(settle_s)
    settling, _ = await _ask(besieged)
    cores = Cores()
    await asyncio.sleep(seconds)
    others_share = cores.others_share()
    window, counted = await _ask(besieged)
    window.others_share = others_share
    if settle_s:
        window.missing += settling.missing
        window.suspected += settling.suspected
        window.lost += settling.lost
        window.inferred_wrong += settling.inferred_wrong
        window.lock_ms = max(window.lock_ms, settling.lock_ms)
        window.peak_bytes = max(window.peak_bytes, settling.peak_bytes)
        window.dropped = dict(Counter(window.dropped) + Counter(settling.dropped))
    if counters is not None:
        kinds = ("link_", "pipes_", "frames_", "suspicions", "deaths", "local_stalls", "drops")
        counters.update({name: value for name, value in counted.items() if name.startswith(kinds)})
    return window
