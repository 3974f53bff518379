"""The requests of neighbours that this node holds.

At most ``MAX_SERVED_REQUESTS`` are held, with at most ``MAX_SERVED_BYTES`` of inputs, and of one neighbour at most
``MAX_SERVED_PER_NEIGHBOUR``. Neighbours share these bounds: when one is reached, the neighbour that holds most gives
way to one that holds less, and its newest request is answered with ``busy``. A request that finds no place is answered
at once, before its inputs are kept, and so is one that can't be computed within its budget. None is held beyond its
budget.
"""

from collections import Counter
from typing import Final

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.allowance import Allowance
from protocols.base.ids import NodeId, Role
from protocols.base.shares import Shares
from protocols.base.time import NEVER
from protocols.inference.costs import Demand, Services
from protocols.inference.events import CancelCompute, Compute, Decided
from protocols.inference.loads import OwnQueue
from protocols.inference.placement import LocalModel
from protocols.inference.signature import runs_in
from protocols.links.drops import Drops
from protocols.wire.inference import InferAnswer, InferRequest

MAX_SERVED_PER_NEIGHBOUR: Final = 16
"""Requests held of one neighbour: more would only wait until their callers have given up."""
MAX_SERVED_BYTES: Final = 64 * 1024 * 1024
"""Inputs held for neighbours: 32 requests of 16 MiB would be half a gigabyte."""
REQUESTS_PER_S: Final = 1_000
MAX_REQUEST_BURST: Final = 2_000
"""Requests and cancellations of one neighbour that are looked at. One takes up to 0.1 ms, with its refusal, so a
neighbour that sends more than that takes at most a tenth of a core. Camera images come thirty times a second."""
SERVED_GRACE_NS: Final = limits.SECOND
"""A served request that was not answered this long after its budget is given up, because a run that hangs must not hold
a place for ever."""


class _Served:
    __slots__ = ("give_up_ns", "node", "request", "demand")

    def __init__(self, node: NodeId, request: int, demand: Demand, give_up_ns: int) -> None:
        self.node, self.request, self.demand, self.give_up_ns = node, request, demand, give_up_ns


