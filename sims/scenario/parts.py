"""The structs of a scenario file: names, types, bounds, defaults. :mod:`sims.scenario.file` hands them on and loads
files.

Units stand in the names. Places are metres east (``x``) and north (``y``) of ``origin``. Headings are degrees clockwise
from north. Required fields come first: mypy does not know that msgspec could do without.

Left out: anything that only one of the two harnesses understands, apart from what a fault says of itself.
"""

from typing import Annotated, Final, Literal, get_args

from msgspec import Meta, Struct

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

MAX_SPREAD_BYTES: Final = 446
"""An entry has 1,024 bytes. Of real nodes in the emulator up to 578 were taken by all but the body and the name, which
stands in it three times, twice in the certificate; ECDSA signatures differ by 4 bytes in length."""


class Part(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of a scenario."""


class Radio(Part, frozen=True):
    """What the air does to a frame between two nodes. See :mod:`sims.media.radio` for the sources of the models."""

    model: Literal["logistic", "tr37885", "winner-plus", "ideal"] = "logistic"
    environment: Literal["highway", "urban", "urban-blocked"] = "urban"
    d50_m: Annotated[float, Meta(gt=0)] | None = None
    """Of the logistic model: where half of the frames arrive; None: that of ``environment``."""
    slope_m: Annotated[float, Meta(gt=0)] | None = None
    range_m: Annotated[float, Meta(gt=0)] | None = None
    """Nothing is heard beyond; None: where 1 % of the frames arrive."""
    bit_rate_mbps: Annotated[float, Meta(gt=0)] = 6.0
    latency_ms: Annotated[float, Meta(ge=0)] = 2.0
    """One way, beside airtime and queueing."""
    jitter_ms: Annotated[float, Meta(ge=0)] = 1.0
    """Uniform, on top."""
    loss: Share = 0.0
    """Beside what distance costs."""
    retries: Annotated[int, Meta(ge=0, le=15)] = 6
    """Of a unicast frame that was not acknowledged (802.11: 7 attempts)."""
    shared: bool = True
    """Whether nodes in range of one another share the airtime."""


class Hole(Part, frozen=True):
    """A circle without cellular coverage."""

    x_m: float
    y_m: float
    radius_m: Annotated[float, Meta(gt=0)]


class Cellular(Part, frozen=True):
    """The way to the relay."""

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
    """Nodes that stand; as many points as nodes."""

    points: Annotated[tuple[Point, ...], Meta(min_length=1)]


class Lattice(Part, frozen=True, tag="lattice", tag_field="kind"):
    """Nodes that stand on a square lattice, row by row."""

    spacing_m: Annotated[float, Meta(gt=0)]
    corner: Point = (0.0, 0.0)


class Waypoints(Part, frozen=True, tag="waypoints", tag_field="kind"):
    """Every node of the group runs through the same points; a point is (seconds, x, y)."""

    points: Annotated[tuple[tuple[float, float, float], ...], Meta(min_length=1)]
    stagger_s: Seconds = 0.0
    """The next node runs this much later. Before its first point and after its last a node stands there."""


class Streets(Part, frozen=True, tag="streets", tag_field="kind"):
    """A generated grid of streets; a vehicle turns at random at each crossing."""

    blocks: Annotated[int, Meta(ge=1, le=200)] = 10
    """Each way; there is a street on every side of a block."""
    spacing_m: Annotated[float, Meta(ge=1)] = 150.0
    speed_mps: Speed = 10.0
    corner: Point = (0.0, 0.0)


class Highway(Part, frozen=True, tag="highway", tag_field="kind"):
    """Parallel lanes, half of them each way; who leaves at one end comes back at the other."""

    length_m: Annotated[float, Meta(ge=10)] = 2_000.0
    lanes: Annotated[int, Meta(ge=1, le=12)] = 4
    lane_width_m: Annotated[float, Meta(gt=0)] = 3.5
    speed_mps: Speed = 33.0
    spread: Annotated[float, Meta(ge=0, le=0.9)] = 0.1
    """Of the speeds, each way of the mean."""
    corner: Point = (0.0, 0.0)
    """The western end of the southernmost lane."""


class Platoon(Part, frozen=True, tag="platoon", tag_field="kind"):
    """A column that drives east with equal gaps; the first node leads."""

    gap_m: Annotated[float, Meta(gt=0)] = 15.0
    speed_mps: Speed = 25.0
    start: Point = (0.0, 0.0)


class Trace(Part, frozen=True, tag="trace", tag_field="kind"):
    """Vehicles of a SUMO floating-car file. Those there at ``from_s`` and later take the names of the group in order of
    appearance; more vehicles than names are left out."""

    file: str
    """Beside the scenario, or of those that ship."""
    from_s: Seconds = 0.0
    """Time in the trace that is 0 here."""
    vehicles: tuple[str, ...] = ()
    """These and no others take the names, in this order; none: see above."""
    geo: bool = True
    """Whether the file holds longitudes and latitudes (``sumo --fcd-output.geo``), or metres in the frame of the other
    groups."""
    jumps: Literal["refuse", "reappear"] = "refuse"
    """What to do with a vehicle that is suddenly elsewhere, as SUMO moves those that are stuck: call the trace useless,
    or have it absent between the two time steps."""


Mobility = Fixed | Lattice | Waypoints | Streets | Highway | Platoon | Trace


class Group(Part, frozen=True):
    """Nodes alike. Their names are ``<name>-0``, ``<name>-1``, …"""

    name: Name
    count: Annotated[int, Meta(ge=1, le=20_000)]
    mobility: Mobility
    role: Literal["vehicle", "rsu"] = "vehicle"
    device: Literal["server", "rsu", "car-computer", "single-board"] = "car-computer"
    """Class of the computer: what signatures, codecs and models cost."""
    start_s: Seconds = 0.0
    stagger_s: Seconds = 0.0
    """Each node starts this much after the one before."""
    clock_skew_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Standard deviation of how wrong the clocks are at the start."""
    clock_drift_ppm: Annotated[float, Meta(ge=0, le=1_000)] = 0.0
    relay: bool = False
    """Whether these nodes send records to the relay."""


class Curation(Part, frozen=True):
    """What nodes of groups with ``relay`` keep for the relay: readings of their own."""

    interval_s: Annotated[float, Meta(ge=0, le=86_400)] = 1.0
    """Between two records of one key; 0: every reading."""
    lifespan_s: Annotated[float, Meta(ge=0.001, le=86_400)] = 86_400.0
    """What is not delivered by then expires."""
    max_records: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    """That wait at one node; beyond, the least urgent and then the oldest is evicted."""


class Traffic(Part, frozen=True):
    """Readings that each node of a group publishes as ``<vehicle or rsu>/<node>/<topic>``."""

    group: Name
    topic: Annotated[str, Meta(pattern="^[a-z0-9_-]{1,48}\\Z")] = "position"
    rate_hz: Rate = 10.0
    size_bytes: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    priority: Annotated[int, Meta(ge=0, le=7)] = 3
    lifespan_ms: Annotated[int, Meta(ge=0)] = 1_000
    hops: Annotated[int, Meta(ge=0, le=8)] = 0
    to: tuple[Name, ...] = ()
    """Groups that subscribe; none: all."""


class Inference(Part, frozen=True):
    """Work that each node of a group asks for."""

    group: Name
    rate_hz: Rate = 1.0
    input_bytes: Annotated[int, Meta(ge=1, le=8_000_000)] = 30_000
    output_bytes: Annotated[int, Meta(ge=1, le=8_000_000)] = 1_000
    compute_ms: Annotated[float, Meta(gt=0)] = 50.0
    """On a ``car-computer``; other devices by their factor."""
    deadline_ms: Annotated[int, Meta(gt=0, le=600_000)] = 500
    offered_by: tuple[Name, ...] = ()
    """Groups that have the model; none: all."""


class Spread(Part, frozen=True):
    """A signed entry that one node puts in, for everybody to have."""

    at_s: Seconds
    author: str
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_SPREAD_BYTES)] = 200

    @property
    def room_bytes(self) -> int:
        """What fits into an entry beside the name, the certificate and the signature of its author."""
        return MAX_SPREAD_BYTES - 3 * len(self.author)


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
    """0: to the end."""
    nodes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """The far side of a partition, a loss or a clog; none: everybody else. A loss is of what ``nodes`` send to it."""
    keep_disk: bool = True
    """Of a crash: whether what was stored is there at the restart."""
    share: Share = 1.0
    """Of the frames that are lost one way."""
    delay_ms: Annotated[float, Meta(ge=0)] = 500.0
    """Of a clog."""
    factor: Annotated[float, Meta(ge=1, le=1000)] = 20.0
    """How much slower a slow node is, or how far load is understated."""
    jump_s: float = 60.0


