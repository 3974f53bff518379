"""What a run leaves behind: the recorder that both harnesses feed, and the result that reports and comparisons read.

The recorder is bounded (:mod:`sims.results.recorder` holds the bounds). Figures go into histograms at once, single
events are kept only up to a number, and ``left_out`` says what is not there. :mod:`sims.results.saved` puts a result on
disk.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct, field

from protocols.inference.events import PartReport
from sims.scenario.file import Fault

RESULT_VERSION = 1
PIPELINE, SHARDS = "pipeline", "shards"
"""Who answered a request whose stages, or whose shards, were computed by several nodes."""


class CheckTally(Struct):
    """How often a check judged, and with what outcome."""

    passed: int = 0
    failed: int = 0
    details: list[str] = field(default_factory=list)
    """The first failures in words."""


class Distribution(Struct):
    """A distribution: quantiles by name (``p50`` …), count, mean, and the histogram it was made from."""

    unit: str
    count: int = 0
    mean: float = 0.0
    quantiles: dict[str, float] = field(default_factory=dict)
    edges: list[float] = field(default_factory=list)
    """The upper edges of the bins, which are logarithmic for times."""
    counts: list[int] = field(default_factory=list)


class NodeInfo(Struct):
    """One node."""

    name: str
    role: str
    group: str
    device: str


class Happening(Struct, array_like=True):
    """Something on the timeline: a fault, a meeting, a death, a new entry, a broken promise."""

    at_s: float
    kind: str
    node: str
    other: str = ""
    detail: str = ""


class Message(Struct, array_like=True):
    """One traced reading on its way: who published it when, and who got it when."""

    published_s: float
    origin: str
    key: str
    sequence: int
    arrivals: list[tuple[str, float]] = field(default_factory=list)


class Dissemination(Struct):
    """How one gossip entry spread: seconds until a share of the nodes that were there had it; None when they never had
    it."""

    author: str
    version: int
    t50_s: float | None = None
    t90_s: float | None = None
    t100_s: float | None = None
    holders: int = 0
    made_s: float = 0.0
    """When its author put it in. The times above count from here."""
    there: int = 0
    """How many nodes were there from then to the end, or hold it. The shares are of these."""
    curve: list[tuple[float, int]] = field(default_factory=list)
    """Pairs of seconds since ``made_s`` and the number of nodes that hold it, thinned."""


class PartRuns(Struct):
    """The runs of one part of the requests for a model, by those of one kind."""

    model: str
    kind: str
    """``stage`` or ``shard``."""
    index: int
    """The place of a stage among those of a request, from 0 …"""
    of: int
    """… and how many stages these requests had. Both are 0 for shards, whose place does not matter."""
    between: str
    """Where a stage begins and ends, in words; empty for a shard."""
    by: str
    """``here``, which is the node that asked, or the group of those who ran it."""
    device: str
    runs: int = 0
    replays: int = 0
    """How many further runs were begun, because one was late, lost or failed."""
    took_p50_ms: float = 0.0
    """From the decision to start it until its result was there."""
    compute_p50_ms: float = 0.0
    input_bytes: int = 0
    """Of the last run."""
    output_bytes: int = 0


class RuleOutcome(Struct):
    """What one rule of curation came to, over all nodes and lives."""

    records: int = 0
    """Those that the relay has at the end …"""
    size_bytes: int = 0
    """… and the bytes of their readings."""
    readings: dict[str, int] = field(default_factory=dict)
    """How many readings it derived, took and left out, by the names in the reference of rules."""


class Distances(Struct):
    """By distance, in bins of ``width_m``: readings that were wanted and that came, and neighbours in range that were
    known."""

    width_m: float = 25.0
    wanted: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    in_range: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)


class Result(Struct):
    """The result of one run."""

    version: int
    harness: str
    """Either ``simulator`` or ``emulator``."""
    scenario: str
    seed: int
    nodes: int
    virtual_s: float
    wall_s: float
    digest: str = ""
    valid: bool = True
    why_invalid: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    node_infos: list[NodeInfo] = field(default_factory=list)
    checks: dict[str, CheckTally] = field(default_factory=dict)
    sometimes: dict[str, int] = field(default_factory=dict)
    """How often each fault, fallback and failover occurred."""
    figures: dict[str, float] = field(default_factory=dict)
    """Single figures by name, with the unit in the name: ``discovery_all_s``, ``events``, ``wire_late_p99_ms`` …"""
    counters: dict[str, int] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    latency: Distribution = field(default_factory=lambda: Distribution("ms"))
    """Times from publishing to the callback."""
    urgent: Distribution = field(default_factory=lambda: Distribution("ms"))
    """The same for readings of priority 6 and 7 that were published in the measured span."""
    urgent_wanted: int = 0
    """Pairs of an urgent reading and a node to which it was offered, in the measured span …"""
    urgent_missed: int = 0
    """… and how many of them did not come within the lifespan of the reading."""
    offered_per_s: float | None = None
    """Readings times nodes that wanted them, a second of the measured span: from when the scenario starts its last
    node to the end of the run. :mod:`sims.results.goodput` has the definitions. None in results of older versions."""
    useful_per_s: float | None = None
    """Pairs of a reading and a node that got it within its lifespan, each once, a second of the same span."""
    age: Distribution = field(default_factory=lambda: Distribution("ms"))
    """Age of information: how old the newest reading of a neighbour in range is, sampled over ordered pairs in which
    one subscribes to what the other publishes. As long as nothing has come, it is the time since both are there."""
    discovery: Distribution = field(default_factory=lambda: Distribution("s"))
    """Times from the later of both starts (or from coming into range) until one has met the other."""
    inference: Distribution = field(default_factory=lambda: Distribution("ms"))
    inference_by: dict[str, int] = field(default_factory=dict)
    """Answers by who computed them (group names, ``here``, or ``pipeline`` and ``shards`` for several together), and
    failures by reason."""
    parts: list[PartRuns] = field(default_factory=list)
    """Who ran which part of the requests that were divided. Empty in results of older versions."""
    rules: dict[str, RuleOutcome] = field(default_factory=dict)
    """What the rules of curation came to, by name. Empty in results of older versions, and of an emulation."""
    distances: Distances = field(default_factory=Distances)
    dissemination: list[Dissemination] = field(default_factory=list)
    load_every_s: float = 1.0
    load: list[float] = field(default_factory=list)
    """Mean channel busy ratio, one value every ``load_every_s``; -1 where it was not measured."""
    meetings: list[int] = field(default_factory=list)
    """How many nodes met another, in each span of ``meetings_every_s``."""
    meetings_every_s: float = 1.0
    places_every_s: float = 1.0
    places: dict[str, list[list[float] | None]] = field(default_factory=dict)
    """By node: [x_m, y_m] every ``places_every_s``; None while it is not on the map."""
    faults: list[Fault] = field(default_factory=list)
    """The tape: what went wrong, when, and with whom."""
    happenings: list[Happening] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What the bounds of the recorder cut, in words."""

    @property
    def broken(self) -> list[str]:
        """The names of the checks that failed."""
        return [name for name, check in self.checks.items() if check.failed]


