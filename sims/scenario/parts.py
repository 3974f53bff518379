"""The structs of a scenario file: names, types, bounds, defaults. :mod:`sims.scenario.file` hands them on and loads
files.

The units are in the names. Places are metres east (``x``) and north (``y``) of ``origin``. Headings are degrees
clockwise from north. Required fields come first, because mypy does not know that msgspec could do without that order.

Left out: settings that only simulator or emulator understands, apart from those of faults.
"""

from typing import Annotated, Final, Literal, get_args

from msgspec import Meta, Struct

from protocols.releases.catalogue import MAX_CANARIES, Gates
from sims.errors import ScenarioError
from sims.scenario.schema import nearest, shown

Metres = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, le=1000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Speed = Annotated[float, Meta(ge=0.1, le=100)]
Point = tuple[float, float]
Latitude = Annotated[float, Meta(ge=-89, le=89)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
Name = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,47}\\Z")]

RuleFiles = Annotated[tuple[str, ...], Meta(max_length=16)]
"""Files of rules, each from the folder of the scenario, or one of those that ship."""
Range = tuple[float, float]
"""The least and the most that a number may be."""

MAX_SPREAD_BYTES: Final = 446
"""The largest body that fits an entry of 1,024 bytes. In the emulator, everything but the body and the name took up to
578 bytes. The name is in an entry three times, two of them in the certificate. ECDSA signatures differ by 4 bytes in
length."""

MAX_ROWS: Final = 1_024
"""Of one simulated batch."""
MAX_WEIGHT_BYTES: Final = 1_000_000_000
"""Of one simulated model. A stage above 512 MiB is taken by nobody."""


