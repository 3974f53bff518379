"""Requests for inference: those of this node, and those of neighbours.

The life of an own request:

    asked ──▶ running on the best candidate ──answer──▶ done
                 │ late (see HEDGE_FACTOR): the next candidate starts too; the first answer wins, the other is cancelled
                 │ busy, failed, dead: the next candidate starts at once
                 └ deadline, or no candidate left ──▶ failed, with every attempt named

Rules:
1. Each own request is answered exactly once.
2. Only neighbours that offer the very same file (digest) are asked.
3. A neighbour should not make the caller slower than computing alone: it is asked only when it is predicted to be
   faster, and when it is late by that prediction, this node starts computing too.
4. Budgets travel as durations; no clocks need to agree.
5. This node holds at most ``MAX_SERVED_REQUESTS`` of all neighbours and ``MAX_SERVED_PER_NEIGHBOUR`` of one, with at
   most ``MAX_SERVED_BYTES`` of inputs. It answers the next one with ``busy`` before it keeps the input. It holds none
   beyond its budget.
6. A result that comes at the deadline or later is late: the caller gets an error, and the cost model still learns.
"""

from collections.abc import Callable
from typing import ClassVar, Final, assert_never

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.errors import BoundExceeded, ModelUnknown
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.inference.events import Answered, CancelCompute, Compute, RunReport
from protocols.inference.placement import Candidate, CostModel, LocalModel, order
from protocols.machine import Machine, Message
from protocols.wire.frame import Frame
from protocols.wire.inference import FRAMES, InferAnswer, InferCancel, InferenceFrame, InferRequest, Offer, Offers
from protocols.wire.tensors import NamedTensor

HEDGE_FACTOR: Final = 1.5
"""A run is late when it takes this much longer than predicted …"""
HEDGE_SLACK_NS: Final = 5 * limits.MS
"""… and this much more."""
EXPLORE_EVERY: Final = 16
"""Of the runs that neighbours are predicted to do faster, the first is done here all the same, and then one in this
many …"""
EXPLORE_FACTOR: Final = 2
"""… unless this node is predicted to need more than this many times as long: then there is nothing to find out."""
MAX_SERVED_PER_NEIGHBOUR: Final = 16
"""Requests held of one neighbour, so that one can't take all places."""
MAX_SERVED_BYTES: Final = 64 * 1024 * 1024
"""Inputs held for neighbours: 32 requests of 16 MiB would be half a gigabyte."""
_LATE: Final = "{!r} was not answered within its deadline"
_SERVED_GRACE_NS: Final = limits.SECOND
"""A served request that was not answered this long after its budget is given up, because a run that hangs must not hold
a place for ever."""


class _Run:
    __slots__ = ("expected_ns", "hedged", "node", "number", "started_ns")

    def __init__(self, number: int, candidate: Candidate, now: int) -> None:
        self.number, self.node, self.expected_ns, self.started_ns = number, candidate.node, candidate.expected_ns, now
        self.hedged = False

    @property
    def late_at(self) -> int:
        return self.started_ns + int(self.expected_ns * HEDGE_FACTOR) + HEDGE_SLACK_NS


class _Request:
    __slots__ = (
        "asked_ns", "attempts", "deadline_ns", "digest", "hedge", "inputs", "model", "number", "outputs", "runs",
        "size_bytes", "tried",
    )  # fmt: skip

    def __init__(
        self, number: int, model: str, digest: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], now: int,
        budget_ns: int, hedge: bool,
    ) -> None:  # fmt: skip
        self.number, self.model, self.digest, self.inputs, self.outputs = number, model, digest, inputs, outputs
        self.asked_ns, self.deadline_ns, self.hedge = now, now + budget_ns, hedge
        self.size_bytes = sum(len(named.tensor.data) for named in inputs)
        self.runs: dict[int, _Run] = {}
        self.tried: set[NodeId] = set()
        self.attempts: list[RunReport] = []


class _Served:
    __slots__ = ("give_up_ns", "node", "request", "size_bytes")

    def __init__(self, node: NodeId, request: int, size_bytes: int, give_up_ns: int) -> None:
        self.node, self.request, self.size_bytes, self.give_up_ns = node, request, size_bytes, give_up_ns


