"""The requests for inference of this node itself.

The life of one:

    asked ──▶ running on the best candidate ──answer──▶ done
                 │ late (see HEDGE_FACTOR): the next candidate starts too; the first answer wins, the other is cancelled
                 │ busy, failed, wrong, dead: the next candidate starts at once
                 └ deadline, or no candidate left ──▶ failed, with every attempt named

Rules:
1. Each own request is answered exactly once.
2. Only neighbours that offer the very same file (digest) are asked.
3. A neighbour should not make the caller slower than computing alone: it is asked only when it is predicted to be
   faster, and when it is late by that prediction, this node starts computing too.
4. What a neighbour answers is checked against the signature of the model. An answer that can't be a result is a
   ``failed`` run, and its neighbour is not asked for a while (:mod:`protocols.inference.standing`). A neighbour alone
   can't end a request by calling its inputs invalid; this node can, or two neighbours that agree.
5. A result that comes at the deadline or later is late: the caller gets an error, and the cost model still learns.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from protocols.base import limits
from protocols.base.errors import BoundExceeded, ModelUnknown
from protocols.base.ids import NodeId
from protocols.inference.decided import Decided
from protocols.inference.events import Answered, CancelCompute, Compute, RunReport
from protocols.inference.moves import Move, Moves
from protocols.inference.offers import OfferTable
from protocols.inference.placement import Candidate, CostModel, LocalModel, order
from protocols.inference.requests import OwnRequest, OwnRun
from protocols.inference.signature import misfit
from protocols.inference.standing import Standings
from protocols.links.drops import Drops
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest
from protocols.wire.tensors import NamedTensor

EXPLORE_EVERY: Final = 16
"""Of the runs that neighbours are predicted to do faster, the first is done here all the same, and then one in this
many …"""
EXPLORE_FACTOR: Final = 2
"""… unless this node is predicted to need more than this many times as long: then there is nothing to find out."""
_LATE: Final = "{!r} was not answered within its deadline"
_SHOWN_MODELS: Final = 20
"""Names of models in one message: each neighbour may offer 64."""


class Asking:
    """The own requests under way."""

    def __init__(
        self, node: NodeId, models: Mapping[str, LocalModel], offers: OfferTable,
        reachable: Callable[[], list[tuple[NodeId, int]]], drops: Drops, decided: Decided, numbers: Iterator[int],
    ) -> None:  # fmt: skip
        """``models``: those that are loaded here now. ``numbers``: numbers of requests and runs, each given once."""
        self._node, self._models, self._offers = node, models, offers
        self._reachable, self._drops, self._decided, self._numbers = reachable, drops, decided, numbers
        self.costs = CostModel()
        self.requests: dict[int, OwnRequest] = {}
        """Those under way, by number."""
        self._standings = Standings()
        self._runs: dict[int, int] = {}  # run -> own request
        self._misnamed: set[str] = set()  # digests of models here whose names of sizes were seen to be wrong
        self._asked_of: dict[NodeId, int] = {}  # own runs under way there; its offers may not show them yet
        self._moves = Moves()
        self._elsewhere = EXPLORE_EVERY  # runs given to neighbours since the last run here; initially none has run here
        self.counters = {
            "asked": 0, "answered": 0, "failed": 0, "run_here": 0, "run_there": 0, "hedged": 0, "replayed": 0,
            "late_answers": 0, "wrong_answers": 0,
        }  # fmt: skip

    def digest_of(self, model: str) -> str | None:
        """The file that this node means by the name of a model; None when nobody has it."""
        local = self._models.get(model)
        return local.digest if local is not None else self._offers.digest_of(model)

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
        if len(self.requests) >= limits.MAX_PENDING_REQUESTS:
            raise BoundExceeded(f"{limits.MAX_PENDING_REQUESTS} requests are in flight: wait for answers")
        digest = self.digest_of(model)
        if digest is None:
            names = sorted({*self._models, *self._offers.names()})
            known = ", ".join(names[:_SHOWN_MODELS]) + (", …" if len(names) > _SHOWN_MODELS else "")
            raise ModelUnknown(
                f"no model {model!r} here or at a neighbour; known: {known or 'none'}. "
                "Add [models.<name>] to the configuration of a node in reach"
            )
        number = next(self._numbers)
        request = self.requests[number] = OwnRequest(number, model, digest, inputs, outputs, now, budget_ns, hedge)
        self.counters["asked"] += 1
        if not self._start_next(request, now):
            liars = self._distrusted(request, now)
            if liars:
                detail = f"{', '.join(liars)} gave wrong answers and must not be asked for a while"
                self._fail(request, "failed", detail[: limits.MAX_TEXT_CHARS], now)
            else:
                self._fail(request, "unknown", f"nobody who may compute {model!r} is in reach", now)
        return number

    def _distrusted(self, request: OwnRequest, now: int) -> list[NodeId]:
        """The neighbours that could compute it if their answers had been right."""
        return [
            node for node, _ in self._reachable()
            if self._standings.is_distrusted(node, now) and self._offers.find(node, request.model, request.digest)
        ]  # fmt: skip

    def abandon(self, number: int, now: int) -> None:
        """The caller no longer wants the answer: no event follows."""
        request = self.requests.pop(number, None)
        if request is not None:
            self._cancel_runs(request, now)

    def _candidates(self, request: OwnRequest, now: int) -> list[Candidate]:
        local = self._models.get(request.model)
        here = None
        if local is not None and local.local and local.digest == request.digest and self._node not in request.tried:
            waiting = local.waiting if local.own_waiting is None else local.own_waiting
            here = Candidate(self._node, self.costs.local_ns(local.compute_ns, waiting))
        there = []
        for node, round_trip_ns in self._reachable():
            offer = self._offers.find(node, request.model, request.digest)
            if offer is None or node in request.tried or self._standings.is_distrusted(node, now):
                continue
            waiting = max(offer.waiting, self._asked_of.get(node, 0))
            expected_ns = self.costs.remote_ns(
                node, offer.compute_us * 1_000, waiting, round_trip_ns, request.size_bytes
            )
            fastest_ns = self._standings.fastest_ns(node, request.digest, now)
            if fastest_ns:
                link_ns = round_trip_ns + int(self.costs.transfer_ns(node, request.size_bytes))
                expected_ns = max(expected_ns, link_ns + fastest_ns)
            there.append(Candidate(node, expected_ns, self._standings.is_doubtful(node, now)))
        return order(here, there, request.deadline_ns - now)

    def _start_next(self, request: OwnRequest, now: int) -> bool:
        candidates = self._candidates(request, now)
        if not candidates:
            return False
        best = self._explored(candidates)
        number = next(self._numbers)
        run = request.runs[number] = OwnRun(number, best, now)
        self._runs[number] = request.number
        request.tried.add(best.node)
        budget_ns = max(request.deadline_ns - now, 0)
        if best.node == self._node:
            self.counters["run_here"] += 1
            self._decided.effects.append(Compute(number, request.model, request.inputs, request.outputs, budget_ns))
        else:
            self.counters["run_there"] += 1
            self._asked_of[run.node] = self._asked_of.get(run.node, 0) + 1
            self._decided.messages.append((best.node, InferRequest(
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

    def _end_run(self, request: OwnRequest, run: OwnRun) -> None:
        del request.runs[run.number], self._runs[run.number]
        if run.node != self._node:
            left = self._asked_of.pop(run.node, 1) - 1
            if left > 0:
                self._asked_of[run.node] = left

    def _cancel_runs(self, request: OwnRequest, now: int) -> None:
        for run in list(request.runs.values()):
            self._end_run(request, run)
            request.attempts.append(RunReport(run.node, "cancelled", now - run.started_ns))
            if run.node == self._node:
                self._decided.effects.append(CancelCompute(run.number))
            else:
                if now > run.late_at:  # its answer will teach nothing: without a penalty it would be asked first again
                    self.costs.penalise(run.node)
                    self._standings.missed(run.node, now)
                    self._prove(request, run, 0, now)
                self._decided.messages.append((run.node, InferCancel(run.number)))

    def _win(
        self, request: OwnRequest, run: OwnRun, report: RunReport, outputs: tuple[NamedTensor, ...], now: int
    ) -> None:
        self._end_run(request, run)
        request.attempts.append(report)
        self._cancel_runs(request, now)
        del self.requests[request.number]
        for attempt in request.attempts:
            if attempt.outcome == "invalid":  # others took the same inputs
                self._was_wrong(attempt.node, request.model, now)
        self.counters["answered"] += 1
        self._decided.events.append(
            Answered(request.number, report, outputs, tuple(request.attempts), now - request.asked_ns)
        )

    def _lose(self, request: OwnRequest, run: OwnRun, report: RunReport, now: int) -> None:
        """A run ended without a result: try the next candidate."""
        self._end_run(request, run)
        request.attempts.append(report)
        invalid = [attempt for attempt in request.attempts if attempt.outcome == "invalid"]
        if report.outcome == "invalid" and (report.node == self._node or len(invalid) > 1):
            self._fail(request, "invalid", report.detail, now)
        elif now >= request.deadline_ns:
            self._fail(request, "late", report.detail or _LATE.format(request.model), now)
        elif not request.runs:
            self.counters["replayed"] += 1
            if not self._start_next(request, now):
                if invalid:
                    self._fail(request, "invalid", invalid[0].detail, now)
                else:
                    self._fail(request, "failed", report.detail or f"{report.node}: {report.outcome}", now)

    def _fail(self, request: OwnRequest, failure: str, detail: str, now: int) -> None:
        self._cancel_runs(request, now)
        del self.requests[request.number]
        self.counters["failed"] += 1
        self._decided.events.append(Answered(
            request.number, None, (), tuple(request.attempts), now - request.asked_ns, failure, detail  # type: ignore[arg-type]
        ))  # fmt: skip

    # --- results ---------------------------------------------------------------------------------------------------
    def result(self, number: int, node: NodeId, answer: InferAnswer, now: int) -> None:
        """A run here or at a neighbour ended; ``number`` is that of the run, ``answer.request`` is ignored."""
        request = self.requests.get(self._runs.get(number, 0))
        run = request.runs.get(number) if request is not None else None
        if request is None or run is None or run.node != node:
            self.counters["late_answers"] += 1
            return
        wrong = self._misfit(request, node, answer) if answer.status == "done" else ""
        if wrong:
            self._was_wrong(node, request.model, now)
            answer = InferAnswer(answer.request, "failed", detail=f"{node}: {wrong}"[: limits.MAX_TEXT_CHARS])
        took_ns = now - run.started_ns
        late = answer.status == "done" and now >= request.deadline_ns  # it came before the timer was handled
        outcome = "late" if late else answer.status
        report = RunReport(node, outcome, took_ns, answer.queued_us, answer.compute_us, answer.detail)
        if answer.status == "done":
            if node != self._node:
                output_bytes = sum(len(named.tensor.data) for named in answer.outputs)
                computed_ns = (answer.queued_us + answer.compute_us) * 1_000
                if self.costs.knows(node):
                    self._prove(request, run, output_bytes, now)
                self.costs.learn(
                    node, run.expected_ns, took_ns, computed_ns, self._round_trip_ns(node),
                    request.size_bytes + output_bytes,
                )  # fmt: skip
                self._standings.succeeded(node)
            if late:
                self._lose(request, run, report, now)
            else:
                self._win(request, run, report, answer.outputs, now)
        else:
            if node != self._node and not wrong:
                self.costs.penalise(node)
                if answer.status != "invalid":
                    self._standings.missed(node, now)
            self._lose(request, run, report, now)

    def _misfit(self, request: OwnRequest, node: NodeId, answer: InferAnswer) -> str:
        """Why the outputs of a neighbour can't be the result of the model. This node is not checked, but its own
        results show whether the model names its sizes rightly."""
        model = self._models.get(request.model)
        signature = model.signature if model is not None and model.digest == request.digest else None
        by_name = request.digest not in self._misnamed
        wrong = misfit(signature, request.inputs, request.outputs, answer.outputs, by_name=by_name)
        if node != self._node:
            return wrong
        if wrong and signature is not None and by_name:
            self._misnamed.add(request.digest)
        return ""

    def _was_wrong(self, node: NodeId, model: str, now: int) -> None:
        """A neighbour lied. Results of this node are not checked, and what it calls invalid ends the request."""
        self.counters["wrong_answers"] += 1
        self._drops.count(node, model, "wrong_answer")
        self._standings.was_wrong(node, now)

    def _prove(self, request: OwnRequest, run: OwnRun, output_bytes: int, now: int) -> None:
        """Note the time that a neighbour has needed, without the link's."""
        link_ns = self.costs.transfer_ns(run.node, request.size_bytes + output_bytes) + self._round_trip_ns(run.node)
        self._standings.proved(run.node, request.digest, int(now - run.started_ns - link_ns), now)

    def _round_trip_ns(self, node: NodeId) -> int:
        return next((round_trip_ns for other, round_trip_ns in self._reachable() if other == node), 0)

    # --- neighbours and time ---------------------------------------------------------------------------------------
    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """A neighbour is gone: its runs are repeated elsewhere."""
        self.costs.forget(node)
        for request in self.requests.values():
            for run in request.runs.values():
                if run.node == node:
                    self._moves.add(Move(request, run, "dead"))
        self._move(now)

    def undeliverable(self, node: NodeId, frame: InferRequest, now: int) -> None:
        """A request could not be queued. It goes to another node at once."""
        request = self.requests.get(self._runs.get(frame.request, 0))
        run = request.runs.get(frame.request) if request is not None else None
        if request is not None and run is not None and run.node == node:
            self.costs.penalise(node)
            self._standings.missed(node, now)
            self._moves.add(Move(request, run, "failed", f"{node} does not take frames"))
            self._move(now)

    def _move(self, now: int) -> None:
        """Start some of the runs that have to take the place of others, or run beside them."""
        while (move := self._moves.take(now)) is not None:
            request, run = move.request, move.run
            if request.number not in self.requests or run.number not in request.runs:
                continue  # it was answered meanwhile
            if move.outcome == "late":
                self.counters["hedged"] += self._start_next(request, now)
            else:
                report = RunReport(run.node, move.outcome, now - run.started_ns, detail=move.detail)
                self._lose(request, run, report, now)

    def handle_timer(self, now: int) -> None:
        """Hedge what is late, and end what is past its deadline."""
        for request in list(self.requests.values()):
            if now >= request.deadline_ns:
                self._fail(request, "late", _LATE.format(request.model), now)
                continue
            for run in list(request.runs.values()):
                if request.hedge and not run.hedged and now >= run.late_at:
                    run.hedged = True
                    self._moves.add(Move(request, run, "late"))
        self._move(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        due = self._moves.due_ns
        for request in self.requests.values():
            due = min(due, request.deadline_ns)
            if request.hedge:
                for run in request.runs.values():
                    if not run.hedged:
                        due = min(due, run.late_at)
        return due
