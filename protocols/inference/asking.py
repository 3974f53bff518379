"""The requests for inference of this node itself.

The life of one:

    asked ──▶ running on the best candidate ──answer──▶ done
                 │ late: the next candidate starts too; the first answer wins, the other is cancelled
                 │ busy, failed, wrong, dead: the next candidate starts at once
                 └ deadline, or no candidate left that could make it ──▶ failed, with every attempt named

Rules:
1. Each own request is answered exactly once.
2. Only neighbours that offer the very same file (digest) are asked.
3. A neighbour should not make the caller slower than computing alone: it is asked only when it is predicted to be
   clearly faster (:mod:`protocols.inference.placement`).
4. A run is late at the 95th percentile of its prediction. The next candidate then starts beside it, if it can make the
   deadline and the budget of hedges allows: one in twenty requests, over time. Whatever that budget says, this node
   starts when it could otherwise not make the deadline any more (a rescue), and a run that seems to stall is given up
   for the next candidate. Its node is asked again when all others have failed or stall, and gets twice the time.
5. What nobody can compute before its deadline is not begun. A model may name a smaller one that is run in its place
   when it would probably miss the deadline; the answer says which one ran.
6. What a neighbour answers is checked against the signature of the model. An answer that can't be a result is a
   ``failed`` run, and its neighbour is not asked for a while (:mod:`protocols.inference.standing`). A neighbour alone
   can't end a request by calling its inputs invalid; this node can, or two neighbours that agree.
7. A result that comes at the deadline or later is late: the caller gets an error, and the costs are still learned.
"""

from collections.abc import Iterator, Mapping
from random import Random
from typing import Final

from protocols.base import limits
from protocols.base.errors import BoundExceeded, ModelUnknown
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.inference.candidates import Candidates
from protocols.inference.costs import Answer, Demand, Services
from protocols.inference.events import Answered, CancelCompute, Compute, Decided, RunReport
from protocols.inference.loads import OwnQueue
from protocols.inference.moves import Move, Moves
from protocols.inference.offers import OfferTable
from protocols.inference.placement import Candidate, LocalModel
from protocols.inference.relay import RelayReach
from protocols.inference.requests import Hedges, OwnRequest, OwnRun
from protocols.inference.signature import ModelSignature, misfit
from protocols.links.drops import Drops
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest
from protocols.wire.tensors import NamedTensor

EXPLORE_EVERY: Final = 16
"""Of the runs that neighbours are predicted to do faster, the first is done here all the same, and then one in this
many …"""
EXPLORE_FACTOR: Final = 2
"""… unless this node is predicted to need more than this many times as long: then there is nothing to find out."""
MAX_FALLBACKS: Final = 4
"""How many smaller models may stand behind one another."""
RESCUE_NS: Final = 2 * limits.MS
"""A rescue begins this long before the last moment."""
_LATE: Final = "{!r} was not answered within its deadline"
_SHOWN_MODELS: Final = 20
"""Names of models in one message: each neighbour may offer 64."""


