"""Who could compute a request, this node, its neighbours or the relay, and when each would be done."""

from collections.abc import Mapping
from random import Random

from protocols.base.ids import NodeId
from protocols.inference.costs import Claim, Demand, NeighbourCosts, Services
from protocols.inference.loads import Loads, OwnQueue
from protocols.inference.offers import OfferTable
from protocols.inference.placement import Candidate, LocalModel, order
from protocols.inference.relay import RelayReach
from protocols.inference.requests import OwnRequest
from protocols.inference.standing import Standings


class Candidates:
    """What placement knows of this node and its neighbours."""

    def __init__(
        self, node: NodeId, models: Mapping[str, LocalModel], offers: OfferTable, relay: RelayReach,
        services: Services, own_queue: OwnQueue, random: Random, requests: Mapping[int, OwnRequest],
    ) -> None:  # fmt: skip
        """``models``: those that are loaded here now. ``services``: what runs on this node have taken. ``requests``:
        the own ones under way, by number."""
        self._node, self._models, self._offers, self._relay = node, models, offers, relay
        self._services, self._own_queue, self._random, self._requests = services, own_queue, random, requests
        self.costs = NeighbourCosts()
        self.loads = Loads()
        self.standings = Standings()
        self.offload = True
        """Whether neighbours are asked for what this node can compute itself."""
        self.private: frozenset[str] = frozenset()
        """The models whose inputs must not leave this node."""

    def ordered(self, request: OwnRequest, model: str, demand: Demand, may_risk: bool, now: int) -> list[Candidate]:
        """Who could compute a model for a request in time, best first. The quickest of those who could not is noted in
        the request. ``may_risk``: see :func:`~protocols.inference.placement.order`."""
        remaining_ns = request.deadline_ns - now
        if request.planned is not None and request.planned not in request.tried:  # nobody else is looked at in vain
            here, there = self.both(request, model, demand, now, request.planned)
            planned = [candidate for candidate in (here, *there) if candidate and candidate.node == request.planned]
            if planned and not planned[0].doubtful and planned[0].soonest_ns <= remaining_ns:
                return planned if here is None or here is planned[0] else [*planned, here]
        here, there = self.both(request, model, demand, now)
        both = [here, *there] if here is not None else there
        hopeless = [candidate for candidate in both if candidate.soonest_ns > remaining_ns]
        request.hopeless = min(hopeless, key=lambda candidate: candidate.soonest_ns, default=None)
        ordered = order(here, there, remaining_ns, self._random, may_risk)
        if request.planned is not None:
            ordered.sort(key=lambda candidate: candidate.node != request.planned or candidate.doubtful)
        return [candidate for candidate in ordered if candidate.soonest_ns <= remaining_ns]

    def both(
        self, request: OwnRequest, model: str, demand: Demand, now: int, only: NodeId | None = None
    ) -> tuple[Candidate | None, list[Candidate]]:  # fmt: skip
        """What is predicted for this node, and for the neighbours that may be asked. ``only``: no other neighbour."""
        here, may_ask = self.here(request, model, demand, now), self.offload or not self.computes(model, demand)
        return here, self.there(request, model, demand, now, only) if may_ask else []

    def here(self, request: OwnRequest, model: str, demand: Demand, now: int) -> Candidate | None:
        """The own node; None: it can't compute the model, or has tried."""
        local = self._models.get(model)
        if local is None or not self.computes(model, demand) or self._node in request.tried:
            return None
        told_ns = local.queue_ns if local.own_queue_ns is None else local.own_queue_ns
        queue_ns = self._own_queue.left_ns(told_ns, now)
        claim, least_ns = Claim(local.compute_ns, local.p95_ns), self._before(request.deadline_ns)
        predicted = self._services.predict(demand, claim, queue_ns, now, least_ns)
        return Candidate(
            self._node, predicted.expected_ns, predicted.p95_ns, predicted.soonest_ns,
            service_ns=predicted.service_ns, late_ns=predicted.late_ns, queue_ns=queue_ns,
        )  # fmt: skip

    def _before(self, deadline_ns: int) -> int:
        """How long own runs here take that go before one with that deadline, without the longest, which may be about to
        end."""
        before = [
            run.candidate.service_ns
            for request in self._requests.values() if request.deadline_ns <= deadline_ns
            for run in request.runs.values() if run.node == self._node
        ]  # fmt: skip
        return (sum(before) - max(before)) // self._own_queue.workers if before else 0

    def most_runs(self, node: NodeId) -> int:
        """How many runs one request to a neighbour may ask for."""
        return self._offers.most_runs(node)

    def computes(self, model: str, demand: Demand) -> bool:
        """Whether this node can compute it itself."""
        local = self._models.get(model)
        return local is not None and local.local and local.answers_to(demand.digest)

    def there(
        self, request: OwnRequest, model: str, demand: Demand, now: int, only: NodeId | None = None
    ) -> list[Candidate]:  # fmt: skip
        """The neighbours that offer the model, may be asked, and have not tried, and so the relay. ``only``: no other
        one."""
        there: list[Candidate] = []
        if not self.private.isdisjoint((model, request.asked_model)):
            return there
        for node, round_trip_ns, lasts_ns in self._relay.everybody(now):
            if only not in (None, node):
                continue
            if node == self._relay.node and not self._relay.takes(request.asked_model, demand.size_bytes):
                continue
            offer = self._offers.find(node, model, demand.digest)
            if offer is None or node in request.tried or self.standings.is_distrusted(node, now):
                continue
            if demand.runs > self.most_runs(node):
                continue
            if not self.loads.may_ask(node, now):
                continue
            claim = Claim(offer.compute_us * 1_000, offer.p95_us * 1_000)
            queue_ns = self.loads.queue_ns(node, now)
            predicted = self.costs.predict(node, demand, claim, queue_ns, round_trip_ns, now)
            doubtful = self.standings.is_doubtful(node, now) or predicted.p95_ns > lasts_ns
            usual_wait_ns = max(queue_ns, self.loads.usual_ns(node))
            there.append(Candidate(
                node, predicted.expected_ns, predicted.p95_ns, predicted.soonest_ns, predicted.uncertain_ns,
                predicted.proven, doubtful, predicted.service_ns, predicted.late_ns, queue_ns, usual_wait_ns,
            ))  # fmt: skip
        return there
