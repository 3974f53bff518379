"""Compares the same scenario in simulator and emulator, and says where they agree, where they do not, and why.

The figures that a person plans with are judged: how soon nodes find each other, how long a reading takes, how soon a
gossip entry is everywhere, and how long an inference takes. They agree when neither is more than ``WITHIN`` above the
other. Tails and shares are shown too but not judged, because they depend on rare cases, of which a run of a minute has
few.

The nodes of an emulation share the processors of one host, and so do those of the simulation that is compared with it
(:mod:`sims.virtual.processors`). What each packet of the wire took tells how fast the host was in that run. What the
nodes would do on computers of their own, as on the road, is shown beside.

A difference is explained only by causes that the two results themselves show. When they show none, the comparison says
so.
"""

from collections.abc import Iterator
from statistics import median
from typing import Final

from msgspec import Struct, field

from protocols.base import limits
from sims.results.result import Distribution, Result
from sims.virtual.processors import WIRE_NS, Processors

WITHIN: Final = 0.25
_FEW: Final = 8
"""With fewer cases a median is mostly luck."""
_BUSY_CHANNEL: Final = 0.5
"""Above this channel busy ratio queues form. Waiting grows as 1/(1 - load), so a small error in load is a large one in
delay."""
_BUSY_HOST: Final = 0.7
_TINY: Final = 1e-9
_FEW_FRAMES: Final = 10_000
_MOST_SLOW: Final = 4.0


class ComparedFigure(Struct):
    """One figure in both harnesses."""

    figure: str
    unit: str
    emulator: float | None
    simulator: float | None
    """None when there was nothing to measure."""
    judged: bool
    apart: float | None = None
    """The simulator's figure when each node has a processor to itself."""
    ratio: float | None = None
    """The emulator's figure divided by the simulator's."""
    agrees: bool | None = None
    why: str = ""
    """The cause of a difference."""


class Comparison(Struct):
    """What ``meshsim compare`` prints."""

    scenario: str
    seed: int
    nodes: int
    within: float
    valid: bool
    why_invalid: str
    rows: list[ComparedFigure] = field(default_factory=list)
    wire: dict[str, float] = field(default_factory=dict)
    """The figures of the emulated wire and of the processors."""

    @property
    def agrees(self) -> bool:
        """Whether everything that is judged agrees."""
        return all(row.agrees is not False for row in self.rows if row.judged)


def compare(emulated: Result, simulated: Result, within: float = WITHIN, apart: Result | None = None) -> Comparison:
    """Set both results side by side. ``within``: how far apart they may be, as a share of the smaller. ``simulated``:
    on as many processors as the emulation had. ``apart``: with a processor for each node."""
    comparison = Comparison(
        emulated.scenario, emulated.seed, emulated.nodes, within, emulated.valid and simulated.valid,
        emulated.why_invalid or simulated.why_invalid,
        wire={name: value for name, value in emulated.figures.items() if name.startswith(("wire_", "nodes_cpu"))}
        | {"host_busy": round(busy_host(emulated), 4), "host_slowness": round(slowness_of(emulated), 3)},
    )  # fmt: skip
    alone = [row.simulator for row, _ in _rows(emulated, apart)] if apart is not None else []
    for number, (row, cases) in enumerate(_rows(emulated, simulated)):
        row.apart = alone[number] if number < len(alone) else None
        if row.emulator is not None and row.simulator is not None:
            row.ratio = round(row.emulator / max(row.simulator, _TINY), 3)
            row.agrees = 1 / (1 + within) <= row.ratio <= 1 + within
            if not row.agrees:
                row.why = "; ".join(_causes(row, cases, emulated, simulated)) or "nothing measured explains it"
        elif row.emulator is not None or row.simulator is not None:
            row.agrees = False
            row.why = f"only the {'emulator' if row.simulator is None else 'simulator'} has it"
        comparison.rows.append(row)
    return comparison


