"""``python -m benchmarks.churn``: whether a node leaks anything when links, nodes and certificates come and go.

One node runs in a process of its own. Whole nodes in other processes join it, exchange readings and tensors, are
killed, leave, or leave in the middle of a send, and come back with new certificates. Bare links open and end by the
hundred. Meanwhile the node's own certificate is rotated. ``express`` takes the new one up while it runs. ``nng`` can't,
so the node is closed and opened again in the same process, and what a restart leaves behind counts as well.

After each round all others go away. Once no link is left, the process is measured: resident memory after a garbage
collection and ``malloc_trim``, descriptors, threads. The first third of the rounds warms up (caches and tables fill up
to their bounds). The node passes when from the second third to the last the median of its memory grows by less than
``MAX_GROWTH_BYTES``, and neither descriptors nor threads grow. The benchmark writes ``build/churn.json``.
"""

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import meshnode
import meshnode.identity.renewal
from benchmarks import churners, command
from benchmarks.children import ANSWER_S, Child, child
from benchmarks.churners import ENDINGS, MESH, SUBJECT, Linking
from benchmarks.command import between, finish, measuring
from meshnode.identity import create_mesh

MAX_GROWTH_BYTES = 2_000_000
MAX_MINUTES = 600.0
ENGINES = ("express", "nng")
_ROUND_S = 8.0
_LINKS_HZ = 20.0
"""The rate at which each identity opens bare links. There is one identity for each engine."""
_REST_S = 40.0
"""The longest wait for rest. A neighbour that was killed is given up after about a second, its last dial a second
later."""
_LIFE_S = 60.0
_POOL_THREADS = 64
"""More threads than asyncio's pool has. The pool grows slowly up to its bound, which must not be taken for a leak."""
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures of the node's process at rest."""

    resident_bytes: int
    descriptors: int
    threads: int
    pipes_in: int
    """Links into the node since its process began."""
    dials: int
    """Links and attempted links out of it."""
    readings: int
    rotations: int
    """Certificates taken up while running, and restarts with a new one."""
    at_rest: bool


@dataclass(slots=True)
class Outcome:
    """The outcome of a run on one engine."""

    engine: str
    minutes: float
    rounds: int = 0
    pipes_in: int = 0
    dials: int = 0
    readings: int = 0
    rotations: int = 0
    lives: dict[str, int] = field(default_factory=dict)
    """The number of lives of whole nodes, by how they ended."""
    links: dict[str, int] = field(default_factory=dict)
    """The number of bare links, by how they ended."""
    certificates: int = 0
    """Certificates issued to the other nodes and links."""
    resident_growth_bytes: int = 0
    descriptors_growth: float = 0.0
    threads_growth: float = 0.0
    resident_bytes_per_1000_links: int = 0
    """The slope of a straight line through the samples after the warm-up."""
    faults: list[str] = field(default_factory=list)
    load_average: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def missed_bars(self) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed = [f"{self.engine}: {fault}" for fault in self.faults]
        if self.resident_growth_bytes >= MAX_GROWTH_BYTES:
            missed.append(f"{self.engine}: memory grew by {self.resident_growth_bytes / 1e6:.1f} MB")
        if self.descriptors_growth > 0:
            missed.append(f"{self.engine}: descriptors grew by {self.descriptors_growth:g}")
        if self.threads_growth > 0:
            missed.append(f"{self.engine}: threads grew by {self.threads_growth:g}")
        return missed


def judge(outcome: Outcome) -> None:
    """Fill in the growth from the samples. Fewer than six samples are noted as a fault."""
    samples = outcome.samples
    if len(samples) < 6:
        outcome.faults.append(f"{len(samples)} samples are too few to judge: run it longer")
        return
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]

    def growth(name: str) -> float:
        early, late = (statistics.median(getattr(sample, name) for sample in part) for part in (middle, last))
        return float(late - early)

    outcome.resident_growth_bytes = round(growth("resident_bytes"))
    outcome.descriptors_growth, outcome.threads_growth = growth("descriptors"), growth("threads")
    links = [sample.pipes_in + sample.dials for sample in samples[third:]]
    if len(set(links)) > 1:
        slope, _ = statistics.linear_regression(links, [sample.resident_bytes for sample in samples[third:]])
        outcome.resident_bytes_per_1000_links = round(slope * 1000)
    if not all(sample.at_rest for sample in samples):
        outcome.faults.append(f"links were left over in {sum(not s.at_rest for s in samples)} of {len(samples)} rounds")