class Part(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of all parts of a scenario."""


class Radio(Part, frozen=True):
    """What the air does to a frame between two nodes. See :mod:`sims.media.radio` for the sources of the models."""

    model: Literal["logistic", "tr37885", "winner-plus", "ideal"] = "logistic"
    environment: Literal["highway", "urban", "urban-blocked"] = "urban"
    d50_m: Annotated[float, Meta(gt=0)] | None = None
    """The distance at which half of the frames arrive, in the logistic model; None: that of ``environment``."""
    slope_m: Annotated[float, Meta(gt=0)] | None = None
    range_m: Annotated[float, Meta(gt=0)] | None = None
    """Nothing is heard beyond it; None: the distance at which 1 % of the frames arrive."""
    bit_rate_mbps: Annotated[float, Meta(gt=0)] = 6.0
    latency_ms: Annotated[float, Meta(ge=0)] = 2.0
    """The delay one way, beside airtime and queueing."""
    jitter_ms: Annotated[float, Meta(ge=0)] = 1.0
    """A uniform delay on top."""
    loss: Share = 0.0
    """The share of frames that is lost in addition to what distance costs."""
    retries: Annotated[int, Meta(ge=0, le=15)] = 6
    """How often a unicast frame is repeated that was not acknowledged (802.11: 7 attempts)."""
    shared: bool = True
    """Whether nodes in range of one another share the airtime."""


class Hole(Part, frozen=True):
    """A circle without cellular coverage."""

    x_m: float
    y_m: float
    radius_m: Annotated[float, Meta(gt=0)]


class Cellular(Part, frozen=True):
    """The cellular way to the relay."""

    latency_ms: Annotated[float, Meta(ge=0)] = 50.0
    jitter_ms: Annotated[float, Meta(ge=0)] = 20.0
    bit_rate_mbps: Annotated[float, Meta(gt=0)] = 20.0
    holes: tuple[Hole, ...] = ()


class Backbone(Part, frozen=True):
    """Wires between roadside units."""

    groups: tuple[Name, ...]
    """All nodes of these groups are wired to one another."""
    latency_ms: Annotated[float, Meta(ge=0)] = 1.0
    bit_rate_mbps: Annotated[float, Meta(gt=0)] = 1000.0


class Fixed(Part, frozen=True, tag="fixed", tag_field="kind"):
    """Nodes that stand still. There are as many points as nodes."""

    points: Annotated[tuple[Point, ...], Meta(min_length=1)]


class Lattice(Part, frozen=True, tag="lattice", tag_field="kind"):
    """Nodes that stand still on a square lattice, row by row."""

    spacing_m: Annotated[float, Meta(gt=0)]
    corner: Point = (0.0, 0.0)


class Waypoints(Part, frozen=True, tag="waypoints", tag_field="kind"):
    """Every node of the group runs through the same points; a point is (seconds, x, y)."""

    points: Annotated[tuple[tuple[float, float, float], ...], Meta(min_length=1)]
    stagger_s: Seconds = 0.0
    """Each node runs this much later than the one before. Before its first point and after its last a node stands
    there."""


class Streets(Part, frozen=True, tag="streets", tag_field="kind"):
    """A generated grid of streets; a vehicle turns at random at each crossing."""

    blocks: Annotated[int, Meta(ge=1, le=200)] = 10
    """How many blocks each way. There is a street on every side of a block."""
    spacing_m: Annotated[float, Meta(ge=1)] = 150.0
    speed_mps: Speed = 10.0
    corner: Point = (0.0, 0.0)


class Highway(Part, frozen=True, tag="highway", tag_field="kind"):
    """Parallel lanes, half of them each way. A vehicle that leaves at one end comes back at the other."""

    length_m: Annotated[float, Meta(ge=10)] = 2_000.0
    lanes: Annotated[int, Meta(ge=1, le=12)] = 4
    lane_width_m: Annotated[float, Meta(gt=0)] = 3.5
    speed_mps: Speed = 33.0
    spread: Annotated[float, Meta(ge=0, le=0.9)] = 0.1
    """How far the speeds differ from the mean, each way, as a share of it."""
    corner: Point = (0.0, 0.0)
    """The western end of the southernmost lane."""


class Platoon(Part, frozen=True, tag="platoon", tag_field="kind"):
    """A column that drives east with equal gaps; the first node leads."""

    gap_m: Annotated[float, Meta(gt=0)] = 15.0
    speed_mps: Speed = 25.0
    start: Point = (0.0, 0.0)


class Trace(Part, frozen=True, tag="trace", tag_field="kind"):
    """Vehicles of a SUMO floating-car file. Vehicles that are there at ``from_s`` or later take the names of the group
    in order of appearance. Vehicles beyond the number of names are left out."""

    file: str
    """A file beside the scenario, or one of those that ship."""
    from_s: Seconds = 0.0
    """The time in the trace that is 0 in the scenario."""
    vehicles: tuple[str, ...] = ()
    """Only these vehicles take the names, in this order; when empty, all do as described above."""
    geo: bool = True
    """Whether the file holds longitudes and latitudes (``sumo --fcd-output.geo``), or metres in the frame of the other
    groups."""
    jumps: Literal["refuse", "reappear"] = "refuse"
    """What to do with a vehicle that is suddenly elsewhere, as SUMO moves vehicles that are stuck: call the trace
    useless, or have the vehicle absent between the two time steps."""


Mobility = Fixed | Lattice | Waypoints | Streets | Highway | Platoon | Trace


class Group(Part, frozen=True):
    """Nodes of the same kind. Their names are ``<name>-0``, ``<name>-1``, …"""

    name: Name
    count: Annotated[int, Meta(ge=1, le=20_000)]
    mobility: Mobility
    role: Literal["vehicle", "rsu"] = "vehicle"
    device: Literal["server", "rsu", "rsu-gpu", "car-computer", "single-board"] = "car-computer"
    """The class of the computer, which decides what signatures, codecs and models cost."""
    start_s: Seconds = 0.0
    stagger_s: Seconds = 0.0
    """Each node starts this much after the one before."""
    clock_skew_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Standard deviation of how wrong the clocks are at the start."""
    clock_drift_ppm: Annotated[float, Meta(ge=0, le=1_000)] = 0.0
    relay: bool = False
    """Whether these nodes send records to the relay."""
    accept_stages: bool = False
    """Whether these nodes run stages of models that other nodes have cut."""
    multicast: bool = False
    """Whether these nodes send one datagram to all neighbours who listen, and hear those of others."""
    rules: RuleFiles | None = None
    """The files of rules that these nodes run; None: those of ``curation``."""


class ExpectedRecords(Part, frozen=True):
    """The records of one rule that the relay has to have at the end."""

    rule: str
    """The name of the rule that their node made them by."""
    at_least: Annotated[int, Meta(ge=0)] = 1
    at_most: Annotated[int, Meta(ge=0)] | None = None
    """None: any number."""
    nodes: tuple[str, ...] = ()
    """Names of the nodes and groups that make them; empty: all. The numbers above are of all of them together."""
    value: dict[str, Range] | Range | None = None
    """What numbers in the value of each of them may be, by their place in it: ``count``, or ``readings.0.value`` where
    tables and lists are in one another. One range alone is for values that are numbers themselves."""


class Curation(Part, frozen=True):
    """What the nodes of groups with ``relay`` keep for the relay: some of their own readings, and what rules derive."""

    interval_s: Annotated[float, Meta(ge=0, le=86_400)] = 1.0
    """The least time between two records of one key; 0: every reading is a record."""
    lifespan_s: Annotated[float, Meta(ge=0.001, le=604_800)] = 86_400.0
    """A record that is not delivered by then expires."""
    max_records: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    """The number of records that may wait at one node. Beyond it the least urgent is evicted, and of these the
    oldest."""
    own_readings: bool = True
    """Whether readings of their own become records as they are; False: only what rules derive."""
    rules: RuleFiles = ()
    """The files of rules that they run, unless their group has its own."""
    expected: tuple[ExpectedRecords, ...] = ()


class Traffic(Part, frozen=True):
    """The readings that each node of a group publishes as ``<vehicle or rsu>/<node>/<topic>``."""

    group: Name
    topic: Annotated[str, Meta(pattern="^[a-z0-9_-]{1,48}\\Z")] = "position"
    rate_hz: Rate = 10.0
    value: Literal["zeros", "speed", "acceleration"] = "zeros"
    """``size_bytes`` zeros, or a number: the speed in m/s, or how much it has changed, in m/s²."""
    size_bytes: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    priority: Annotated[int, Meta(ge=0, le=7)] = 3
    lifespan_ms: Annotated[int, Meta(ge=0)] = 1_000
    hops: Annotated[int, Meta(ge=0, le=8)] = 0
    to: tuple[Name, ...] = ()
    """The groups that subscribe; empty: all groups."""


class Cut(Part, frozen=True):
    """A place where a model can be cut."""

    share: Annotated[float, Meta(gt=0, lt=1)]
    """The part of the run time before it."""
    size_bytes: Annotated[int, Meta(ge=1, le=8_000_000)]
    """Of all tensors that cross it."""
    weight_bytes: Annotated[int, Meta(ge=0, le=MAX_WEIGHT_BYTES)] = 0
    """Of the weights before it."""


class Inference(Part, frozen=True):
    """The work that each node of a group asks for, and the model that does it."""

    group: Name
    rate_hz: Rate = 1.0
    input_bytes: Annotated[int, Meta(ge=1, le=8_000_000)] = 30_000
    output_bytes: Annotated[int, Meta(ge=1, le=8_000_000)] = 1_000
    compute_ms: Annotated[float, Meta(gt=0)] = 50.0
    """The time on a ``car-computer``. Other devices take their factor times as long."""
    deadline_ms: Annotated[int, Meta(gt=0, le=600_000)] = 500
    offered_by: tuple[Name, ...] = ()
    """The groups that have the model; empty: all groups."""
    cuts: Annotated[tuple[Cut, ...], Meta(max_length=64)] = ()
    """Where the model can be cut, in the order of computation."""
    weight_bytes: Annotated[int, Meta(ge=0, le=MAX_WEIGHT_BYTES)] = 0
    """Of all weights of a model that can be cut. Stages travel with theirs."""
    split: Literal["latency", "throughput", "off"] = "latency"
    """What plans of a model with ``cuts`` are made for. off: it is not cut, although it could be."""
    private: bool = False
    """Whether the inputs must not leave the node that asks: neither for the whole model nor for its first stage."""
    rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 1
    """The rows of each request. More than one are a batch, which the node and its neighbours divide among themselves.
    Sizes and time above are those of one row."""


class Spread(Part, frozen=True):
    """A signed gossip entry that one node puts in, and that spreads to all nodes."""

    at_s: Seconds
    author: str
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_SPREAD_BYTES)] = 200

    @property
    def room_bytes(self) -> int:
        """What fits into an entry beside the name, the certificate and the signature of its author."""
        return MAX_SPREAD_BYTES - 3 * len(self.author)


