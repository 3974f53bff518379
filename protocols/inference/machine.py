"""The inference of one node: what it offers, and the requests of itself and of its neighbours.

Its own requests are the business of :mod:`protocols.inference.asking`, those of neighbours that of
:mod:`protocols.inference.serving`. The plans of models that are split, and the stages that this node runs for others,
are in :mod:`protocols.inference.split`, and so are batches that are divided. Budgets travel as durations, so that no
clocks need to agree.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from random import Random
from typing import ClassVar, Final, assert_never

from msgspec import structs

from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.effects import Effect
from protocols.base.ids import NodeId, Role
from protocols.base.keys import checked_expression
from protocols.base.reach import Reach
from protocols.base.time import NEVER
from protocols.inference.asking import Asking
from protocols.inference.costs import Services
from protocols.inference.events import Answered, Decided
from protocols.inference.loads import OwnQueue
from protocols.inference.offers import OfferTable
from protocols.inference.placement import LocalModel
from protocols.inference.relay import MAX_AT_RELAY, RelayReach
from protocols.inference.serving import Serving
from protocols.inference.signature import ModelSignature, to_wire
from protocols.inference.split.batches.shards import Shards
from protocols.inference.split.hosting import Hosting
from protocols.inference.split.parts import carry
from protocols.inference.split.splitting import Splitting
from protocols.links.drops import Drops
from protocols.machine import Machine, Message
from protocols.wire.frame import Frame
from protocols.wire.inference import (
    FRAMES,
    InferAnswer,
    InferCancel,
    InferenceFrame,
    InferRequest,
    Offer,
    Offers,
    OffersTold,
    Signature,
    StageAsked,
    StageChunk,
    StageState,
    StageWanted,
)
from protocols.wire.tensors import NamedTensor

OFFER_INTERVAL_NS: Final = 100 * limits.MS
"""Neighbours are told of changes of load at most this often …"""
TOLD_QUEUE_NS: Final = 20 * limits.MS
TOLD_SHARE: Final = 4
"""… and only when the queue has changed by this much, or it or a model's time by one in so many parts. Each answer
tells the queue anyway to those who ask."""


class Inference(Machine):
    """The inference of one node."""

    name: ClassVar[str] = "inference"
    frames: ClassVar[tuple[type[Frame], ...]] = FRAMES

    def __init__(
        self, node: NodeId, access: AccessTable, reachable: Callable[[int], list[Reach]], drops: Drops, random: Random
    ) -> None:
        """``reachable(now)`` lists the neighbours that can be asked now. ``drops`` counts what was refused, by
        neighbour."""
        self._node = node
        self._models: dict[str, LocalModel] = {}
        self._offers = OfferTable(access, drops)
        self._decided = Decided()
        self._numbers = count(1)
        self._services, self._own_queue = Services(), OwnQueue()
        self._relay, self._relay_version = RelayReach(reachable), 0
        self._asking = Asking(
            node, self._models, self._offers, self._relay, drops, self._decided, self._numbers, self._services,
            self._own_queue, random,
        )  # fmt: skip
        self._serving = Serving(node, access, drops, self._decided, self._services, self._own_queue)
        self.split = Splitting(
            node, access, self._asking, self._models, self._offers, reachable, drops, self._decided, self._numbers
        )  # fmt: skip
        self.hosting = Hosting(node, access, drops, self._decided)
        self.shards = Shards(node, self._asking, self._services, self._own_queue, self._numbers)
        self._told: list[LocalModel] = []  # what neighbours know
        self._described: set[str] = set()  # digests whose signatures all neighbours at that time were told
        self._offer_version = 0
        self._offers_due_ns, self._offers_sent_ns = NEVER, -NEVER

    # --- models and offers -----------------------------------------------------------------------------------------
    def set_models(self, models: tuple[LocalModel, ...], now: int) -> None:
        """Set which models are loaded here and what they cost now. Neighbours are told of changes."""
        self._own_queue.told(now)
        self._models.clear()
        self._models.update((model.name, model) for model in models)
        if self._offers_due_ns == NEVER and self._differs():
            self._offers_due_ns = max(now, self._offers_sent_ns + OFFER_INTERVAL_NS)

    def configure(
        self, pinned: Mapping[str, str] | None = None, fallbacks: Mapping[str, str] | None = None, workers: int = 1,
        offload: bool = True, private: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Say how this node computes.

        ``pinned``: which files (digests) the names of models stand for, whatever neighbours offer. ``fallbacks``: which
        smaller model may be run in whose place, when that would probably miss its deadline. ``workers``: how many runs
        go on here at the same time. ``offload``: whether neighbours are asked for what this node can compute itself.
        ``private``: the models whose inputs must not leave this node.
        """
        self._offers.pinned = dict(pinned or {})
        self._asking.fallbacks, self._asking.candidates.offload = dict(fallbacks or {}), offload
        self._asking.candidates.private = frozenset(private)
        self._own_queue.workers = workers

    def follow(self, model: str, digest: str, private: bool) -> None:
        """Another file takes the place of the one of a model. ``private``: whether its inputs must not leave this
        node."""
        if model in self._offers.pinned:
            self._offers.pinned = {**self._offers.pinned, model: digest}
        others = self._asking.candidates.private - {model}
        self._asking.candidates.private = others | {model} if private else others

    def _differs(self) -> bool:
        """Whether neighbours would decide otherwise if they knew what is true now."""
        told, now = self._told, [model for model in self._models.values() if _is_offered(model)]
        if [(m.name, m.digest) for m in told] != [(m.name, m.digest) for m in now]:
            return True
        return any(
            abs(new.compute_ns - old.compute_ns) > old.compute_ns // TOLD_SHARE
            or abs(new.queue_ns - old.queue_ns) > max(TOLD_QUEUE_NS, old.queue_ns // TOLD_SHARE)
            for old, new in zip(told, now, strict=True)
        )

    def greetings(self) -> list[Frame]:
        """The :meth:`offers` of this node, and what these models take and give."""
        return [self.offers(), *self._signatures()]

    def _signatures(self) -> list[Signature]:
        """Those of the models in the last offers."""
        return [to_wire(model.digest, model.signature) for model in self._told if model.signature is not None]

    def offers(self) -> Offers:
        """What this node computes for others."""
        self._offer_version += 1
        self._told = [model for model in self._models.values() if _is_offered(model)]
        queue_ns = max((model.queue_ns for model in self._told), default=0)
        return Offers(self._offer_version, tuple(
            Offer(
                model.name, model.digest, model.compute_ns // 1_000,
                model.queue_ns // model.compute_ns if model.compute_ns else 0, model.p95_ns // 1_000,
            )
            for model in self._told[: limits.MAX_OFFERS]
        ), queue_ns // 1_000, self._own_queue.workers, limits.MAX_REQUEST_RUNS)  # fmt: skip

    def throughput_of(self, node: NodeId) -> float:
        """The throughput of the link to a neighbour, in bytes a second; 0: it was not measured yet."""
        return self._asking.costs.throughput_of(node)

    def transferred(self, node: NodeId, size_bytes: int, took_ns: int) -> None:
        """The link to a neighbour took ``took_ns`` for ``size_bytes``."""
        self._asking.costs.transferred(node, size_bytes, took_ns)

    def offers_of(self, node: NodeId) -> tuple[Offer, ...]:
        """The models that a neighbour has offered and may offer."""
        return self._offers.of(node)

    def digest_of(self, model: str) -> str | None:
        """The file that this node means by the name of a model; None when nobody has it."""
        return self._asking.digest_of(model)

    def signature_of(self, model: str) -> ModelSignature | None:
        """What a model takes and gives; None when nobody says so."""
        return self._asking.signature_of(model)

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
        number = self.split.begin(model, inputs, outputs, budget_ns, hedge, now)
        if number is None:
            return self._asking.ask(model, inputs, outputs, budget_ns, hedge, now)
        self._carry(now)
        return number

    def ask_batch(
        self, model: str, inputs: tuple[NamedTensor, ...], outputs: tuple[str, ...], budget_ns: int, hedge: bool,
        now: int, divided: Sequence[str] = (), size: int = 0,
    ) -> int:  # fmt: skip
        """Start a request whose inputs have rows, which this node and its neighbours divide among themselves; the rest
        is as for :meth:`ask`. ``hedge``: whether a shard that is late may be begun a second time. ``divided``: see
        :class:`~protocols.inference.split.batches.rows.Rows`. ``size``: rows of a shard; 0: chosen by what runs have
        taken.

        :raises InputInvalid: it can't be divided. :raises BoundExceeded: with too many batches or bytes in flight.
        :raises ModelUnknown: when neither this node nor a neighbour has the model.
        """
        number, answers = self.shards.begin(model, inputs, outputs, budget_ns, hedge, now, divided, size)
        self._decided.events += answers
        self._carry(now)
        return number

    def abandon(self, number: int, now: int) -> None:
        """The caller no longer wants the answer: no event follows."""
        if not (self.shards.abandon(number, now) or self.split.abandon(number, now)):
            self._asking.abandon(number, now)

    def fallback_of(self, model: str) -> str:
        """The smaller model that may be run in the place of one; empty: there is none."""
        return self._asking.fallback_of(model)

    def under_way(self) -> list[NodeId]:
        """The nodes that compute own requests now, once for each run."""
        return [run.node for request in self._asking.requests.values() for run in request.runs.values()]

    def _carry(self, now: int) -> None:
        """Go on with requests of which parts have ended."""
        carry(self._decided, (self.split.pipelines, self.shards), now)
        self.split.note_trials(now)

    # --- results ---------------------------------------------------------------------------------------------------
    def computed(self, run: int, answer: InferAnswer, now: int) -> None:
        """A run of this node ended; ``answer.request`` is ignored."""
        if not self._serving.computed(run, answer, self._queue_us(now), now):
            self._asking.result(run, self._node, answer, now)
            self._carry(now)

    def _queue_us(self, now: int) -> int:
        longest_ns = max((model.queue_ns for model in self._models.values()), default=0)
        return self._own_queue.left_ns(longest_ns, now) // 1_000

    def expects(self, frame: Frame, source: NodeId) -> bool:
        """Whether it is the answer to a run that this neighbour does for this node."""
        match frame:
            case InferAnswer():
                return self._asking.is_run_by(frame.request, source)
            case StageChunk():
                return self.hosting.expects(frame, source)
            case StageWanted() | StageState():
                return self.split.lending.expects(frame, source)
            case _:
                return False

    # --- the relay -------------------------------------------------------------------------------------------------
    def allow_relay(self, models: Iterable[str]) -> None:
        """Say which models the relay may compute, by key expression: until then it is asked for none.

        :raises InvalidKey: one of them is no key expression.
        """
        self._relay.models = tuple(map(checked_expression, models))

    def relay_told(self, told: OffersTold, round_trip_ns: int, now: int) -> set[str]:
        """The relay can be asked, and offers this. Returns the digests whose signatures it has not told yet."""
        called = self._relay.come(told.relay, round_trip_ns)
        if self._decided.relay != called:
            self.relay_gone(now)
            self._relay.come(told.relay, round_trip_ns)
            self._decided.relay = called
        self._relay_version += 1  # it comes in order, and a relay that has restarted counts anew
        offers = tuple(offer for offer in told.offers.offers if self._relay.may_have(offer.model))
        self._offers.receive(
            structs.replace(told.offers, version=self._relay_version, offers=offers), called, Role.RELAY, now
        )
        for signature in told.signatures:
            self._offers.receive_signature(signature, called, now)
        self._asking.loads.reported(called, queue_us_of(told.offers), now, min(told.offers.workers, MAX_AT_RELAY))
        return {offer.digest for offer in offers} - self._offers.described_by(called)

    def relay_gone(self, now: int) -> None:
        """The relay can't be asked any more: its runs are repeated elsewhere."""
        if self._decided.relay is not None:
            self._offers.forget(self._decided.relay)
            self._asking.neighbour_gone(self._decided.relay, now)
            self._relay.node = self._decided.relay = None
            self._carry(now)

    def relay_offers(self) -> tuple[NodeId, tuple[Offer, ...]] | None:
        """What the relay is called in answers, and the models that it may be asked for; None: it is away."""
        relay = self._decided.relay
        return None if relay is None else (relay, self._offers.of(relay))

    def relay_lack(self, model: str) -> str:
        """See :meth:`protocols.inference.relay.RelayReach.lack`."""
        return self._relay.lack(model)

    def relay_answered(self, answer: InferAnswer, now: int) -> None:
        """A run at the relay ended, or its connection has."""
        if self._decided.relay is not None:
            self._receive_answer(answer, self._decided.relay, now)

    # --- frames ----------------------------------------------------------------------------------------------------
    def receive(self, frame: InferenceFrame, source: NodeId, role: Role, now: int) -> None:
        """A neighbour sent a frame of inference."""
        match frame:
            case Offers():
                if self._offers.receive(frame, source, role, now):
                    self._asking.loads.reported(source, queue_us_of(frame), now, frame.workers)
            case InferRequest():
                model = self._asked_for(frame, source, now)
                if model is None or not model.answers_to(frame.digest):
                    self._correct(frame, now)
                self._serving.request(frame, model, source, role, next(self._numbers), now)
            case InferAnswer():
                self._receive_answer(frame, source, now)
            case InferCancel():
                self._serving.cancel(frame.request, source, now)
            case Signature():
                self._offers.receive_signature(frame, source, now)
            case StageAsked():
                self.hosting.asked(frame, source, role, now)
            case StageChunk():
                self.hosting.chunk(frame, source, now)
            case StageWanted():
                self.split.lending.wanted(frame, source, now)
            case StageState():
                self.split.told(frame, source, now)
            case _:
                assert_never(frame)

    def _receive_answer(self, frame: InferAnswer, source: NodeId, now: int) -> None:
        self._asking.result(frame.request, source, frame, now)
        if frame.queue_us is not None:
            self._asking.loads.reported(source, frame.queue_us, now)
        self._carry(now)

    def _asked_for(self, frame: InferRequest, source: NodeId, now: int) -> LocalModel | None:
        """The model that a neighbour means. A stage is known by its digest, since neighbours may call its model
        differently."""
        model = self._models.get(frame.model)
        if model is None or not model.answers_to(frame.digest):
            model = self._models.get(self.hosting.name_of(frame.digest))
        if model is None or not model.stage_of:
            return model
        self.hosting.used(model.digest, now)
        whole = self.hosting.whole_of(model.digest, source)
        return structs.replace(model, stage_of=whole) if whole else model

    def neighbour_met(self, node: NodeId, role: Role, now: int) -> None:
        """The neighbour sends its offers unasked."""
        self.split.neighbour_met(node, role)

    def neighbour_gone(self, node: NodeId, now: int) -> None:
        """A neighbour is gone: its runs are repeated elsewhere, and its requests are dropped."""
        self._offers.forget(node)
        self._serving.neighbour_gone(node)
        self.hosting.neighbour_gone(node)
        self.split.neighbour_gone(node, now)
        self._asking.neighbour_gone(node, now)
        self._carry(now)

    def undeliverable(self, node: NodeId, frame: Frame, now: int) -> None:
        """A frame could not be queued. A request goes to another node at once. For an answer, the run is reported as
        failed."""
        if type(frame) is InferRequest:
            self._asking.undeliverable(node, frame, now)
            self._carry(now)
        elif type(frame) is InferAnswer and frame.outputs:
            detail = f"{self._node} computed it, but the answer is too large or the link is stuck"
            self._decided.messages.append((node, InferAnswer(frame.request, "failed", detail=detail)))

    def _correct(self, frame: InferRequest, now: int) -> None:
        """Tell neighbours of a release first when one of them asks for the file before it because it was offered that:
        then its request goes on with the release."""
        if any(told.name == frame.model and told.digest == frame.digest for told in self._told):
            self._tell_offers(now)

    def _tell_offers(self, now: int) -> None:
        self._offers_due_ns, self._offers_sent_ns = NEVER, now
        self._decided.messages.append((None, self.offers()))
        signatures = {frame.digest: frame for frame in self._signatures()}
        self._decided.messages += [(None, signatures[new]) for new in signatures if new not in self._described]
        self._described = set(signatures)

    # --- time ------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Hedge what is late, end what is past its deadline, and tell neighbours what changed."""
        if now >= self._offers_due_ns:
            self._tell_offers(now)
        if self._serving.held:
            self._serving.handle_timer(now)
        if self._asking.requests:
            self._asking.handle_timer(now)
        self.hosting.handle_timer(now)
        self.split.handle_timer(now)
        self._decided.events += self.shards.handle_timer(now)
        self._carry(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` wants to be called next."""
        due = min(
            self._offers_due_ns, self.split.next_timer_at(), self.hosting.next_timer_at(), self.shards.next_timer_at()
        )
        if self._serving.held:
            due = min(due, self._serving.next_timer_at())
        if self._asking.requests:
            due = min(due, self._asking.next_timer_at())
        return due

    def outgoing(self) -> list[Effect]:
        """Effects since the last call."""
        effects, self._decided.effects = self._decided.effects, []
        return effects

    def has_news(self) -> bool:
        """Whether :meth:`messages` or :meth:`events` would return anything."""
        return bool(self._decided.messages or self._decided.events)

    def messages(self) -> list[Message]:
        """Frames to queue for neighbours."""
        messages, self._decided.messages = self._decided.messages, []
        return messages

    def events(self) -> list[Answered]:
        """Events since the last call."""
        events, self._decided.events = self._decided.events, []
        return events

    def counters(self) -> dict[str, int]:
        """Counters by name; they only grow."""
        return {
            **self._asking.counters, "served": self._serving.served, "refused_busy": self._serving.refused_busy,
            "refused_late": self._serving.refused_late, **self.split.counters(), **self.shards.counters,
            "stages_hosted": self.hosting.taken, "stages_refused": self.hosting.refused,
            "stages_dropped": self.hosting.dropped,
        }  # fmt: skip


def _is_offered(model: LocalModel) -> bool:
    """Whether all neighbours are told of it. Of a stage only those know that have asked for it."""
    return model.served and not model.stage_of


def queue_us_of(offers: Offers) -> int:
    """How long the next run would wait at the sender. Nodes before version 1.4 of the wire tell how many runs wait."""
    return offers.queue_us or max((offer.waiting * offer.compute_us for offer in offers.offers), default=0)