# --- the node under test ---------------------------------------------------------------------------------------------
class _Subject:
    """The node, and what is counted over its restarts."""

    def __init__(self, folder: Path, engine: str, orders: Connection) -> None:
        self._folder, self._engine, self._orders = folder, engine, orders
        self._port = 0
        self._pipes_in = self._dials = self._readings = self._rotations = 0
        self._restart = False

    async def run(self) -> None:
        """Run until the parent is gone. A restart is a new node in the same process."""
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(_POOL_THREADS)))
        again = True
        while again:
            churners.new_certificate(self._folder, SUBJECT)
            async with meshnode.open(churners.config(self._folder, SUBJECT, self._engine, port=self._port)) as node:
                node.subscribe("veh/**", callback=self._received, history=False)
                publishing = asyncio.create_task(_publish(node))
                if not self._port:
                    self._port = node.port
                self._orders.send(node.port)
                again = await self._serve(node)
                publishing.cancel()
                self._pipes_in, self._dials = self._links(node)

    def _received(self, _: meshnode.Reading) -> None:
        self._readings += 1

    def _links(self, node: meshnode.Node) -> tuple[int, int]:
        counted = node.statistics()
        return self._pipes_in + counted["pipes_opened"], self._dials + counted["dials"]

    async def _serve(self, node: meshnode.Node) -> bool:
        """Answer orders. Returns whether a new node has to be opened."""
        while True:
            try:
                order = await asyncio.to_thread(self._orders.recv)
            except (EOFError, ConnectionError):
                return False
            if order == "rotate":
                self._rotations += 1
                if self._engine == "nng":
                    return True
                before = node.certificate_ends
                churners.new_certificate(self._folder, SUBJECT, 30 + self._rotations)  # its end distinguishes it
                async with asyncio.timeout(ANSWER_S):
                    while node.certificate_ends == before:  # noqa: ASYNC110 -- nobody tells
                        await asyncio.sleep(0.05)
                self._orders.send(node.port)
            else:
                self._orders.send(await self._sample(node))

    async def _sample(self, node: meshnode.Node) -> Sample:
        ends_s = time.monotonic() + _REST_S
        while not (rest := self._at_rest(node)) and time.monotonic() < ends_s:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.05)
        gc.collect()
        _trim()
        held = []
        for _ in range(_LOOKS):  # a dial of a killed node may be under way, so the least of some looks counts
            held.append(_held())
            await asyncio.sleep(0.05)
        resident_bytes, descriptors, threads = (min(values) for values in zip(*held, strict=True))
        pipes_in, dials = self._links(node)
        return Sample(
            resident_bytes, descriptors, threads, pipes_in, dials, self._readings, self._rotations, rest
        )  # fmt: skip

    @staticmethod
    def _at_rest(node: meshnode.Node) -> bool:
        return node.statistics()["link_lanes"] == 0 and not any(peer.inbound_pipes for peer in node.peers())


async def _publish(node: meshnode.Node) -> None:
    import numpy as np

    tensor = np.ones(churners.TENSOR_ELEMENTS, np.float32)
    number = 0
    while True:
        node.publish(f"rsu/{SUBJECT}/beat", number, sensor="benchmark")
        if number % 10 == 0:
            node.publish(f"rsu/{SUBJECT}/tensor", tensor, sensor="benchmark")
        number += 1
        await asyncio.sleep(0.05)