class PublishedRelease(Part, frozen=True):
    """A release of a model that is published, and that all nodes are to serve."""

    size_mib: Annotated[float, Meta(gt=0, le=512)] = 1.0
    chunk_kib: Annotated[int, Meta(ge=16, le=256)] = 64
    published_at_s: Seconds = 5.0
    seeds: tuple[str, ...] = ()
    """The nodes and groups on whose disks it is then; empty: the relay has it, and nodes of groups with ``relay`` fetch
    it from there."""
    liars: Share = 0.0
    """The share of the nodes, drawn from the seed, that lie about releases, each in one of five ways."""
    forbidden: tuple[Literal["vehicle", "rsu"], ...] = ()
    """The roles that may have no release."""
    canaries: Annotated[int, Meta(ge=0, le=MAX_CANARIES)] = 0
    """So many nodes, drawn from the seed among those that may have it, serve it first; 0: all at once. Liars sign the
    opposite of what is true, whether they are canaries or not."""
    soak_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    """How long canaries serve it before they call it healthy."""
    failing: Share = 0.0
    """The share of its runs that fail at every node that has served it for half of the soak time. More than 0.01 is a
    bad release."""

    @property
    def is_bad(self) -> bool:
        """Whether it is to be taken back."""
        return self.failing > Gates().max_errors


