"""Views of neighbours for people and programs, which put together what several machines know."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from protocols.base.ids import Lane, NodeId, Role
from protocols.inference.machine import Inference
from protocols.links.drops import Drops
from protocols.links.lanes import Lanes, Queues
from protocols.machine import Machine
from protocols.membership.machine import Membership
from protocols.membership.neighbour import State
from protocols.readings.machine import Router
from protocols.wire.inference import Offer

_NONE: Final = Queues(NodeId("none"), Drops(), 0)
"""Those of a neighbour to which no lane was opened."""


class PeerView(Struct, frozen=True):
    """A neighbour, for people and programs."""

    node: NodeId
    role: Role
    state: State
    incarnation: int
    met: bool
    round_trip_ns: int
    """0: it is not measured yet."""
    silent_ns: int
    hears_us: bool
    lanes: tuple[Lane, ...]
    inbound_pipes: int
    waiting_readings: int
    waiting_bytes: int
    offers: tuple[Offer, ...]
    throughput_bytes_per_s: float = 0.0
    """What the link to it carries; 0: it is not measured yet."""
    is_behind: bool = False
    """Whether its lane can't keep up, or could not lately: older readings of a key give way to newer ones."""
    left_out: int = 0
    """How many readings have given way so."""
    frames_per_s: float = 0.0
    """What was sent to it lately on a lane that does not take all at once; 0: its lanes take all."""


def views(membership: Membership, lanes: Lanes, inference: Inference, now: int) -> list[PeerView]:
    """All neighbours known, by id; dead ones are listed for ``FORGET_DEAD_NS``."""
    shown = []
    for n in sorted(membership.neighbours.values(), key=lambda neighbour: neighbour.node):
        queues = lanes.of_node.get(n.node) or _NONE
        both = queues.realtime, queues.bulk
        shown.append(PeerView(
            n.node, n.role, n.state, n.incarnation, n.met, n.round_trip_ns, now - n.last_heard_ns, n.heard_by_peer,
            n.lanes, len(n.inbound),
            queues.waiting_readings, queues.waiting_bytes, inference.offers_of(n.node),
            round(inference.throughput_of(n.node), 1),
            any(lane.is_behind or lane.shortfall.is_recent(now) for lane in both),
            sum(lane.shortfall.left_out for lane in both),
            round(sum(lane.shortfall.frames_per_s(now) for lane in both), 1),
        ))  # fmt: skip
    return shown


def totals(
    membership: Membership, readings: Router, machines: Iterable[Machine], drops: Drops, lanes: Lanes
) -> dict[str, int]:
    """Counters by name, where those of a machine begin with its name."""
    counters = membership.counters()
    named = ((machine.name, machine.counters()) for machine in machines)
    for name, counts in ((readings.name, readings.counters()), *named):
        counters.update({f"{name}_{counter}": value for counter, value in counts.items()})
    return {**counters, "drops": drops.total, "pace_cuts": lanes.pace.cuts, "room_cuts": lanes.room.cuts}