def _held() -> tuple[int, int, int]:
    """Resident bytes, descriptors and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))  # noqa: PTH208
    return pages * os.sysconf("SC_PAGE_SIZE"), descriptors, threads


def _trim() -> None:
    """Have the C library give free memory back, so that only memory in use is measured."""
    with contextlib.suppress(AttributeError, OSError):  # a library without it
        ctypes.CDLL(None).malloc_trim(0)


def _run_subject(folder: Path, engine: str, orders: Connection) -> None:
    meshnode.identity.renewal.CHECK_S = 0.25  # instead of every five seconds
    asyncio.run(_Subject(folder, engine, orders).run())


# --- the run ---------------------------------------------------------------------------------------------------------
class _Slot:
    """One node that lives again and again under one name, and each time ends another way."""

    def __init__(self, context: BaseContext, folder: Path, name: str, engine: str, first: int) -> None:
        self._context, self._folder, self._name, self._engine, self._number = context, folder, name, engine, first
        self.process: Any = None
        self._ending = ""
        self._since_s = 0.0

    def begin(self, port: int) -> None:
        """Begin a new life."""
        self._ending = ENDINGS[self._number % len(ENDINGS)]
        self._number += 1
        arguments = self._folder, self._name, self._engine, port, self._ending
        self.process = self._context.Process(target=churners.live, args=arguments, daemon=True)  # type: ignore[attr-defined]
        self._since_s = time.monotonic()
        self.process.start()

    def ended(self, outcome: Outcome) -> bool:
        """Whether the life is over. It notes how it ended."""
        if self.process is None:
            return True
        if self.process.is_alive():
            if time.monotonic() - self._since_s < _LIFE_S:
                return False
            self.process.kill()
            outcome.faults.append(f"{self._name} on {self._engine} ({self._ending}) hung for {_LIFE_S:g} s")
        self.process.join()
        wanted = -signal.SIGKILL if "killed" in self._ending else 0
        if self.process.exitcode != wanted:
            outcome.faults.append(
                f"{self._name} on {self._engine} ({self._ending}) ended with status {self.process.exitcode}"
            )
        outcome.lives[self._ending] = outcome.lives.get(self._ending, 0) + 1
        outcome.certificates += 1
        self.process.close()
        self.process = None
        return True


def measure(folder: Path, engine: str, minutes: float, round_s: float = _ROUND_S, least_rounds: int = 6) -> Outcome:
    """Measure one engine. :raises ChildFailed: when the node or a helper of the churn does not answer."""
    outcome = Outcome(engine, minutes)
    create_mesh(folder / "authority", MESH)
    # Python's fork server has loaded the modules and opened no link: a life does not cost an interpreter's start
    nursery = multiprocessing.get_context("forkserver")
    nursery.set_forkserver_preload(["benchmarks.churners", "meshnode.node", "numpy"])
    spawn = multiprocessing.get_context("spawn")
    ends_s = time.monotonic() + minutes * 60
    with child(spawn, _run_subject, folder, engine) as subject:
        port = subject.answer()
        bare = folder, [f"veh-bare-{number}" for number in range(2)], list(ENGINES), port
        with child(spawn, churners.link_up, *bare) as linking:
            slots = [
                _Slot(nursery, folder, f"veh-{number}", ENGINES[number % 2], number // 2 + number % 2)
                for number in range(4)
            ]
            while time.monotonic() < ends_s or outcome.rounds < least_rounds:
                _round(outcome, subject, linking, slots, port, round_s)
                if outcome.rounds % 10 == 0:
                    _tell(outcome)
    judge(outcome)
    outcome.load_average = os.getloadavg()[2]
    return outcome


def _round(outcome: Outcome, subject: Child, linking: Child, slots: list[_Slot], port: int, round_s: float) -> None:
    ends_s = time.monotonic() + round_s
    linking.orders.send((round_s, _LINKS_HZ))
    subject.orders.send("rotate")  # while links and nodes come and go
    subject.answer()
    while (left_s := ends_s - time.monotonic()) > 0:
        for slot in slots:
            if slot.ended(outcome):
                slot.begin(port)
        time.sleep(min(left_s, 0.02))
    while [slot for slot in slots if not slot.ended(outcome)]:
        time.sleep(0.02)
    done: list[Linking] = linking.answer()
    for links in done:
        for ending, count in links.counts.items():
            outcome.links[ending] = outcome.links.get(ending, 0) + count
        outcome.certificates += links.certificates
    subject.orders.send("sample")
    sample: Sample = subject.answer()
    outcome.samples.append(sample)
    outcome.rounds += 1
    outcome.pipes_in, outcome.dials = sample.pipes_in, sample.dials
    outcome.readings, outcome.rotations = sample.readings, sample.rotations


def _tell(outcome: Outcome) -> None:
    last = outcome.samples[-1]
    print(
        f"{outcome.engine}: round {outcome.rounds}, {last.pipes_in} links in, {last.dials} out, "
        f"{last.resident_bytes / 1e6:.1f} MB, {last.descriptors} descriptors, {last.threads} threads",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("churn", "Connect, send, kill, rotate.", "something grew or went wrong")
    minutes, round_s = between(0.001, MAX_MINUTES), between(0.5, 600.0)
    parser.add_argument("--minutes", type=minutes, default=10.0, help="minutes on each engine (default: %(default)s)")
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both", help="default: %(default)s")
    parser.add_argument("--round-s", type=round_s, default=_ROUND_S, help="length of a round (default: %(default)s)")
    options = parser.parse_args(arguments)
    outcomes = []
    for engine in ENGINES if options.engine == "both" else (options.engine,):
        with measuring(f"churn on {engine}") as folder:
            outcome = measure(folder, engine, options.minutes, options.round_s)
        outcomes.append(outcome)
        print(
            f"{engine}: {outcome.pipes_in} links in, {outcome.dials} dialled, {sum(outcome.lives.values())} lives, "
            f"{outcome.rotations} rotations, {outcome.readings} readings; memory "
            f"{outcome.resident_growth_bytes / 1e6:+.2f} MB, descriptors {outcome.descriptors_growth:+g}, threads "
            f"{outcome.threads_growth:+g} from the second third to the last"
        )
    missed = [sentence for outcome in outcomes for sentence in outcome.missed_bars()]
    return finish(options, {"runs": [asdict(outcome) for outcome in outcomes]}, missed)


if __name__ == "__main__":
    sys.exit(main())