FaultKind = Literal[
    "crash", "partition", "one-way-loss", "clog", "slow-node", "full-disk", "clock-jump", "relay-outage",
    "false-adverts", "forged-gossip", "stale-gossip", "false-load",
]  # fmt: skip
FAULT_KINDS: Final[tuple[str, ...]] = get_args(FaultKind)


class Fault(Part, frozen=True):
    """Something that goes wrong. ``nodes`` are names of nodes or groups; a relay outage has none."""

    kind: FaultKind
    at_s: Seconds
    for_s: Seconds = 0.0
    """0: it lasts to the end."""
    nodes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """The far side of a partition, a loss or a clog; empty: everybody else. A loss concerns what ``nodes`` send to
    it."""
    keep_disk: bool = True
    """After a crash: whether what was stored is there at the restart."""
    share: Share = 1.0
    """The share of the frames that is lost one way."""
    delay_ms: Annotated[float, Meta(ge=0)] = 500.0
    """The delay of a clog."""
    factor: Annotated[float, Meta(ge=1, le=1000)] = 20.0
    """How much slower a slow node is, or how far load is understated."""
    jump_s: float = 60.0


class RandomFaults(Part, frozen=True):
    """Faults drawn from the seed. Each seed draws which kinds are on, how many faults there are, and when."""

    kinds: Annotated[tuple[FaultKind, ...], Meta(min_length=1)]
    until_s: Seconds
    """All faults are over by then, because liveness is judged after it."""
    most: Annotated[int, Meta(ge=1, le=1_000)] = 8
    from_s: Seconds = 5.0
    longest_s: Annotated[float, Meta(gt=0)] = 5.0


class Checks(Part, frozen=True):
    """Which checks judge the run, and when."""

    names: tuple[str, ...] = ()
    """The names of the checks; empty: all that are known."""
    settle_s: Seconds = 15.0
    """After the last fault everything must have recovered within this time."""


class Scenario(Part, frozen=True):
    """A whole scenario."""

    name: Name
    description: str
    duration_s: Annotated[float, Meta(gt=0, le=604_800)]
    groups: Annotated[tuple[Group, ...], Meta(min_length=1)]
    origin: tuple[Latitude, Longitude] = (48.7665, 11.4258)
    """Latitude and longitude of (0, 0) in degrees."""
    seed: Annotated[int, Meta(ge=0)] = 1
    radio: Radio = Radio()
    cellular: Cellular = Cellular()
    backbone: tuple[Backbone, ...] = ()
    curation: Curation = Curation()
    traffic: tuple[Traffic, ...] = ()
    inference: tuple[Inference, ...] = ()
    gossip: tuple[Spread, ...] = ()
    releases: PublishedRelease | None = None
    faults: tuple[Fault, ...] = ()
    random_faults: RandomFaults | None = None
    checks: Checks = Checks()
    folder: str = ""
    """The folder of the file. :func:`load` sets it, so that a trace beside the file is found. It is empty for scenarios
    that ship."""

    @property
    def names(self) -> list[str]:
        """The names of all nodes, in the order of their numbers."""
        return [f"{group.name}-{number}" for group in self.groups for number in range(group.count)]

    @property
    def may_have_release(self) -> list[str]:
        """The names of the nodes whose role may have the release, in the order of their numbers."""
        forbidden = () if self.releases is None else self.releases.forbidden
        return [f"{group.name}-{number}" for group in self.groups if group.role not in forbidden
                for number in range(group.count)]  # fmt: skip

    @property
    def models(self) -> dict[str, Inference]:
        """The models by name: one for each inference."""
        return {f"model-{number}": work for number, work in enumerate(self.inference)}

    @property
    def has_rules(self) -> bool:
        """Whether records depend on more than the readings of their node and their interval, or any are expected."""
        curation = self.curation
        has_files = any(self.rule_files(group) for group in self.groups)
        return has_files or bool(curation.expected) or not curation.own_readings

    def rule_files(self, group: Group) -> tuple[str, ...]:
        """The files of rules that the nodes of a group run."""
        if not group.relay:
            return ()
        return self.curation.rules if group.rules is None else group.rules

    def members(self, what: str) -> list[str]:
        """The names of the nodes that the name of a node or group stands for. :raises ScenarioError: when nobody has
        that name."""
        for group in self.groups:
            if group.name == what:
                return [f"{group.name}-{number}" for number in range(group.count)]
        names = self.names
        if what in names:
            return [what]
        known = [group.name for group in self.groups] + names
        raise ScenarioError(f"nobody is called {shown(what)}{nearest(what, known)}")
