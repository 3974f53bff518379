"""The Python API: a node in this process.

    async with meshnode.open("vehicle.toml") as node:
        node.publish("veh/veh-1/speed", 13.9, unit="m/s", sensor="wheel")
        async for reading in node.subscribe("veh/*/hazard"):
            ...

``publish`` and ``Publisher.put`` may be called from any thread and never wait; everything marked ``async`` belongs to
the event loop that opened the node.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from meshnode.asking.elsewhere import PastAndElsewhere
from meshnode.config.sections import NodeConfig
from meshnode.driver import Driver
from meshnode.gossip.running import RunningGossip
from meshnode.grpc.running import RunningGrpc
from meshnode.http.running import RunningHttp
from meshnode.identity import NodeIdentity
from meshnode.inference.result import InferenceResult
from meshnode.inference.running import RunningInference
from meshnode.inference.streams import OpenStreams, StreamingInference
from meshnode.links.interfaces import AddressWatch
from meshnode.links.transport import FailedLink
from meshnode.multicast.running import RunningMulticast
from meshnode.part import Part
from meshnode.readings.publisher import PublishedWatch, Publisher, not_open
from meshnode.readings.subscribing import ReadingCallback
from meshnode.readings.subscriptions import Subscription
from meshnode.records.running import RunningRecords
from meshnode.running import DropCount, Host
from meshnode.troubles import Troubles
from protocols.access import DEFAULT_RULES
from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.errors import InferenceError, LocalProtocolError
from protocols.base.ids import Incarnation
from protocols.events import DuplicateIdentity
from protocols.gossip.entries import EntryView
from protocols.membership.events import PeerRefused
from protocols.membership.settings import MembershipSettings
from protocols.peers import PeerView
from protocols.readings.events import DeadlineMissed, ReadingRefused
from protocols.readings.publication import Publication
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from protocols.wire.readings import Reading
from protocols.wire.tensors import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from meshnode.inference.batches import BatchInputs
    from meshnode.models import LoadedModel

_log = logging.getLogger(__name__)


class Node(Host, StreamingInference, PastAndElsewhere):
    """A running node, made by ``async with meshnode.open(…)``. After it has closed, methods that need other nodes raise
    ``LocalProtocolError``, and its counters can still be read."""

    max_in_flight = limits.MAX_PENDING_REQUESTS

    def __init__(
        self, config: NodeConfig, folder: Path, identity: NodeIdentity, incarnation: Incarnation,
        parts: Sequence[Part], make_driver: Callable[..., Driver], closing: AsyncExitStack,
    ) -> None:  # fmt: skip
        """:class:`meshnode.opening.ConfiguredNode` makes it on the event loop and opens it; ``closing`` closes it."""
        super().__init__()
        self.config, self.folder, self.identity, self.incarnation = config, folder, identity, incarnation
        self.id, self.role, self.mesh = identity.peer.node, identity.peer.role, identity.peer.mesh
        self.position = config.node.position
        self.certificate_ends = identity.not_after
        self.troubles, self.addresses, self.streams = Troubles(), AddressWatch(), OpenStreams()
        self.port, self.listens = 0, asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._closing, self._closed = closing, False
        self._clock_uncertainty_ns = int(config.node.clock_uncertainty_ms * limits.MS)
        self._subscriptions: dict[int, Subscription] = {}
        self._all_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()
        self._listeners: list[Callable[[Event], None]] = []
        self._changed = asyncio.Event()
        self.parts = tuple(part.start(self) for part in parts)
        self._handlers: dict[type[Event], Callable[[Any], object]] = {
            DeadlineMissed: self._deadline_missed, DuplicateIdentity: _id_is_used_twice, PeerRefused: _peer_was_refused,
            ReadingRefused: _reading_was_refused,
        }  # fmt: skip
        self._questions: dict[str, Callable[[Any], Any]] = {
            "peers": lambda _: self.peers(), "statistics": lambda _: self.statistics(), "drops": lambda _: self.drops(),
            "position": lambda _: self.position,
        }  # fmt: skip
        performers: dict[type[Any], Callable[[Any], object]] = {}
        owners: dict[Any, str] = dict.fromkeys((*self._handlers, *self._questions), "the node itself")
        for name, part in zip((part.name for part in parts), self.parts, strict=True):
            _declare(self._handlers, part.handlers(), "handles the event", name, owners)
            _declare(self._questions, part.questions(), "answers the question", name, owners)
            _declare(performers, part.performers(), "performs the effect", name, owners)
        self.part(RunningRecords).infer = self.infer
        self._watch = _one_of([watch for part in self.parts if (watch := part.watches_published()) is not None])
        machines = tuple(machine for part in self.parts for machine in part.machines())
        self.driver = make_driver(self._settings(), Random(), self._happened, performers, machines)

    def _settings(self) -> NodeSettings:
        membership = self.config.membership
        return NodeSettings(
            mesh=self.mesh, node=self.id, role=self.role, incarnation=self.incarnation, inbox_port=0,
            clock_uncertainty_ns=self._clock_uncertainty_ns, seal=self.part(RunningGossip).seal(),
            reading_seal=self.part(RunningGossip).reading_seal(), datagram_seal=self.part(RunningMulticast).seal(),
            access=DEFAULT_RULES if self.config.access.rules is None else self.config.access.rules,
            membership=MembershipSettings(
                heartbeat_interval_ns=membership.heartbeat_interval_ms * limits.MS,
                suspect_after_silence_ns=membership.suspect_after_silence_ms * limits.MS,
                suspicion_min_ns=membership.suspicion_min_ms * limits.MS,
                suspicion_max_ns=membership.suspicion_max_ms * limits.MS,
                lost_link_suspicion_ns=membership.lost_link_suspicion_ms * limits.MS,
                dial_timeout_ns=membership.dial_timeout_ms * limits.MS,
                max_neighbours=membership.max_neighbours,
            ),
        )  # fmt: skip

    @property
    def clock_uncertainty_ns(self) -> int:
        """Half width of the interval around this host's clock that holds the true time. Readings are published with it,
        and those of others are judged with it."""
        return self._clock_uncertainty_ns

    @clock_uncertainty_ns.setter
    def clock_uncertainty_ns(self, uncertainty_ns: int) -> None:
        if uncertainty_ns != self._clock_uncertainty_ns:
            self._clock_uncertainty_ns = uncertainty_ns
            self.driver.act(lambda engine, _now: setattr(engine, "clock_uncertainty_ns", uncertainty_ns))

    async def close(self) -> None:
        """Stop sensing, say goodbye, hand records to the relay and release everything. Idempotent."""
        await self._closing.aclose()

    def end_streams(self) -> None:
        """End streams of inferences, while neighbours can still be told. The first step of closing."""
        self.streams.end(InferenceError(f"the node {self.id} closed while a stream of inferences was being read"))

    def end(self) -> None:
        """End publishers and subscriptions, so that nobody waits for ever. The last step of closing."""
        self._closed = True
        self._publishers.clear()
        for publisher in list(self._all_publishers):
            publisher.end()
        for subscription in list(self._subscriptions.values()):
            subscription.close()

    def require_open(self) -> None:
        """:raises LocalProtocolError: when the node has closed."""
        if self._closed:
            raise not_open(self.id)

    # --- readings: see the classes above ---------------------------------------------------------------------------
    def _publisher_of(self, publication: Publication) -> Publisher:
        publisher = Publisher(self, self.driver, publication, self._watch)
        self._all_publishers.add(publisher)
        return publisher

    def _subscribe(
        self, expression: str, quality: Quality, subscription: Subscription, callback: ReadingCallback
    ) -> Callable[[], None]:
        number = self.driver.subscribe(expression, quality, callback)
        self._subscriptions[number] = subscription

        def ended() -> None:
            self._subscriptions.pop(number, None)
            self.driver.unsubscribe(number)

        return ended

    # --- inference -------------------------------------------------------------------------------------------------
    async def infer(
        self, model: str, inputs: "Mapping[str, ArrayLike | Tensor]", *, outputs: tuple[str, ...] = (),
        deadline_ms: int | None = None, hedge: bool | None = None,
    ) -> InferenceResult:  # fmt: skip
        """Have ``model`` computed by whoever is predicted to be done first: this node, or a neighbour.

        ``inputs``: arrays by input name. ``outputs``: wanted outputs; empty: all. ``deadline_ms``: default from the
        configuration. ``hedge``: start a second run when the first is late.

        :raises ModelUnknown: nobody in reach has it. :raises ModelInvalid: nobody else has it, and its file here could
        not be loaded. :raises InputInvalid: inputs of the wrong name, type or shape.
        :raises BudgetExhausted: no answer within the deadline. :raises InferenceError: it failed everywhere.
        """
        return await self.part(RunningInference).infer(model, inputs, outputs, deadline_ms, hedge)

    async def infer_batch(
        self, model: str, inputs: "BatchInputs", *, outputs: tuple[str, ...] = (),
        deadline_ms: int | None = None, hedge: bool | None = None, shard: int | None = None,
        divided: tuple[str, ...] = (),
    ) -> InferenceResult:  # fmt: skip
        """Have a batch computed by this node and its neighbours together, each as many of its rows as it is fast.

        A row is one element of axis 0 of the inputs that are ``divided``, by default those with most elements there, or
        one of a list of encoded pictures. Other inputs go to each shard as they are. Rows must not depend on one
        another. Outputs of shards are joined on axis 0, in order; ``parts`` of the result says who computed how many
        rows. ``deadline_ms``: of the whole batch; default: that of the configuration for each row, and ten minutes at
        most. ``hedge``: begin shards that are late at another node too. ``shard``: rows of a shard; default: chosen by
        what runs have taken. The rest is as for :meth:`infer`.

        :raises InputInvalid: also when the inputs can't be divided, or outputs don't follow the batch.
        :raises BoundExceeded: with 16 batches under way, or a gigabyte of inputs and outputs of batches.
        """
        return await self.part(RunningInference).infer_batch(
            model, inputs, outputs, deadline_ms, hedge, shard, divided
        )  # fmt: skip

    @property
    def models(self) -> "dict[str, LoadedModel]":
        """Models loaded here, by name."""
        return self.part(RunningInference).models

    # --- who is there ----------------------------------------------------------------------------------------------
    def peers(self) -> list[PeerView]:
        """Every neighbour known, with state, round trip, lanes and offers; dead ones stay for two minutes."""
        return self.driver.look(lambda engine, now: engine.peers(now))

    def entries(self) -> list[EntryView]:
        """Every gossip entry held, by author and kind, also those of nodes far beyond the neighbours."""
        return self.part(RunningGossip).entries()

    def put_entry(self, kind: str, body: bytes, lifetime_s: int) -> int:
        """Author a gossip entry that spreads to all nodes, or replace the one of that kind; return its version. It
        raises the errors of ``protocols.gossip.machine.Gossip.put``."""
        return self.part(RunningGossip).put(kind, body, lifetime_s)

    async def wait_for_peers(self, count: int, timeout_s: float = 10.0) -> list[PeerView]:
        """Wait until at least ``count`` neighbours are met and alive.

        :raises TimeoutError: when there are fewer in the end.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                self._changed.clear()
                met = [peer for peer in self.peers() if peer.met and peer.state.value == "alive"]
                if len(met) >= count:
                    return met
                await self._changed.wait()

    # --- events ----------------------------------------------------------------------------------------------------
    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` for every event from now on, on whichever thread it happens; it must not block."""
        self._listeners.append(listener)

    def _happened(self, event: Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is None:
            _log.info("%s", event)
        else:
            handler(event)
        try:
            self.loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:
            _log.debug("the event loop has ended before %s", event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - one listener's bug must not keep the others from knowing
                _log.exception("a listener failed on %s", event)

    def _deadline_missed(self, event: DeadlineMissed) -> None:
        subscription = self._subscriptions.get(event.subscription)
        if subscription is not None:
            subscription.deadlines_missed += 1

    # --- for operators ---------------------------------------------------------------------------------------------
    def next_sequence(self) -> int:
        """The sequence of the next reading that this node publishes."""
        return self.driver.look(lambda engine, _: engine.readings.next_sequence)

    def statistics(self) -> dict[str, int]:
        """Counters by name; they only grow, except those that a part declares as gauges."""
        counters = self.driver.statistics()
        for part in self.parts:
            counters.update(part.statistics())
        return counters

    def drops(self) -> list[DropCount]:
        """((peer, key, reason), count) of every reading or frame dropped."""
        own = self.driver.look(lambda engine, _: list(engine.drops.items()))
        return [*own, *(drop for part in self.parts for drop in part.drops())]

    def link_failures(self) -> list[FailedLink]:
        """Peers with whom no link could be opened lately, and why; the latest failure last."""
        return self.driver.link_failures()

    def ask(self, subject: str, argument: Any = None) -> Any:
        """Ask a part of the node one of the questions that it declares, in plain data. May be called from any thread.
        A question that takes long holds up its caller.

        :raises LocalProtocolError: when no part answers it; the message lists what can be asked.
        """
        answer = self.begin_asking(subject, argument)
        return answer.result() if isinstance(answer, Future) else answer

    def begin_asking(self, subject: str, argument: Any = None) -> Any:
        """See :meth:`Host.begin_asking`."""
        answer = self._questions.get(subject)
        if answer is None:
            raise LocalProtocolError(
                f"no part answers {subject[:60]!r}: ask for one of {', '.join(sorted(self._questions))}"
            )
        return answer(argument)

    @property
    def http_port(self) -> int | None:
        """Port of the HTTP API; None when it is off."""
        return self.part(RunningHttp).port

    @property
    def grpc_port(self) -> int | None:
        """Port of the gRPC endpoint; None when it is off."""
        return self.part(RunningGrpc).port

    @property
    def uplink_state(self) -> str:
        """The state of the connection to the relay: a word, and the reason when it is not a good one; empty without a
        relay."""
        return self.part(RunningRecords).uplink_state


def _declare(
    table: dict[Any, Callable[[Any], object]], declared: Mapping[Any, Callable[[Any], object]], does: str, part: str,
    owners: dict[Any, str],
) -> None:  # fmt: skip
    """Add what a part declares. :raises LocalProtocolError: when another part has declared the same."""
    for what, function in declared.items():
        name = what if isinstance(what, str) else what.__name__
        if what in owners:
            raise LocalProtocolError(
                f"part {part!r} {does} {name}, and so does {owners[what]}: rename one, or leave one of the parts out"
            )
        owners[what] = f"part {part!r}"
        table[what] = function


def _one_of(watches: Sequence[PublishedWatch]) -> PublishedWatch | None:
    """One callable that calls all of them."""
    if len(watches) <= 1:
        return watches[0] if watches else None
    return partial(_show_all, watches)


def _show_all(watches: Sequence[PublishedWatch], reading: Reading, alone: bytes | None) -> None:
    for watch in watches:
        watch(reading, alone)


def _id_is_used_twice(event: DuplicateIdentity) -> None:
    _log.error("the id %s is used by another node as well (at %s): give each node its own", event.node, event.host)


def _peer_was_refused(event: PeerRefused) -> None:
    _log.warning("refused %s: %s: %s", event.who, event.code, event.detail)


def _reading_was_refused(event: ReadingRefused) -> None:
    _log.warning(
        "%s sent a signed reading that was refused: %s %r of %r", event.source, event.because, event.key, event.origin
    )