class RandomFaults(Part, frozen=True):
    """Faults drawn from the seed: each seed draws which kinds are on, how many and when."""

    kinds: Annotated[tuple[FaultKind, ...], Meta(min_length=1)]
    until_s: Seconds
    """Everything is well again by then: liveness is judged after it."""
    most: Annotated[int, Meta(ge=1, le=1_000)] = 8
    from_s: Seconds = 5.0
    longest_s: Annotated[float, Meta(gt=0)] = 5.0


class Checks(Part, frozen=True):
    """What is judged beside what is always judged."""

    names: tuple[str, ...] = ()
    """None: all that are known."""
    settle_s: Seconds = 15.0
    """After the last fault, until everything has to be well."""


class Scenario(Part, frozen=True):
    """See the module."""

    name: Name
    description: str
    duration_s: Annotated[float, Meta(gt=0, le=86_400)]
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
    faults: tuple[Fault, ...] = ()
    random_faults: RandomFaults | None = None
    checks: Checks = Checks()
    folder: str = ""
    """Where the file is; set by :func:`load`, so that a trace beside it is found. Empty for those that ship."""

    @property
    def names(self) -> list[str]:
        """Of all nodes, in the order of their numbers."""
        return [f"{group.name}-{number}" for group in self.groups for number in range(group.count)]

    def members(self, what: str) -> list[str]:
        """Node names that a node's or a group's name stands for. :raises ScenarioError: nobody has it."""
        for group in self.groups:
            if group.name == what:
                return [f"{group.name}-{number}" for number in range(group.count)]
        names = self.names
        if what in names:
            return [what]
        known = [group.name for group in self.groups] + names
        raise ScenarioError(f"nobody is called {shown(what)}{nearest(what, known)}")
