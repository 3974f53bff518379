"""The computers that could run stages of a model of this node, and how fast they are."""

from collections.abc import Callable, Mapping
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.reach import Reach
from protocols.inference.asking import Asking
from protocols.inference.costs import UNKNOWN_SERVICE_NS, Demand
from protocols.inference.offers import OfferTable
from protocols.inference.placement import LocalModel
from protocols.inference.split.events import SplitModel, Stage, StageRange, stage_name
from protocols.inference.split.lending import Lending
from protocols.inference.split.plan import Home, OwnerOnly, StageCandidate

LEAST_CONTACT_NS: Final = limits.SECOND
"""A neighbour that will probably leave sooner gets no stage."""
TELLING_SHARE: Final = 0.05
"""A stage with less than this part of the run time says little about the whole."""
HOPED_SPEED: Final = 4
"""How many times faster than this node a neighbour is taken for, of which nothing is known. It would otherwise never be
tried, and a plan that is slow when it is timed is not taken."""
_DOUBTFUL: Final = "its last runs gave no result"


class Devices:
    """See the module."""

    def __init__(
        self, node: NodeId, access: AccessTable, asking: Asking, models: Mapping[str, LocalModel], offers: OfferTable,
        reachable: Callable[[int], list[Reach]], lending: Lending,
    ) -> None:  # fmt: skip
        """``models``: those that are loaded here now."""
        self._node, self._access, self._asking, self._models, self._offers = node, access, asking, models, offers
        self._reachable, self._lending = reachable, lending
        self.roles: dict[NodeId, Role] = {}
        """Of all neighbours."""

    def home(self, model: SplitModel) -> Home | OwnerOnly:
        """The node itself, as a place for stages."""
        if not model.run_ns:
            return OwnerOnly(self._node)
        return Home(self._node, model.run_ns, memory_bytes=model.memory_bytes)

    def neighbours(
        self, model: SplitModel, stages: Mapping[StageRange, Stage], now: int, *, doubtful: bool = False
    ) -> tuple[StageCandidate, ...]:  # fmt: skip
        """The neighbours that could run a stage. ``stages``: those that were made so far. ``doubtful``: also those that
        have lately given no result."""
        found = self.all(model, stages, now)
        return tuple(each for each, why_not in found if not why_not or (doubtful and why_not == _DOUBTFUL))

    def all(
        self, model: SplitModel, stages: Mapping[StageRange, Stage], now: int
    ) -> list[tuple[StageCandidate, str]]:  # fmt: skip
        """What a stage would cost at each neighbour, and why it can't get one now; empty: it can."""
        costs, loads, found = self._asking.costs, self._asking.loads, []
        for reach in self._reachable(now):
            node = reach.node
            if node in self.roles:
                up, down = costs.link_to(node)
                candidate = StageCandidate(
                    node, self._whole_ns(model, stages, node, now), reach.round_trip_ns, up, down,
                    loads.queue_ns(node, now), costs.overhead_ns(node, now),
                )  # fmt: skip
                found.append((candidate, self._why_not(model, reach, now)))
        return found

    def _why_not(self, model: SplitModel, reach: Reach, now: int) -> str:
        node, standings = reach.node, self._asking.candidates.standings
        if standings.is_distrusted(node, now):
            return "it gave wrong answers"
        if not self._access.permits_offer(self.roles[node], node, model.name):
            return "the table of access does not let it compute this model"
        if reach.lasts_ns < LEAST_CONTACT_NS:
            return "it will probably be out of reach soon"
        return self._lending.why_refused(node, model.name, now) or (
            _DOUBTFUL if standings.is_doubtful(node, now) else ""
        )  # fmt: skip

    def _whole_ns(self, model: SplitModel, stages: Mapping[StageRange, Stage], node: NodeId, now: int) -> int:
        """About how long a neighbour would need for the whole model: by the time of its stages there, by its offer of
        the whole, or by another model that both have."""
        boundaries = model.profile.boundaries
        for range_, stage in stages.items():
            before, after = boundaries[range_.first + 1], boundaries[range_.last + 1]
            offer = self._offers.find(node, stage_name(model.name, stage.digest), stage.digest)
            seen_ns = self._asking.costs.service_ns(node, Demand(stage.digest, before.given_bytes), now)
            service_ns = seen_ns or (offer.compute_us * 1_000 if offer is not None else 0)
            if service_ns and after.share - before.share >= TELLING_SHARE:
                return int(service_ns / (after.share - before.share))
        offers = self._offers.of(node)
        for offer in offers:
            if offer.digest == model.digest and offer.compute_us:
                return offer.compute_us * 1_000
        for offer in offers:
            local = self._models.get(offer.model)
            if local is not None and local.digest == offer.digest and offer.compute_us and local.compute_ns:
                return max(model.run_ns * offer.compute_us * 1_000 // local.compute_ns, 1)
        return model.run_ns // HOPED_SPEED or UNKNOWN_SERVICE_NS