OFFER_INTERVAL_NS: Final = 100 * limits.MS
"""Neighbours are told of changes of load at most this often."""


class Inference(Machine):
    """The inference of one node."""

    name: ClassVar[str] = "inference"
    frames: ClassVar[tuple[type[Frame], ...]] = FRAMES

    def __init__(self, node: NodeId, access: AccessTable, reachable: Callable[[], list[tuple[NodeId, int]]]) -> None:
        """``reachable()`` lists the neighbours that can be asked now, each with its round trip in nanoseconds."""
        self._node, self._access, self._reachable = node, access, reachable
        self._models: dict[str, LocalModel] = {}
        self._offers: dict[NodeId, dict[str, Offer]] = {}
        self._offers_seen: dict[NodeId, int] = {}  # version
        self._costs = CostModel()
        self._requests: dict[int, _Request] = {}
        self._runs: dict[int, int] = {}  # run -> own request
        self._served: dict[int, _Served] = {}
        self._asked_of: dict[NodeId, int] = {}  # own runs under way there; its offers may not show them yet
        self._next = 1
        self._elsewhere = EXPLORE_EVERY  # runs given to neighbours since the last run here; initially none has run here
        self._offer_version = 0
        self._offers_due_ns, self._offers_sent_ns = NEVER, -NEVER
        self._effects: list[Compute | CancelCompute] = []
        self._messages: list[Message] = []
        self._events: list[Answered] = []
        self._counters = {
            "asked": 0, "answered": 0, "failed": 0, "run_here": 0, "run_there": 0, "hedged": 0, "replayed": 0,
            "served": 0, "refused_busy": 0, "late_answers": 0,
        }  # fmt: skip

    # --- models and offers -----------------------------------------------------------------------------------------
    def set_models(self, models: tuple[LocalModel, ...], now: int) -> None:
        """Set which models are loaded here and what they cost now. Neighbours are told of changes."""
        before = [(m.name, m.digest, m.served, m.waiting, m.compute_ns // limits.MS) for m in self._models.values()]
        self._models = {model.name: model for model in models}
        after = [(m.name, m.digest, m.served, m.waiting, m.compute_ns // limits.MS) for m in models]
        if before != after and self._offers_due_ns == NEVER:
            self._offers_due_ns = max(now, self._offers_sent_ns + OFFER_INTERVAL_NS)

    def greetings(self) -> list[Frame]:
        """The :meth:`offers` of this node."""
        return [self.offers()]

    def offers(self) -> Offers:
        """What this node computes for others."""
        self._offer_version += 1
        return Offers(self._offer_version, tuple(
            Offer(model.name, model.digest, model.compute_ns // 1_000, model.waiting)
            for model in self._models.values() if model.served
        )[: limits.MAX_OFFERS])  # fmt: skip

    def throughput_of(self, node: NodeId) -> float:
        """The throughput of the link to a neighbour, in bytes a second; 0: it was not measured yet."""
        return self._costs.throughput_of(node)

    def transferred(self, node: NodeId, size_bytes: int, took_ns: int) -> None:
        """The link to a neighbour took ``took_ns`` for ``size_bytes``."""
        self._costs.transferred(node, size_bytes, took_ns)

    def offers_of(self, node: NodeId) -> tuple[Offer, ...]:
        """The models that a neighbour has offered."""
        return tuple(self._offers.get(node, {}).values())

    # --- own requests ----------------------------------------------------------------------------------------------
    def ask(
        self,
        model: str,
        inputs: tuple[NamedTensor, ...],
        outputs: tuple[str, ...],
        budget_ns: int,
        hedge: bool,
        now: int,
    ) -> int:
        """Start a request and return its number; exactly one :class:`Answered` follows.

        :raises BoundExceeded: with ``MAX_PENDING_REQUESTS`` in flight. :raises ModelUnknown: when neither this node nor
            a neighbour has the model.
        """
        if len(self._requests) >= limits.MAX_PENDING_REQUESTS:
            raise BoundExceeded(f"{limits.MAX_PENDING_REQUESTS} requests are in flight: wait for answers")
        digest = self._digest_of(model)
        number, self._next = self._next, self._next + 1
        request = self._requests[number] = _Request(number, model, digest, inputs, outputs, now, budget_ns, hedge)
        self._counters["asked"] += 1
        if not self._start_next(request, now):
            self._fail(request, "unknown", f"nobody who may compute {model!r} is in reach", now)
        return number

    def _digest_of(self, model: str) -> str:
        local = self._models.get(model)
        if local is not None:
            return local.digest
        offered = sorted(
            offer.digest for offers in self._offers.values() for offer in offers.values() if offer.model == model
        )
        if not offered:
            known = sorted({*self._models, *(name for offers in self._offers.values() for name in offers)})
            raise ModelUnknown(
                f"no model {model!r} here or at a neighbour; known: {', '.join(known) or 'none'}. "
                "Add [models.<name>] to the configuration of a node in reach"
            )
        return max(offered, key=offered.count)

    def abandon(self, number: int, now: int) -> None:
        """The caller no longer wants the answer: no event follows."""
        request = self._requests.pop(number, None)
        if request is not None:
            self._cancel_runs(request, now)

    def _candidates(self, request: _Request, now: int) -> list[Candidate]:
        local = self._models.get(request.model)
        here = None
        if local is not None and local.local and local.digest == request.digest and self._node not in request.tried:
            here = Candidate(self._node, self._costs.local_ns(local.compute_ns, local.waiting))
        there = []
        for node, round_trip_ns in self._reachable():
            offer = self._offers.get(node, {}).get(request.model)
            if offer is None or offer.digest != request.digest or node in request.tried:
                continue
            waiting = max(offer.waiting, self._asked_of.get(node, 0))
            expected_ns = self._costs.remote_ns(
                node, offer.compute_us * 1_000, waiting, round_trip_ns, request.size_bytes
            )
            there.append(Candidate(node, expected_ns))
        return order(here, there, request.deadline_ns - now)

    def _start_next(self, request: _Request, now: int) -> bool:
        candidates = self._candidates(request, now)
        if not candidates:
            return False
        best = self._explored(candidates)
        number, self._next = self._next, self._next + 1
        run = request.runs[number] = _Run(number, best, now)
        self._runs[number] = request.number
        request.tried.add(best.node)
        budget_ns = max(request.deadline_ns - now, 0)
        if best.node == self._node:
            self._counters["run_here"] += 1
            self._effects.append(Compute(number, request.model, request.inputs, request.outputs, budget_ns))
        else:
            self._counters["run_there"] += 1
            self._asked_of[run.node] = self._asked_of.get(run.node, 0) + 1
            self._messages.append((best.node, InferRequest(
                number, request.model, request.digest, budget_ns // 1_000, request.inputs, request.outputs
            )))  # fmt: skip
        return True

    def _explored(self, candidates: list[Candidate]) -> Candidate:
        """The best candidate, or now and then this node: its own cost would otherwise never be measured again while
        others are faster."""
        best = candidates[0]
        if best.node == self._node:
            self._elsewhere = 0
            return best
        self._elsewhere += 1
        here = next((candidate for candidate in candidates if candidate.node == self._node), None)
        if here is None or self._elsewhere < EXPLORE_EVERY or here.expected_ns > EXPLORE_FACTOR * best.expected_ns:
            return best
        self._elsewhere = 0
        return here

    def _end_run(self, request: _Request, run: _Run) -> None:
        del request.runs[run.number], self._runs[run.number]
        if run.node != self._node:
            self._asked_of[run.node] = max(self._asked_of.get(run.node, 1) - 1, 0)

    def _cancel_runs(self, request: _Request, now: int) -> None:
        for run in list(request.runs.values()):
            self._end_run(request, run)
            request.attempts.append(RunReport(run.node, "cancelled", now - run.started_ns))
            if run.node == self._node:
                self._effects.append(CancelCompute(run.number))
            else:
                if now > run.late_at:  # its answer will teach nothing: without a penalty it would be asked first again
                    self._costs.penalise(run.node)
                self._messages.append((run.node, InferCancel(run.number)))

    def _win(self, request: _Request, run: _Run, report: RunReport, outputs: tuple[NamedTensor, ...], now: int) -> None:
        self._end_run(request, run)
        request.attempts.append(report)
        self._cancel_runs(request, now)
        del self._requests[request.number]
        self._counters["answered"] += 1
        self._events.append(Answered(request.number, report, outputs, tuple(request.attempts), now - request.asked_ns))

    def _lose(self, request: _Request, run: _Run, report: RunReport, now: int) -> None:
        """A run ended without a result: try the next candidate."""
        self._end_run(request, run)
        request.attempts.append(report)
        if report.outcome == "invalid":
            self._cancel_runs(request, now)
            self._fail(request, "invalid", report.detail, now)
        elif now >= request.deadline_ns:
            self._fail(request, "late", report.detail or _LATE.format(request.model), now)
        elif not request.runs:
            self._counters["replayed"] += 1
            if not self._start_next(request, now):
                self._fail(request, "failed", report.detail or f"{report.node}: {report.outcome}", now)

    def _fail(self, request: _Request, failure: str, detail: str, now: int) -> None:
        self._cancel_runs(request, now)
        del self._requests[request.number]
        self._counters["failed"] += 1
        self._events.append(Answered(
            request.number, None, (), tuple(request.attempts), now - request.asked_ns, failure, detail  # type: ignore[arg-type]
        ))  # fmt: skip

    # --- results ---------------------------------------------------------------------------------------------------
    def computed(self, run: int, answer: InferAnswer, now: int) -> None:
        """A run of this node ended; ``answer.request`` is ignored."""
        served = self._served.pop(run, None)
        if served is not None:
            self._messages.append((served.node, InferAnswer(
                served.request, answer.status, answer.outputs, answer.queued_us, answer.compute_us, answer.detail
            )))  # fmt: skip
            return
        self._result(run, self._node, answer, now)

    def _result(self, number: int, node: NodeId, answer: InferAnswer, now: int) -> None:
        request = self._requests.get(self._runs.get(number, 0))
        run = request.runs.get(number) if request is not None else None
        if request is None or run is None or run.node != node:
            self._counters["late_answers"] += 1
            return
        took_ns = now - run.started_ns
        late = answer.status == "done" and now >= request.deadline_ns  # it came before the timer was handled
        outcome = "late" if late else answer.status
        report = RunReport(node, outcome, took_ns, answer.queued_us, answer.compute_us, answer.detail)
        if answer.status == "done":
            if node != self._node:
                size_bytes = request.size_bytes + sum(len(named.tensor.data) for named in answer.outputs)
                computed_ns = (answer.queued_us + answer.compute_us) * 1_000
                self._costs.learn(node, run.expected_ns, took_ns, computed_ns, self._round_trip_ns(node), size_bytes)
            if late:
                self._lose(request, run, report, now)
            else:
                self._win(request, run, report, answer.outputs, now)
        else:
            if node != self._node:
                self._costs.penalise(node)
            self._lose(request, run, report, now)

    def _round_trip_ns(self, node: NodeId) -> int:
        return next((round_trip_ns for other, round_trip_ns in self._reachable() if other == node), 0)

    # --- frames ----------------------------------------------------------------------------------------------------
    def receive(self, frame: InferenceFrame, source: NodeId, role: Role, now: int) -> None:
        """A neighbour sent a frame of inference."""
        match frame:
            case Offers():
                if frame.version > self._offers_seen.get(source, -1):  # a large one, on the bulk lane, may be overtaken
                    self._offers_seen[source] = frame.version
                    self._offers[source] = {offer.model: offer for offer in frame.offers}
            case InferRequest():
                self._serve(frame, source, role, now)
            case InferAnswer():
                self._result(frame.request, source, frame, now)
            case InferCancel():
                for run, served in list(self._served.items()):
                    if served.node == source and served.request == frame.request:
                        del self._served[run]
                        self._effects.append(CancelCompute(run))
            case _:
                assert_never(frame)

    def _serve(self, asked: InferRequest, source: NodeId, role: Role, now: int) -> None:
        model = self._models.get(asked.model)
        if model is None or not model.served or model.digest != asked.digest:
            self._decline(asked, source, "unknown", f"{self._node} does not offer this {asked.model!r}")
        elif not self._access.permits_infer(role, source, asked.model):
            self._decline(asked, source, "unknown", f"{self._node} may not compute {asked.model!r} for {source}")
        elif not self._has_room(source, size_bytes := sum(len(named.tensor.data) for named in asked.inputs)):
            self._counters["refused_busy"] += 1
            self._decline(asked, source, "busy", f"{self._node} holds {len(self._served)} requests")
        else:
            run, self._next = self._next, self._next + 1
            budget_ns = min(asked.budget_us, limits.MAX_BUDGET_MS * 1_000) * 1_000
            self._served[run] = _Served(source, asked.request, size_bytes, now + budget_ns + _SERVED_GRACE_NS)
            self._counters["served"] += 1
            self._effects.append(Compute(run, asked.model, asked.inputs, asked.outputs, budget_ns))

    def _has_room(self, source: NodeId, size_bytes: int) -> bool:
        held = self._served.values()
        return (
            len(held) < limits.MAX_SERVED_REQUESTS
            and sum(served.node == source for served in held) < MAX_SERVED_PER_NEIGHBOUR
            and sum(served.size_bytes for served in held) + size_bytes <= MAX_SERVED_BYTES
        )

    def _decline(self, asked: InferRequest, source: NodeId, status: str, detail: str) -> None:
        self._messages.append((source, InferAnswer(asked.request, status, detail=detail[: limits.MAX_TEXT_CHARS])))  # type: ignore[arg-type]

    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """Nothing to do: the neighbour sends its offers unasked."""

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """A neighbour is gone: its runs are repeated elsewhere, and its requests are dropped."""
        self._offers.pop(node, None)
        self._offers_seen.pop(node, None)
        self._costs.forget(node)
        for run, served in list(self._served.items()):
            if served.node == node:
                del self._served[run]
                self._effects.append(CancelCompute(run))
        for request in list(self._requests.values()):
            for attempt in list(request.runs.values()):
                if attempt.node == node and request.number in self._requests:
                    self._lose(request, attempt, RunReport(node, "dead", now - attempt.started_ns), now)
        self._asked_of.pop(node, None)

    def undeliverable(self, node: NodeId, frame: Frame, now: int) -> None:
        """A frame could not be queued. A request goes to another node at once. For an answer, the run is reported as
        failed."""
        if type(frame) is InferRequest:
            detail = f"{node} does not take frames"
            self._result(frame.request, node, InferAnswer(frame.request, "failed", detail=detail), now)
        elif type(frame) is InferAnswer and frame.outputs:
            detail = f"{self._node} computed it, but the answer is too large or the link is stuck"
            self._messages.append((node, InferAnswer(frame.request, "failed", detail=detail)))

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Hedge what is late, end what is past its deadline, and tell neighbours what changed."""
        if now >= self._offers_due_ns:
            self._offers_due_ns, self._offers_sent_ns = NEVER, now
            self._messages.append((None, self.offers()))
        if not (self._served or self._requests):
            return
        for number, served in list(self._served.items()):
            if now >= served.give_up_ns:
                del self._served[number]
                self._effects.append(CancelCompute(number))
                self._messages.append((served.node, InferAnswer(served.request, "late", detail="its run hangs")))
        for request in list(self._requests.values()):
            if now >= request.deadline_ns:
                self._fail(request, "late", _LATE.format(request.model), now)
                continue
            for run in list(request.runs.values()):
                if request.hedge and not run.hedged and now >= run.late_at:
                    run.hedged = True
                    if self._start_next(request, now):
                        self._counters["hedged"] += 1

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next."""
        due = self._offers_due_ns
        if not (self._served or self._requests):
            return due
        due = min(due, min((served.give_up_ns for served in self._served.values()), default=NEVER))
        for request in self._requests.values():
            due = min(due, request.deadline_ns)
            if request.hedge:
                for run in request.runs.values():
                    if not run.hedged:
                        due = min(due, run.late_at)
        return due

    def outgoing(self) -> list[Compute | CancelCompute]:
        """Effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def has_news(self) -> bool:
        """Whether :meth:`messages` or :meth:`events` would return anything."""
        return bool(self._messages or self._events)

    def messages(self) -> list[Message]:
        """Frames to queue for neighbours."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[Answered]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def counters(self) -> dict[str, int]:
        """Counters by name; they only grow."""
        return dict(self._counters)
