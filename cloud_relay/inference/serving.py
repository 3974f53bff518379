"""Requests of nodes for inference: the relay computes them as a node does for its neighbours.

The machine of inference decides, with the relay's table of access (verb ``infer``): who may ask for which model, and
how many requests and bytes of one node it holds. Models run in worker processes of their own. A request keeps one
thread of the relay until it is answered, so there are as many further threads as the machine holds requests
(``MAX_SERVED_REQUESTS``): batches never wait for a run.

    OffersAsked  ──▶ OffersTold: the models that whoever asks may infer, and how long a run would wait
    InferRequest ──▶ InferAnswer, at the end of its budget at the latest
    InferCancel  ──▶ OffersTold; the request is answered at once

Invariant: each request is answered once. A node that asks with a number that is still under way has started again or
lost its connection; the earlier request is cancelled then.
"""

import asyncio
import logging
import threading
from pathlib import Path
from random import Random
from time import monotonic_ns
from typing import ClassVar, Final

from cloud_relay.inference.released import ReleasedModels
from cloud_relay.inference.section import ServedModels
from meshnode.inference.compute import ComputeService
from meshnode.troubles import Troubles
from protocols.access import LINK_ROLES, AccessTable
from protocols.base.allowance import Allowance
from protocols.base.effects import Effect
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import NodeId, PeerIdentity
from protocols.base.limits import MAX_BUDGET_MS, MAX_EXCHANGE_BYTES, MAX_TEXT_CHARS, SECOND
from protocols.inference.events import CancelCompute, Compute
from protocols.inference.machine import Inference
from protocols.inference.placement import LocalModel
from protocols.inference.serving import SERVED_GRACE_NS
from protocols.links.drops import Drops
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.inference import (
    InferAnswer,
    InferCancel,
    InferRequest,
    Offers,
    OffersAsked,
    OffersTold,
    Signature,
)
from protocols.wire.records import RelayRefusal

QUESTIONS_PER_S: Final = 50
MAX_QUESTIONS_BURST: Final = 100
"""Offers told to one node. It asks every five seconds, and an answer with signatures takes up to 1 ms. Beyond that a
cancellation still counts, and is answered ``busy``."""
MAX_NODES: Final = 16_384
"""Nodes of which something is remembered."""
_log = logging.getLogger(__name__)


class _Waiter:
    """A thread that waits for the answer to one request."""

    __slots__ = ("answer", "ended")

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.answer: InferAnswer | None = None

    def end(self, answer: InferAnswer) -> None:
        self.answer = answer
        self.ended.set()