def _rows(emulated: Result, simulated: Result) -> Iterator[tuple[ComparedFigure, int]]:
    """Each figure, and the number of cases of the result that has fewer."""
    spreads = [
        ("discovery", emulated.discovery, simulated.discovery, True),
        ("reading latency", emulated.latency, simulated.latency, True),
        ("age of readings", emulated.age, simulated.age, False),
    ]
    if emulated.urgent.count or simulated.urgent.count:
        spreads.append(("urgent readings", emulated.urgent, simulated.urgent, False))
    if emulated.inference.count or simulated.inference.count:
        spreads.append(("inference", emulated.inference, simulated.inference, True))
    for figure, ours, theirs, judged in spreads:
        for quantile in ("p50", "p90", "p99"):
            row = ComparedFigure(
                f"{figure} {quantile}", ours.unit, _quantile(ours, quantile), _quantile(theirs, quantile),
                judged and quantile == "p50",
            )  # fmt: skip
            yield row, min(ours.count, theirs.count)
    for name in ("t50_s", "t90_s", "t100_s"):
        ours_s, theirs_s = _spreads(emulated, name), _spreads(simulated, name)
        row = ComparedFigure(
            f"dissemination {name[:-2]}, median", "s", median(ours_s) if ours_s else None,
            median(theirs_s) if theirs_s else None, name == "t90_s" or name == "t100_s",
        )  # fmt: skip
        yield row, min(len(ours_s), len(theirs_s))
    if emulated.inference.count or simulated.inference.count:
        yield ComparedFigure("inferences here", "share", _here(emulated), _here(simulated), judged=False), _FEW
    yield ComparedFigure("readings delivered", "share", _share(emulated), _share(simulated), judged=False), _FEW
    for figure, ours_per_s, theirs_per_s in (
        ("readings offered", emulated.offered_per_s, simulated.offered_per_s),
        ("readings useful", emulated.useful_per_s, simulated.useful_per_s),
    ):
        if ours_per_s or theirs_per_s:
            yield ComparedFigure(figure, "/s", ours_per_s or None, theirs_per_s or None, judged=False), _FEW
    yield ComparedFigure("channel busy", "share", _load(emulated), _load(simulated), judged=False), _FEW


def _quantile(spread: Distribution, name: str) -> float | None:
    return spread.quantiles.get(name) if spread.count else None


def _spreads(result: Result, name: str) -> list[float]:
    """Times of the entries that the scenario puts in. The entries that nodes author themselves spread while nodes still
    meet."""
    asked = (entry for entry in result.dissemination if entry.author.rpartition("/")[2] in ("spread", entry.author))
    times = [getattr(entry, name) for entry in asked]
    return [time for time in times if time is not None]


def _here(result: Result) -> float | None:
    """The share of the answered inferences that the asking node computed itself."""
    answered = result.inference.count
    return result.inference_by.get("here", 0) / answered if answered else None


def _share(result: Result) -> float | None:
    wanted = sum(result.distances.wanted)
    return sum(result.distances.delivered) / wanted if wanted else None


def _load(result: Result) -> float | None:
    later = [share for share in result.load[len(result.load) // 3 :] if share >= 0]
    return sum(later) / len(later) if later else None


# --- why -----------------------------------------------------------------------------------------------------------
def _causes(row: ComparedFigure, cases: int, emulated: Result, simulated: Result) -> Iterator[str]:
    if not emulated.valid:
        yield f"the emulation is invalid: {emulated.why_invalid}"
    if cases < _FEW:
        yield f"only {cases} cases"
    busy = busy_host(emulated)
    if busy > _BUSY_HOST:
        yield f"{busy:.0%} of this host's processors were busy: near capacity, waiting grows much faster than load"
    began = emulated.figures.get("host_busy_starting", 0.0)
    if row.figure.startswith("discovery") and began > _BUSY_HOST:
        yield f"while nodes started, {began:.0%} of this host's processors were busy: they waited for one another"
    cores = cores_of(emulated)
    if row.figure.startswith("dissemination") and emulated.nodes > cores:
        yield (
            f"an entry has all {emulated.nodes} nodes work at once, on {cores} processors: what work costs that finds "
            "caches cold or warm is known roughly"
        )
    ours, theirs = _load(emulated) or 0.0, _load(simulated) or 0.0
    if max(ours, theirs) > _BUSY_CHANNEL and not row.figure.startswith("channel"):
        yield (
            f"the channel was {ours:.0%} (emulator) and {theirs:.0%} (simulator) busy: near its capacity, waiting "
            "grows much faster than load"
        )
    if not _quantile(emulated.latency, "p99") or row.figure.endswith(("p90", "p99")):
        yield "tails hang on single stalls, of TCP and of busy processors"


def busy_host(emulated: Result) -> float:
    """The share of the host's processors that nodes and wire used."""
    cores = cores_of(emulated)
    used_s = emulated.figures.get("nodes_cpu_s", 0.0) + emulated.figures.get("wire_cpu_s", 0.0)
    return used_s / (cores * emulated.virtual_s) if emulated.virtual_s else 0.0


def host_of(emulated: Result) -> Processors:
    """The processors that the emulation ran on, as fast as they were then."""
    return Processors(cores_of(emulated), slowness_of(emulated))


def slowness_of(emulated: Result) -> float:
    """How many times as long the wire took for a packet as where costs were measured: shared hosts differ from day to
    day."""
    frames = emulated.figures.get("wire_frames", 0.0)
    if frames < _FEW_FRAMES:
        return 1.0
    return min(
        max(emulated.figures.get("wire_cpu_s", 0.0) * limits.SECOND / frames / WIRE_NS, 1 / _MOST_SLOW), _MOST_SLOW
    )


def cores_of(emulated: Result) -> int:
    """How many processors the host of the emulation had."""
    return int(emulated.versions.get("cores", "1"))