class Asking:
    """The own requests under way."""

    def __init__(
        self, node: NodeId, models: Mapping[str, LocalModel], offers: OfferTable, relay: RelayReach, drops: Drops,
        decided: Decided, numbers: Iterator[int], services: Services, own_queue: OwnQueue, random: Random,
    ) -> None:  # fmt: skip
        """``models``: those that are loaded here now. ``numbers``: numbers of requests and runs, each given once.
        ``services``: what runs on this node have taken."""
        self._node, self._models, self._offers, self._relay = node, models, offers, relay
        self._reachable, self._drops, self._decided, self._numbers = relay.everybody, drops, decided, numbers
        self._services = services
        self.fallbacks: Mapping[str, str] = {}
        """Smaller models, by the name of the one in whose place they may be run."""
        self.requests: dict[int, OwnRequest] = {}
        """Those under way, by number."""
        self.candidates = Candidates(node, models, offers, relay, services, own_queue, random, self.requests)
        self.costs, self.loads = self.candidates.costs, self.candidates.loads
        self._standings = self.candidates.standings
        self._hedges = Hedges()
        self._risks = 0  # runs under way at neighbours that are not proven; a hedge is kept for each
        self._runs: dict[int, int] = {}  # run -> own request
        self._misnamed: set[str] = set()  # digests of models here whose names of sizes were seen to be wrong
        self._moves = Moves()
        self._elsewhere = EXPLORE_EVERY  # runs given to neighbours since the last run here; initially none has run here
        self.counters = {
            "asked": 0, "answered": 0, "failed": 0, "run_here": 0, "run_there": 0, "run_at_relay": 0, "hedged": 0,
            "hedges_denied": 0, "rescued": 0, "replayed": 0, "fell_back": 0, "hopeless": 0, "late_answers": 0,
            "wrong_answers": 0,
        }  # fmt: skip

    def digest_of(self, model: str) -> str | None:
        """The file that this node means by the name of a model; None when nobody has it."""
        local = self._models.get(model)
        return local.digest if local is not None else self._offers.digest_of(model)

    def require_digest(self, model: str) -> str:
        """As :meth:`digest_of`. :raises ModelUnknown: nobody has it."""
        digest = self.digest_of(model)
        if digest is None:
            names = sorted({*self._models, *self._offers.names()})
            known = ", ".join(names[:_SHOWN_MODELS]) + (", …" if len(names) > _SHOWN_MODELS else "")
            raise ModelUnknown(
                f"no model {model!r} here or at a neighbour; known: {known or 'none'}. "
                f"Add [models.<name>] to the configuration of a node in reach{self._relay.lack(model)}"
            )
        return digest

    def means(self, model: str, digest: str) -> bool:
        """Whether the name of a model stands for that file, or has stood for it and it is still loaded here."""
        local = self._models.get(model)
        return self.digest_of(model) in (digest, None) or (local is not None and local.answers_to(digest))

    def signature_of(self, model: str) -> ModelSignature | None:
        """What a model takes and gives: as it is loaded here, or else by what neighbours say; None: nobody says so."""
        digest = self.digest_of(model)
        return None if digest is None else self._signature(model, digest)

    def _signature(self, model: str, digest: str) -> ModelSignature | None:
        local = self._models.get(model)
        if local is not None and local.digest == digest:
            return local.signature
        return self._offers.signature_of(model, digest)

    def fallback_of(self, model: str) -> str:
        """The smaller model that may be run in the place of one; empty: there is none."""
        local = self._models.get(model)
        return self.fallbacks.get(model) or (local.fallback if local is not None else "")

    # --- asked -----------------------------------------------------------------------------------------------------
    def ask(
        self, model: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], budget_ns: int, hedge: bool,
        now: int, planned: NodeId | None = None, digest: str = "",
    ) -> int:  # fmt: skip
        """See :meth:`protocols.inference.machine.Inference.ask`. ``planned``: the node that should compute it, as part
        of a larger request, if it can. ``digest``: the file that the larger request means; empty: that of the name."""
        if len(self.requests) >= limits.MAX_PENDING_REQUESTS:
            raise BoundExceeded(f"{limits.MAX_PENDING_REQUESTS} requests are in flight: wait for answers")
        digest = digest or self.require_digest(model)
        number = next(self._numbers)
        request = self.requests[number] = OwnRequest(
            number, model, digest, inputs, outputs, now, budget_ns, hedge, planned
        )  # fmt: skip
        self.counters["asked"] += 1
        self._hedges.earn()
        if not self._start_next(request, now):
            self._fail_unstarted(request, now)
        return number

    def _fail_unstarted(self, request: OwnRequest, now: int) -> None:
        """Say why nobody was asked."""
        liars = self._distrusted(request, now)
        if hopeless := request.why_hopeless(now):
            self.counters["hopeless"] += 1
            self._fail(request, "late", hopeless, now)
        elif liars:
            detail = f"{', '.join(liars)} gave wrong answers and must not be asked for a while"
            self._fail(request, "failed", detail[: limits.MAX_TEXT_CHARS], now)
        else:
            self._fail(request, "unknown", f"nobody who may compute {request.model!r} is in reach", now)

    def _distrusted(self, request: OwnRequest, now: int) -> list[NodeId]:
        """The neighbours that could compute it if their answers had been right."""
        return [
            reach.node for reach in self._reachable(now)
            if self._standings.is_distrusted(reach.node, now)
            and self._offers.find(reach.node, request.model, request.digest)
        ]  # fmt: skip

    def abandon(self, number: int, now: int) -> None:
        """The caller no longer wants the answer: no event follows."""
        request = self.requests.pop(number, None)
        if request is not None:
            self._cancel_runs(request, now)

    # --- placed ----------------------------------------------------------------------------------------------------
    def _candidates(self, request: OwnRequest, now: int) -> list[Candidate]:
        """Who could compute the request in time, best first. While no run of it is under way, a smaller model takes the
        place of its own if that makes the deadline probable, or if its own can't make it at all. A part of a larger
        request has its own model only: parts of different models don't fit each other."""
        if request.runs or request.planned is not None:
            return self._ordered(request, request.model, request.demand, now)
        request.begin_anew(self.digest_of(request.asked_model))
        candidates = self._ordered(request, request.model, request.demand, now)
        if self._makes_it(request, candidates, now):
            return candidates
        hopeless, model = request.hopeless, request.model
        for _ in range(MAX_FALLBACKS):
            model = self.fallback_of(model)
            digest = self.digest_of(model) if model else None
            if digest is None:
                break
            smaller = self._ordered(request, model, Demand(digest, request.size_bytes, request.times), now)
            if self._makes_it(request, smaller, now) or (smaller and not candidates):
                self.counters["fell_back"] += 1
                request.model, request.digest = model, digest
                return smaller
        request.hopeless = hopeless
        return candidates

    def _ordered(self, request: OwnRequest, model: str, demand: Demand, now: int) -> list[Candidate]:
        return self.candidates.ordered(request, model, demand, self._may_risk(request), now)

    def _makes_it(self, request: OwnRequest, candidates: list[Candidate], now: int) -> bool:
        """Whether one of them will probably make the deadline, and can be trusted with that."""
        remaining_ns, may_risk = request.deadline_ns - now, self._may_risk(request)
        return any(
            candidate.p95_ns <= remaining_ns and not candidate.doubtful and (candidate.proven or may_risk)
            for candidate in candidates
        )

    def _may_risk(self, request: OwnRequest) -> bool:
        return not request.hedge or self._hedges.left > self._risks

    def _start_next(self, request: OwnRequest, now: int, beside: bool = False) -> bool:
        """Start a run on the best candidate. ``beside``: another run is under way, and this one has to be in time."""
        candidates = self._candidates(request, now)
        if beside:
            remaining_ns = request.deadline_ns - now
            candidates = [candidate for candidate in candidates if candidate.expected_ns <= remaining_ns]
        if not candidates:
            return False
        best = candidates[0]
        if not beside:
            best = self._explored(candidates, request.deadline_ns - now, best.node == request.planned)
        self._start(request, best, now)
        here = next((candidate for candidate in candidates if candidate.node == self._node), None)
        request.rescue_at = NEVER
        if here is not None and request.hedge and self._node not in request.tried:
            last_ns = request.deadline_ns - here.p95_ns - RESCUE_NS
            request.rescue_at = last_ns if last_ns > now else NEVER
        return True

    def _start(self, request: OwnRequest, best: Candidate, now: int) -> None:
        number = next(self._numbers)
        run = request.runs[number] = OwnRun(number, request, best, best.node == self._node, now)
        self._runs[number] = request.number
        self._risks += not best.proven
        request.tried.add(best.node)
        budget_ns = max(request.deadline_ns - now, 0)
        if best.node == self._node:
            self.counters["run_here"] += 1
            self._decided.effects.append(
                Compute(number, run.model, request.inputs, request.outputs, budget_ns, digest=run.digest)
            )
        else:
            self.counters["run_there" if best.node != self._decided.relay else "run_at_relay"] += 1
            self.loads.sent(run.node, number, best.service_ns, now)
            self._decided.tell(best.node, InferRequest(
                number, run.model, run.digest, budget_ns // 1_000, request.inputs, request.outputs
            ))  # fmt: skip

    def _explored(self, candidates: list[Candidate], remaining_ns: int, planned: bool) -> Candidate:
        """The best candidate, or now and then this node: its own cost would otherwise never be measured again while
        others are faster."""
        best = candidates[0]
        if best.node == self._node:
            self._elsewhere = 0
            return best
        if planned:
            return best
        self._elsewhere += 1
        here = next((candidate for candidate in candidates if candidate.node == self._node), None)
        if here is None or self._elsewhere < EXPLORE_EVERY or here.expected_ns > EXPLORE_FACTOR * best.expected_ns:
            return best
        if here.p95_ns > remaining_ns:
            return best
        self._elsewhere = 0
        return here

    # --- ended -----------------------------------------------------------------------------------------------------
    def _end_run(self, request: OwnRequest, run: OwnRun) -> None:
        del request.runs[run.number], self._runs[run.number]
        self._risks -= not run.candidate.proven
        self.loads.ended(run.node, run.number)

    def _cancel_runs(self, request: OwnRequest, now: int) -> None:
        for run in list(request.runs.values()):
            self._end_run(request, run)
            request.attempts.append(RunReport(run.node, "cancelled", now - run.started_ns))
            if run.node == self._node:
                self._decided.effects.append(CancelCompute(run.number))
            else:
                # Its answer will teach nothing: without this it would be asked first again.
                stalled = now > run.stalled_at or run.late_at < request.deadline_ns <= now
                self.costs.overdue(
                    run.node, run.demand, run.candidate.expected_ns, now - run.started_ns, stalled, now
                )  # fmt: skip
                if stalled:
                    self._standings.missed(run.node, now)
                self._decided.tell(run.node, InferCancel(run.number))

    def _win(
        self, request: OwnRequest, run: OwnRun, report: RunReport, outputs: tuple[NamedTensor, ...], now: int
    ) -> None:
        self._end_run(request, run)
        request.attempts.append(report)
        self._cancel_runs(request, now)
        del self.requests[request.number]
        for attempt in request.attempts:
            if attempt.outcome == "invalid":  # others took the same inputs
                self.was_wrong(attempt.node, run.model, now)
        self.counters["answered"] += 1
        self._decided.events.append(
            Answered(request.number, report, outputs, tuple(request.attempts), now - request.asked_ns, model=run.model)
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
            started = self._start_next(request, now) or (request.try_again() and self._start_next(request, now))
            if not started:
                if hopeless := request.why_hopeless(now):
                    self._fail(request, "late", hopeless, now)
                elif invalid:
                    self._fail(request, "invalid", invalid[0].detail, now)
                else:
                    self._fail(request, "failed", report.detail or f"{report.node}: {report.outcome}", now)

    def _fail(self, request: OwnRequest, failure: str, detail: str, now: int) -> None:
        self._cancel_runs(request, now)
        del self.requests[request.number]
        self.counters["failed"] += 1
        self._decided.events.append(Answered(
            request.number, None, (), tuple(request.attempts), now - request.asked_ns, failure, detail,  # type: ignore[arg-type]
            request.model,
        ))  # fmt: skip

    def is_run_by(self, run: int, node: NodeId) -> bool:
        """Whether that run is under way at that node."""
        request = self.requests.get(self._runs.get(run, 0))
        return request is not None and request.runs[run].node == node

    # --- results ---------------------------------------------------------------------------------------------------
    def result(self, number: int, node: NodeId, answer: InferAnswer, now: int) -> None:
        """A run here or at a neighbour ended; ``number`` is that of the run, ``answer.request`` is ignored."""
        request = self.requests.get(self._runs.get(number, 0))
        run = request.runs.get(number) if request is not None else None
        if request is None or run is None or run.node != node:
            self.counters["late_answers"] += 1
            return
        wrong = self._misfit(request, run, answer) if answer.status == "done" else ""
        if wrong:
            self.was_wrong(node, run.model, now)
            answer = InferAnswer(answer.request, "failed", detail=f"{node}: {wrong}"[: limits.MAX_TEXT_CHARS])
        took_ns = now - run.started_ns
        late = answer.status == "done" and now >= request.deadline_ns  # it came before the timer was handled
        outcome = "late" if late else answer.status
        report = RunReport(node, outcome, took_ns, answer.queued_us, answer.compute_us, answer.detail)
        if answer.status == "done":
            self._learn(run, answer, took_ns, now)
            if late:
                self._lose(request, run, report, now)
            else:
                self._win(request, run, report, answer.outputs, now)
        else:
            if node != self._node and not wrong and answer.status != "invalid":
                self._standings.missed(node, now)
            self._lose(request, run, report, now)

    def _learn(self, run: OwnRun, answer: InferAnswer, took_ns: int, now: int) -> None:
        output_bytes = sum(len(named.tensor.data) for named in answer.outputs)
        if run.node == self._node:
            self._services.add(run.demand, answer.compute_us * 1_000, now, output_bytes)
            return
        self.costs.learn(run.node, run.demand, Answer(
            run.candidate.expected_ns, run.candidate.queue_ns, took_ns, answer.queued_us * 1_000,
            answer.compute_us * 1_000, self._round_trip_ns(run.node, now), output_bytes,
        ), now)  # fmt: skip
        self._standings.succeeded(run.node)

    def _misfit(self, request: OwnRequest, run: OwnRun, answer: InferAnswer) -> str:
        """Why the outputs of a neighbour can't be the result of the model. This node is not checked, but its own
        results show whether the model names its sizes rightly."""
        signature = self._signature(run.model, run.digest)
        by_name = run.digest not in self._misnamed
        wrong = misfit(signature, request.inputs, request.outputs, answer.outputs, request.times, by_name=by_name)
        if run.node != self._node:
            return wrong
        if wrong and signature is not None and by_name:
            self._misnamed.add(run.digest)
        return ""

    def was_wrong(self, node: NodeId, model: str, now: int) -> None:
        """A neighbour lied. Results of this node are not checked, and what it calls invalid ends the request."""
        self.counters["wrong_answers"] += 1
        self._drops.count(node, model, "wrong_answer")
        self._standings.was_wrong(node, now)

    def _round_trip_ns(self, node: NodeId, now: int) -> int:
        return next((reach.round_trip_ns for reach in self._reachable(now) if reach.node == node), 0)

    # --- neighbours and time ---------------------------------------------------------------------------------------
    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """A neighbour is gone: its runs are repeated elsewhere."""
        self.costs.forget_link(node)
        self.loads.forget(node)
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
                self._hedge(request, run, now)
            else:
                report = RunReport(run.node, move.outcome, now - run.started_ns, detail=move.detail)
                self._lose(request, run, report, now)

    def _hedge(self, request: OwnRequest, run: OwnRun, now: int) -> None:
        if self._hedges.left < 1:
            self.counters["hedges_denied"] += 1
        elif self._start_next(request, now, beside=True):
            self._hedges.spend()
            self.counters["hedged"] += 1
            return
        run.denied = run.node != self._node
        if run.denied and now >= run.stalled_at:
            self._give_up(request, run, now)

    def _rescue(self, request: OwnRequest, now: int) -> None:
        request.rescue_at = NEVER
        here = self.candidates.here(request, request.model, request.demand, now)
        if here is not None:
            self.counters["rescued"] += 1
            self._start(request, here, now)

    def _give_up(self, request: OwnRequest, run: OwnRun, now: int) -> None:
        """A run that could not be hedged seems to stall: another node gets the request in its place, if one can."""
        run.denied, beside = False, len(request.runs) > 1
        if not self._could_help(request, now) and not (request.try_again() and self._could_help(request, now)):
            return  # it may still come, and whoever began now would be late for certain
        request.given_up.add(run.node)
        took_ns = now - run.started_ns
        self._standings.missed(run.node, now)
        self.costs.overdue(run.node, run.demand, run.candidate.expected_ns, took_ns, True, now)
        self._decided.tell(run.node, InferCancel(run.number))
        self._lose(request, run, RunReport(run.node, "late", took_ns, detail="it seems to stall"), now)
        if beside and request.runs:
            self._start_next(request, now)

    def _could_help(self, request: OwnRequest, now: int) -> bool:
        """Whether somebody else would probably make the deadline."""
        return any(now + candidate.expected_ns <= request.deadline_ns for candidate in self._candidates(request, now))

    def handle_timer(self, now: int) -> None:
        """Hedge what is late, and end what is past its deadline."""
        for request in list(self.requests.values()):
            if now >= request.deadline_ns:
                self._fail(request, "late", _LATE.format(request.model), now)
                continue
            if now >= request.rescue_at:
                self._rescue(request, now)
            for run in list(request.runs.values()):
                if request.hedge and not run.hedged and now >= run.late_at:
                    run.hedged = True
                    self._moves.add(Move(request, run, "late"))
                elif run.denied and now >= run.stalled_at:
                    self._give_up(request, run, now)
        self._move(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        due = self._moves.due_ns
        for request in self.requests.values():
            due = min(due, request.deadline_ns, request.rescue_at)
            if request.hedge:
                for run in request.runs.values():
                    if not run.hedged:
                        due = min(due, run.late_at)
                    elif run.denied:
                        due = min(due, run.stalled_at)
        return due
