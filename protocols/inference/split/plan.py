"""Which node computes which stage of a model, and what that costs.

The *home* of a request is the node that owns it. It keeps the tensors of every boundary, sends a stage its inputs,
takes its outputs back and sends them on to the next stage: a star, in which no neighbour sends to another
(docs/adr/0030). So

    latency  the sum over all stages of
             at home      queue + service
             elsewhere    round trip + bytes given / up + bytes taken back / down + queue + service + overhead
    period   the busiest of: the processor of each node, which a request takes for its services there, and the owner's
             interface, which a request takes for all bytes to and from all neighbours
    service  of a stage between two boundaries: the share of the run time between them × the whole model's time there
    memory   of a node: the weights of its stages + the most that one of them is given or gives back

The first of the *boundaries* is the model's inputs, the last one its outputs, and those between them are its cuts.
Times are whole nanoseconds, so that sums do not depend on their order.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import Final, Literal

from msgspec import Struct

from protocols.base import limits
from protocols.base.errors import ValueUnsupported
from protocols.base.ids import NodeId

Goal = Literal["latency", "throughput"]
"""What a plan is chosen for: the time of one request, or the time between two results of a stream."""
LEAST_BYTES_PER_S: Final = 1.0
"""A slower link is none. Whoever has not measured a link assumes one."""


class CutPoint(Struct, frozen=True):
    """A place where a model can be divided, by what crosses it and what lies before it."""

    size_bytes: int
    """Of all tensors that cross."""
    share: float
    """The part of the run time before it, 0 to 1."""
    weight_bytes: int
    """Of the weights before it."""
    inputs_bytes: int = 0
    """Of those inputs of the model that are used behind it too. A neighbour that begins here is sent them as well."""

    @property
    def given_bytes(self) -> int:
        """What a stage that begins here is given."""
        return self.size_bytes + self.inputs_bytes


class Profile(Struct, frozen=True):
    """What decides the cost of dividing a model. :raises ValueUnsupported: when its cuts are not in order."""

    input_bytes: int
    output_bytes: int
    cuts: tuple[CutPoint, ...]
    """In the order of computation."""
    weight_bytes: int
    """Of the whole model."""

    def __post_init__(self) -> None:
        for number, (before, after) in enumerate(pairwise(self.boundaries)):
            is_later = before.share <= after.share and before.weight_bytes <= after.weight_bytes
            if not is_later or min(before.inputs_bytes, after.size_bytes, after.inputs_bytes) < 0:
                raise ValueUnsupported(
                    f"cut {number} ({after}) can't come after {before}: sort the cuts, give each the share (0 to 1) "
                    "and the weights of all that is computed before it, and sizes of 0 or more"
                )

    @property
    def boundaries(self) -> tuple[CutPoint, ...]:
        """The inputs, all cuts, and the outputs."""
        return (CutPoint(self.input_bytes, 0.0, 0), *self.cuts, CutPoint(self.output_bytes, 1.0, self.weight_bytes))


class Home(Struct, frozen=True):
    """The owner of a request that can compute stages itself."""

    node: NodeId
    whole_ns: int
    """The time of the whole model."""
    queue_ns: int = 0
    """How long each stage waits for other runs."""
    memory_bytes: int = 0
    """What all its stages together may take; 0: there is no bound."""


class OwnerOnly(Struct, frozen=True):
    """The owner of a request that can't compute the model, and has all of it computed by neighbours."""

    node: NodeId


class StageCandidate(Struct, frozen=True):
    """A neighbour that could compute a stage, with the link to it. :raises ValueUnsupported: when that link carries
    less than a byte a second."""

    node: NodeId
    whole_ns: int
    """The time of the whole model there."""
    round_trip_ns: int
    up_bytes_per_s: float
    """What the link carries to the neighbour …"""
    down_bytes_per_s: float
    """… and from it."""
    queue_ns: int = 0
    """How long a stage waits there for other runs."""
    overhead_ns: int = 0
    """What a run there takes that nothing else explains (:mod:`protocols.inference.costs`)."""
    memory_bytes: int = 0
    """What a stage may take there; 0: there is no bound."""

    def __post_init__(self) -> None:
        for bytes_per_s in (self.up_bytes_per_s, self.down_bytes_per_s):
            if not bytes_per_s >= LEAST_BYTES_PER_S:
                raise ValueUnsupported(
                    f"the link to {self.node} carries {bytes_per_s} bytes a second: leave this neighbour out"
                )

    @property
    def fixed_ns(self) -> int:
        """What a stage there takes beside its service and its transfers."""
        return self.round_trip_ns + self.queue_ns + self.overhead_ns


class PlacedStage(Struct, frozen=True):
    """A stage, and the node that computes it."""

    first: int
    """The index of the cut before it; -1: it begins with the model's inputs."""
    last: int
    """The index of the cut after it; the number of cuts: it ends with the model's outputs."""
    node: NodeId


class Plan(Struct, frozen=True):
    """All stages of a model in the order of computation, with what they are expected to cost."""

    stages: tuple[PlacedStage, ...]
    latency_ns: int
    """The time of one request."""
    period_ns: int
    """The time between two results of a stream."""

    def cost_ns(self, goal: Goal) -> int:
        """What is to be small."""
        return self.latency_ns if goal == "latency" else self.period_ns


def started_ns(boundary: CutPoint, whole_ns: int) -> int:
    """The time before a boundary where the whole model takes ``whole_ns``. A service is the difference of two of them,
    so the services of all stages add up."""
    return int(boundary.share * whole_ns)


def transfer_ns(size_bytes: int, bytes_per_s: float) -> int:
    """How long a link takes for ``size_bytes``."""
    return ceil(size_bytes / bytes_per_s * limits.SECOND)


def price(
    profile: Profile, home: Home | OwnerOnly, neighbours: Sequence[StageCandidate], stages: tuple[PlacedStage, ...]
) -> Plan | None:
    """What stages that were placed before cost now; None: one of their nodes is gone or has too little memory."""
    boundaries, there = profile.boundaries, {neighbour.node: neighbour for neighbour in neighbours}
    latency_ns = transfers_ns = 0
    busy_ns: dict[NodeId, int] = {}
    weights: dict[NodeId, int] = {}
    largest: dict[NodeId, int] = {}
    memory_bytes: dict[NodeId, int] = {}
    for stage in stages:
        before, after = boundaries[stage.first + 1], boundaries[stage.last + 1]
        node = home if stage.node == home.node else there.get(stage.node)
        if node is None or isinstance(node, OwnerOnly):
            return None
        service_ns = started_ns(after, node.whole_ns) - started_ns(before, node.whole_ns)
        if isinstance(node, StageCandidate):
            link_ns = transfer_ns(before.given_bytes, node.up_bytes_per_s)
            link_ns += transfer_ns(after.size_bytes, node.down_bytes_per_s)
            transfers_ns += link_ns
            latency_ns += node.fixed_ns + link_ns + service_ns
        else:
            latency_ns += node.queue_ns + service_ns
        busy_ns[stage.node] = busy_ns.get(stage.node, 0) + service_ns
        weights[stage.node] = weights.get(stage.node, 0) + after.weight_bytes - before.weight_bytes
        largest[stage.node] = max(largest.get(stage.node, 0), before.given_bytes, after.size_bytes)
        memory_bytes[stage.node] = node.memory_bytes
    if any(0 < bound < weights[node] + largest[node] for node, bound in memory_bytes.items()):
        return None
    return Plan(stages, latency_ns, max(transfers_ns, *busy_ns.values()))