class InferenceService:
    """Answers the frames of inference. Methods may be called from any thread."""

    FRAMES: ClassVar[tuple[type[Frame], ...]] = (OffersAsked, InferRequest, InferCancel)

    def __init__(
        self, node: NodeId, served: ServedModels | None, access: AccessTable, repository: Path, folder: Path
    ) -> None:
        """``node``: the id of this relay. ``served``: None: it computes nothing. ``repository``: that of releases; they
        are unpacked into ``folder``."""
        self._node, self._access = node, access
        self._lock = threading.Lock()
        self._machine = Inference(node, access, lambda _: [], Drops(), Random())
        self._waiting: dict[tuple[NodeId, int], _Waiter] = {}
        self._allowances: dict[NodeId, Allowance] = {}
        """Of questions, by node; who asked longest ago comes first."""
        self._counts = {"asked": 0, "done": 0, "failed": 0, "told": 0}
        self._compute: ComputeService | None = None
        if served is not None:
            self._machine.configure(workers=served.how.workers)
            self._compute = ComputeService(
                served.models, served.how, self._computed, self._set_models, Troubles()
            )  # fmt: skip
            self._released = ReleasedModels(
                repository, folder, served.released, served.how.providers, self._compute
            )  # fmt: skip
            threading.Thread(target=self._load, name="relay-models", daemon=True).start()
            if served.released:
                threading.Thread(target=self._released.follow, name="relay-released", daemon=True).start()

    def _load(self) -> None:
        """Load and measure the models. Those that can't be loaded are tried again while the relay runs."""
        assert self._compute is not None, "there are models"
        self._compute.load_models()
        self._compute.announce()
        asyncio.run(self._compute.watch())

    def statistics(self) -> dict[str, int]:
        """Counters: requests (``asked``), those with a result (``done``) and without (``failed``); questions for offers
        (``told``); requests that found no place (``busy``) and that could not be in time (``late``); and what happened
        to worker processes. ``held`` requests are under way now."""
        with self._lock:
            counters = self._machine.counters()
            counts = {**self._counts, "busy": counters["refused_busy"], "late": counters["refused_late"],
                      "held": len(self._waiting)}  # fmt: skip
        return counts if self._compute is None else {**counts, **self._compute.counters()}

    def close(self) -> None:
        """End all runs and processes, and answer whoever waits. Idempotent."""
        if self._compute is not None:
            self._released.close()
            self._compute.close()
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
        for waiter in waiting:
            waiter.end(InferAnswer(0, "failed", detail=f"the relay {self._node} is stopping"))

    # --- frames ----------------------------------------------------------------------------------------------------
    def answer(self, peer: PeerIdentity, data: bytes) -> bytes:
        """The answer to one frame of ``peer``. Never raises."""
        try:
            frame = decode_untrusted_relay_frame(data)
            if peer.role not in LINK_ROLES:
                return encode_frame(RelayRefusal("identity", f"a {peer.role} gets no inference: use that of a node"))
            match frame:
                case OffersAsked():
                    return encode_frame(self._told_if_allowed(peer, signatures=frame.signatures))
                case InferCancel():
                    self._cancel(peer, frame)
                    return encode_frame(self._told_if_allowed(peer))
                case InferRequest():
                    return self._encoded(self._inferred(peer, frame))
                case _:
                    return encode_frame(RelayRefusal("malformed", f"a relay is not asked {type(frame).__name__}"))
        except RemoteProtocolError as error:
            return encode_frame(RelayRefusal("malformed", str(error)[:MAX_TEXT_CHARS]))
        except Exception:  # noqa: BLE001 - a handler must not raise; the node asks somebody else
            _log.exception("a request of %s for inference was not answered: this is a bug of the relay", peer.node)
            return encode_frame(RelayRefusal("storage", "the relay failed"))

    def _may_ask(self, node: NodeId) -> bool:
        now = monotonic_ns()
        with self._lock:
            return self._remembered(node, now).take(now)

    def _remembered(self, node: NodeId, now: int) -> Allowance:
        """The allowance of a node, which is the last to be forgotten now. Call it with the lock."""
        allowance = self._allowances.pop(node, None) or Allowance(QUESTIONS_PER_S, MAX_QUESTIONS_BURST, now)
        if len(self._allowances) >= MAX_NODES:
            oldest = next(iter(self._allowances))
            del self._allowances[oldest]
            self._machine.neighbour_gone(oldest, now)
        self._allowances[node] = allowance
        return allowance

    def _told_if_allowed(self, peer: PeerIdentity, *, signatures: bool = False) -> OffersTold | RelayRefusal:
        if self._may_ask(peer.node):
            return self._told(peer, signatures=signatures)
        return RelayRefusal("busy", f"{peer.node} asks too much: ask again in a second")

    def _told(self, peer: PeerIdentity, *, signatures: bool) -> OffersTold:
        with self._lock:
            self._counts["told"] += 1
            offers, *described = self._machine.greetings()
        assert isinstance(offers, Offers), "it comes first"
        mine = tuple(each for each in offers.offers if self._access.permits_infer(peer.role, peer.node, each.model))
        digests = {each.digest for each in mine} if signatures else set()
        # With one run in each request: several would seldom fit into an exchange, and would keep a thread for longer.
        return OffersTold(
            self._node, Offers(offers.version, mine, offers.queue_us, offers.workers),
            tuple(each for each in described if isinstance(each, Signature) and each.digest in digests),
        )  # fmt: skip

    def _encoded(self, answer: InferAnswer) -> bytes:
        data = encode_frame(answer)
        if len(data) <= MAX_EXCHANGE_BYTES:
            return data
        detail = f"{self._node} computed it, but the answer is larger than {MAX_EXCHANGE_BYTES} bytes"
        return encode_frame(InferAnswer(answer.request, "failed", detail=detail, queue_us=answer.queue_us))

    # --- requests --------------------------------------------------------------------------------------------------
    def _inferred(self, peer: PeerIdentity, asked: InferRequest) -> InferAnswer:
        key, mine = (peer.node, asked.request), _Waiter()
        with self._lock:
            self._counts["asked"] += 1
            self._remembered(peer.node, monotonic_ns())  # the machine remembers something of whoever asks it
            before = self._waiting.get(key)
            if before is not None:
                self._machine.receive(InferCancel(asked.request), peer.node, peer.role, monotonic_ns())
                before.end(InferAnswer(asked.request, "failed", detail="it was asked for again"))
            self._waiting[key] = mine
            self._machine.receive(asked, peer.node, peer.role, monotonic_ns())
            effects = self._decided()
            is_held = any(isinstance(effect, Compute) for effect in effects)
            if not is_held and not mine.ended.is_set():
                mine.end(InferAnswer(asked.request, "busy", detail=f"{peer.node} asks too much"))
        self._perform(effects)
        budget_s = min(asked.budget_us / 1e6, MAX_BUDGET_MS / 1e3)
        if not mine.ended.wait(budget_s + 2 * SERVED_GRACE_NS / SECOND):
            with self._lock:
                self._machine.handle_timer(monotonic_ns())
                effects = self._decided()
            self._perform(effects)
        with self._lock:
            if self._waiting.get(key) is mine:
                del self._waiting[key]
            answer = mine.answer or InferAnswer(asked.request, "late", detail="its run hangs")
            self._counts["done" if answer.status == "done" else "failed"] += 1
        return answer

    def _cancel(self, peer: PeerIdentity, cancel: InferCancel) -> None:
        with self._lock:
            self._machine.receive(cancel, peer.node, peer.role, monotonic_ns())
            effects = self._decided()
            waiter = self._waiting.get((peer.node, cancel.request))
            if waiter is not None:
                waiter.end(InferAnswer(cancel.request, "failed", detail="it was cancelled"))
        self._perform(effects)

    # --- the machine -----------------------------------------------------------------------------------------------
    def _decided(self) -> list[Effect]:
        """With the lock: hand answers to those who wait, and return what is to be performed without it."""
        for node, frame in self._machine.messages():
            if isinstance(frame, InferAnswer) and node is not None:
                waiter = self._waiting.get((node, frame.request))
                if waiter is not None:
                    waiter.end(frame)
        return self._machine.outgoing()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert self._compute is not None, "without models there are no runs"
            match effect:
                case Compute():
                    self._compute.start(effect)
                case CancelCompute():
                    self._compute.cancel(effect.run)

    def _computed(self, run: int, answer: InferAnswer) -> None:
        with self._lock:
            self._machine.computed(run, answer, monotonic_ns())
            effects = self._decided()
        self._perform(effects)

    def _set_models(self, models: tuple[LocalModel, ...]) -> None:
        with self._lock:
            self._machine.set_models(models, monotonic_ns())