class Recorder(Protocol):
    """Takes notes while a run goes on. ``now`` is nanoseconds since its start, and nodes go by their names."""

    def judge(self, check: str, kept: bool, detail: str, now: int, times: int = 1) -> None:
        """Count one judgement of a check, or several alike. ``detail`` is used only for a failure: pass a constant, or
        build it only then."""

    def occurred(self, what: str, now: int, node: str, other: str = "", detail: str = "") -> None:
        """Something happened on the timeline. It is counted in ``sometimes`` too."""

    def placed(self, now: int, node: str, x_m: float, y_m: float) -> None:
        """A node is at a place. This is called every ``places_every_s``."""

    def published(self, now: int, origin: str, key: str, sequence: int) -> None:
        """A reading was published."""

    def delivered(self, now: int, node: str, origin: str, key: str, sequence: int, published: int) -> None:
        """A reading reached a subscriber's callback. This is hot: it is called for each delivery."""

    def met(self, now: int, node: str, other: str, possible_since: int) -> None:
        """A node met another."""

    def spread(self, now: int, node: str, author: str, version: int) -> None:
        """A node holds an entry now that it did not hold before."""

    def answered(self, now: int, node: str, by: str, took_ns: int, failure: str = "") -> None:
        """An inference ended. ``by``: a node, ``here``, :data:`PIPELINE`, :data:`SHARDS`, or empty when nobody
        answered."""

    def divided(self, node: str, model: str, parts: Sequence[PartReport]) -> None:
        """An inference of ``node`` that was divided ended. ``parts``: those that were computed."""

    def busy(self, now: int, share: float) -> None:
        """The channel had this mean busy ratio."""

    def aware(self, distance_m: float, known: bool) -> None:
        """Whether one node of a pair in range knows the other, sampled."""

    def wanted(self, distance_m: float, came: bool) -> None:
        """Whether one reading came to one subscriber, and over which distance."""

    def aged(self, age_ns: int) -> None:
        """The newest reading of one pair has this age, sampled."""