class Serving:
    """Holds the requests of neighbours, and hands out their runs and answers."""

    def __init__(
        self, node: NodeId, access: AccessTable, drops: Drops, decided: Decided, services: Services,
        own_queue: OwnQueue,
    ) -> None:  # fmt: skip
        """``services``: what runs on this node have taken."""
        self._node, self._access, self._drops, self._decided, self._services = node, access, drops, decided, services
        self._own_queue = own_queue
        self.held: dict[int, _Served] = {}
        """What is held, by run, the oldest first."""
        self._places: Shares[NodeId] = Shares()
        self._bytes: Shares[NodeId] = Shares()
        self._allowances: dict[NodeId, Allowance] = {}
        self.served = self.refused_busy = self.refused_late = 0
        """Counters: requests taken, requests that found no place or lost it, and requests that could not be computed
        within their budget."""

    def request(
        self, asked: InferRequest, model: LocalModel | None, source: NodeId, role: Role, run: int, now: int
    ) -> None:  # fmt: skip
        """Take a request as ``run``, or answer it at once. ``model``: the one here that it means."""
        if not self._may_ask(source, now):
            return
        size_bytes = sum(len(named.tensor.data) for named in asked.inputs)
        demand = Demand(asked.digest, size_bytes, runs_in(asked.inputs))
        budget_ns = min(asked.budget_us, limits.MAX_BUDGET_MS * 1_000) * 1_000
        give_up_ns = now + budget_ns + SERVED_GRACE_NS
        if model is None or not model.served or not model.answers_to(asked.digest):
            self._answer(source, asked.request, "unknown", f"{self._node} does not offer this {asked.model!r}")
        elif not self._access.permits_infer(role, source, model.stage_of or asked.model):
            self._answer(source, asked.request, "unknown", f"{self._node} may not compute {asked.model!r} for {source}")
        elif demand.runs > (most := _most_runs(asked, model)):
            self._answer(
                source, asked.request, "invalid", f"{demand.runs} runs are asked for: at most {most} at a time"
            )
        elif (needed_ns := self._soonest_ns(demand, model, source, give_up_ns, now)) > asked.budget_us * 1_000:
            self.refused_late += 1
            self._answer(source, asked.request, "late", (
                f"{self._node} needs at least {needed_ns / limits.MS:.1f} ms, and {asked.budget_us / 1e3:.1f} are left"
            ))  # fmt: skip
        elif not self._make_room(source, size_bytes):
            self.refused_busy += 1
            self._answer(source, asked.request, "busy", f"{self._node} holds {len(self.held)} requests")
        else:
            self.held[run] = _Served(source, asked.request, demand, give_up_ns)
            self._places.add(source)
            self._bytes.add(source, size_bytes)
            self.served += 1
            self._decided.effects.append(
                Compute(run, model.name, asked.inputs, asked.outputs, budget_ns, source, asked.digest)
            )

    def _soonest_ns(self, demand: Demand, model: LocalModel, source: NodeId, give_up_ns: int, now: int) -> int:
        """Runs of this can't be done before; 0: that is not known. Runs of this node itself go first, and neighbours
        take turns, run by run: however many one has asked for, another waits for one of them before each of its own. Of
        its own, those go first that have to be done before. The run under way may be about to end."""
        soonest_ns = self._services.soonest_ns(demand, now)
        if not soonest_ns:
            return 0
        ours, theirs = 0, Counter[NodeId]()
        for served in self.held.values():
            if served.node != source:
                theirs[served.node] += served.demand.runs
            elif served.give_up_ns <= give_up_ns:
                ours += served.demand.runs
        before = ours + sum(min(runs, ours + demand.runs) for runs in theirs.values())
        own_ns = self._own_queue.left_ns(model.own_queue_ns or 0, now)
        waiting_ns = max(before - 1, 0) * soonest_ns // demand.runs
        return own_ns + waiting_ns // self._own_queue.workers + soonest_ns

    def _may_ask(self, source: NodeId, now: int) -> bool:
        allowance = self._allowances.get(source)
        if allowance is None:
            allowance = self._allowances[source] = Allowance(REQUESTS_PER_S, MAX_REQUEST_BURST, now)
        if allowance.take(now):
            return True
        self._drops.count(source, "", "too_many_requests")
        return False

    def _make_room(self, source: NodeId, size_bytes: int) -> bool:
        """Whether there is room now. The largest holder gives way if it holds more than ``source`` would."""
        if self._places.held(source) >= MAX_SERVED_PER_NEIGHBOUR or size_bytes > MAX_SERVED_BYTES:
            return False
        while True:
            if self._places.total >= limits.MAX_SERVED_REQUESTS:
                shares, more = self._places, 1
            elif self._bytes.total + size_bytes > MAX_SERVED_BYTES:
                shares, more = self._bytes, size_bytes
            else:
                return True
            largest = shares.largest()
            if shares.held(largest) <= shares.held(source) + more:
                return False
            run = next(run for run, served in reversed(self.held.items()) if served.node == largest)
            gone = self._drop(run)
            self.refused_busy += 1
            self._answer(gone.node, gone.request, "busy", f"{self._node} needs the place for another neighbour")

    def _drop(self, run: int) -> _Served:
        served = self._release(run)
        self._decided.effects.append(CancelCompute(run))
        return served

    def _release(self, run: int) -> _Served:
        served = self.held.pop(run)
        self._places.remove(served.node)
        self._bytes.remove(served.node, served.demand.size_bytes)
        return served

    def _answer(self, node: NodeId, request: int, status: str, detail: str) -> None:
        self._decided.messages.append((node, InferAnswer(request, status, detail=detail[: limits.MAX_TEXT_CHARS])))  # type: ignore[arg-type]

    def cancel(self, request: int, source: NodeId, now: int) -> None:
        """The neighbour no longer wants the answer."""
        if self._may_ask(source, now):
            for run, served in list(self.held.items()):
                if served.node == source and served.request == request:
                    self._drop(run)

    def computed(self, run: int, answer: InferAnswer, queue_us: int, now: int) -> bool:
        """Send the result of a run, if it was for a neighbour; return whether it was. ``queue_us``: how long the next
        run would wait here."""
        if run not in self.held:
            return False
        served = self._release(run)
        if answer.status == "done":
            output_bytes = sum(len(named.tensor.data) for named in answer.outputs)
            self._services.add(served.demand, answer.compute_us * 1_000, now, output_bytes)
        self._decided.messages.append((served.node, InferAnswer(
            served.request, answer.status, answer.outputs, answer.queued_us, answer.compute_us, answer.detail,
            queue_us,
        )))  # fmt: skip
        return True

    def neighbour_gone(self, node: NodeId) -> None:
        """Drop what is held for a neighbour."""
        self._allowances.pop(node, None)
        for run, served in list(self.held.items()):
            if served.node == node:
                self._drop(run)

    def handle_timer(self, now: int) -> None:
        """Give up runs that hang."""
        for run, served in list(self.held.items()):
            if now >= served.give_up_ns:
                self._drop(run)
                self._answer(served.node, served.request, "late", "its run hangs")

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min((served.give_up_ns for served in self.held.values()), default=NEVER)


def _most_runs(asked: InferRequest, model: LocalModel) -> int:
    """For how many runs a request may ask, so that the answer has no more tensors than it may have."""
    outputs = len(asked.outputs) or (len(model.signature.outputs) if model.signature is not None else 1)
    return max(min(limits.MAX_REQUEST_RUNS, limits.MAX_TENSORS // max(outputs, 1)), 1)
