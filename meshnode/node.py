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
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from meshnode.config.sections import NodeConfig
from meshnode.driver import Driver, ReadingCallback
from meshnode.gossip.notary import Notary
from meshnode.gossip.service import GossipService
from meshnode.http.section import HttpSection
from meshnode.identity import NodeIdentity, load_identity
from meshnode.identity.renewal import Renewal
from meshnode.identity.state import StateFolder
from meshnode.inference.compute import ComputeService
from meshnode.inference.result import InferenceResult as InferenceResult  # noqa: PLC0414 -- handed on
from meshnode.inference.section import InferenceSection
from meshnode.links.express.engine import open_express
from meshnode.links.mdns import Advert, Discovery, open_discovery
from meshnode.links.nng.library import open_transport
from meshnode.links.transport import Address, CredentialFiles, FailedLink, Transport
from meshnode.local.section import LocalSection, socket_of
from meshnode.local.server import LocalServer
from meshnode.parts import load
from meshnode.readings.publisher import Publisher, not_open
from meshnode.readings.publishing import Publishing
from meshnode.readings.subscriptions import Subscription
from meshnode.records.recording import Recorder
from meshnode.records.section import CurationRulesSection, RelaySection
from meshnode.sensors.section import SensorsSection
from meshnode.sensors.sensing import Sensing
from protocols.access import DEFAULT_RULES, LINK_ROLES
from protocols.base import limits
from protocols.base.errors import (
    BudgetExhausted,
    ConfigError,
    InferenceError,
    InputInvalid,
    LocalProtocolError,
    ModelUnknown,
)
from protocols.base.ids import NodeId
from protocols.events import DuplicateIdentity
from protocols.gossip.entries import EntryView, views
from protocols.gossip.events import EntryAccepted, EntryRefused
from protocols.inference.events import Answered, CancelCompute, Compute
from protocols.inference.placement import LocalModel
from protocols.machine import Effect, Event
from protocols.membership.events import PeerRefused
from protocols.membership.settings import MembershipSettings
from protocols.peers import PeerView
from protocols.readings.events import DeadlineMissed
from protocols.readings.publication import checked_publication
from protocols.readings.quality import Quality
from protocols.settings import NodeSettings
from protocols.wire.inference import InferAnswer
from protocols.wire.readings import Position, Provenance, Reading
from protocols.wire.tensors import NamedTensor, Tensor, tensor_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_log = logging.getLogger(__name__)
_SWITCH_INTERVAL_S = 0.0002
"""Set for the whole process. A thread of the application that only computes holds the interpreter this long before a
reading gets it. Measured between two processes, one way, both with such a thread: p50 5.3 ms at Python's own 5 ms,
0.66 ms at 0.5 ms, 0.25 ms at 0.1 ms, where publishing in a loop lost a sixth of its rate."""
_FLUSH_S = 1.0
"""How long a closing node tries to deliver records to the relay; the rest stays in the outbox."""


class Node(Publishing):
    """A running node. Made by :func:`open`; methods raise ``LocalProtocolError`` outside its ``async with``, but what
    it counted can be read after it has closed."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _OPENED:
                raise not_open(self.id)
            raise AttributeError(f"a node has no attribute {name!r}")

    def __init__(self, config: NodeConfig, folder: Path) -> None:
        super().__init__()
        self.config = config
        self.id = NodeId(config.node.id)
        self.position: Position | None = config.node.position
        """Where this node is now; a sensor that knows better sets it."""
        self._folder = folder
        self._uncertainty_ns = int(config.node.clock_uncertainty_ms * limits.MS)
        self._answers: dict[int, asyncio.Future[Answered]] = {}
        self._answers_lock = threading.Lock()
        self._subscriptions: dict[int, Subscription] = {}
        self._listeners: list[Callable[[Event], None]] = []
        self._advert_listeners: list[Callable[[NodeId], None]] = []
        self._all_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()
        self._closed = False
        self._recorder: Recorder | None = None
        self._sensing: Sensing | None = None
        self._local: LocalServer | None = None
        self._changed = asyncio.Event()
        self._stack = AsyncExitStack()
        self.port = 0
        """TCP port of the inbox."""
        self.http_port: int | None = None
        """Port of the HTTP API; None when it is off."""

    # --- life ------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def _open(self) -> None:
        """Open part after part; the stack closes them in the opposite order."""
        config, stack = self.config, self._stack
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        identity = self._identify()
        state = StateFolder(config.node.state_dir)
        stack.callback(state.close)
        self.incarnation = state.next_incarnation()
        self._notary = Notary(identity.credentials, self.mesh)
        self._driver = self._make_driver()
        if config.of(CurationRulesSection).rules or config.given(RelaySection) is not None:
            self._recorder = Recorder(config, self.mesh, self.incarnation, self._count_drop)
            await self._recorder.open()
            stack.push_async_callback(self._recorder.close, _FLUSH_S)
        self._compute = self._make_compute()
        stack.push_async_callback(asyncio.to_thread, self._compute.close)
        credentials = config.identity.credentials
        if config.listen.link_engine == "express":
            spin_ns = config.listen.spin_us * 1_000
            transport: Transport = open_express(credentials, self._driver, self.mesh, spin_ns, config.listen.priority)
        else:
            transport = open_transport(credentials, self._driver, self.mesh)
        stack.push_async_callback(asyncio.to_thread, transport.close)
        self.port = self._driver.start(transport, config.listen.host, config.listen.port)
        stack.push_async_callback(asyncio.to_thread, self._driver.close, "leaving")
        self._spread = GossipService(
            config, self.role, self.port, self.certificate_ends, self._driver, lambda: self._compute.models
        )
        await asyncio.to_thread(self._spread.open)
        stack.push_async_callback(asyncio.to_thread, self._spread.save)
        spreading = asyncio.create_task(self._spread.run(), name="gossip")
        stack.callback(spreading.cancel)

        def renew(credentials: CredentialFiles) -> None:
            transport.renew(credentials)
            self._notary.renew(credentials)

        renewal = asyncio.create_task(Renewal(identity, renew, self._renewed).run(), name="renewal")
        stack.callback(renewal.cancel)
        if self._recorder is not None:
            for expression in self._recorder.expressions:
                self.subscribe(expression, callback=self._record_other, own=False, history=False)
        if config.discovery.mdns:
            discovery = await asyncio.to_thread(self._discover)
            stack.push_async_callback(asyncio.to_thread, discovery.close)
        for address in config.discovery.seeds:
            self._hint(f"seed {address}", None, (address,))
        # After joining: loading takes seconds, and hazards of neighbours need not wait for it.
        await asyncio.to_thread(self._compute.load_models)
        self._compute.announce()
        http_section, local_section, socket = config.of(HttpSection), config.of(LocalSection), socket_of(config)
        if http_section.enabled:
            from meshnode.http import HttpServer

            http = HttpServer(self)
            self.http_port = await http.start(http_section.host, http_section.port)
            stack.push_async_callback(http.close)
        if local_section.enabled and len(os.fsencode(socket)) > limits.MAX_SOCKET_PATH_BYTES:
            _log.warning(
                "%s is too long a path for a socket: local applications can't connect; set [local] socket to a shorter "
                "one, as in '/run/mesh/node.sock'", socket,
            )  # fmt: skip
        elif local_section.enabled:
            local = LocalServer(self, self._driver, self._loop)
            local.start(socket, int(local_section.mode, 8))
            self._local = local
            stack.push_async_callback(asyncio.to_thread, local.close)
        if sensors := config.of(SensorsSection).sensors:
            self._sensing = Sensing(self, dict(sensors), self._folder, self.role)
            self._sensing.start()
            stack.push_async_callback(asyncio.to_thread, self._sensing.close)

    def _make_driver(self) -> Driver:
        return Driver(self._settings(), Random(), self._event, self._performers())

    def _performers(self) -> dict[type[Effect], Callable[[Any], None]]:
        return {
            Compute: self._compute_started,
            CancelCompute: lambda effect: self._compute.cancel(effect.run),
        }

    def _make_compute(self) -> ComputeService:
        return ComputeService(self.config, self._computed, self._set_models)

    def _renewed(self, ends: datetime) -> None:
        self.certificate_ends = ends
        self._spread.renewed(ends)

    def _identify(self) -> NodeIdentity:
        files = self.config.identity
        identity = load_identity(files.certificate, files.key, files.authority)
        if identity.peer.node != self.id:
            raise ConfigError(
                f"[node] id is {self.id!r}, but {files.certificate} belongs to {identity.peer.node!r}: "
                "use its id, or issue a certificate for this one"
            )
        if identity.peer.role not in LINK_ROLES:
            raise ConfigError(f"{files.certificate} has the role {identity.peer.role.value!r}: a node can't have it")
        self.role, self.mesh, self.certificate_ends = identity.peer.role, identity.peer.mesh, identity.not_after
        return identity

    def _settings(self) -> NodeSettings:
        membership = self.config.membership
        return NodeSettings(
            mesh=self.mesh, node=self.id, role=self.role, incarnation=self.incarnation, inbox_port=0,
            clock_uncertainty_ns=self._uncertainty_ns, seal=self._notary.seal(),
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

    def _discover(self) -> Discovery:
        discovery = open_discovery(
            self.mesh, self.id, self.incarnation, self.port, self.config.listen.advertise or None,
            self.config.discovery.interfaces, self._advert_seen, self._advert_gone,
        )  # fmt: skip
        discovery.announce()
        return discovery

    def _advert_seen(self, advert: Advert) -> None:
        if advert.node == self.id:
            host = advert.addresses[0].host if advert.addresses else "unknown"
            self._driver.act(lambda engine, _: engine.membership.duplicate_hint(host))
        else:
            self._hint(advert.node, advert.node, advert.addresses)
            for listener in self._advert_listeners:
                listener(advert.node)

    def _hint(self, name: str, node: NodeId | None, addresses: tuple[Address, ...]) -> None:
        at = tuple((address.host, address.port) for address in addresses)
        self._driver.act(lambda engine, now: engine.membership.hint(name, node, at, now))

    def _count_drop(self, key: str, reason: str) -> None:
        self._driver.look(lambda engine, _: engine.drops.count("", key, reason))

    def _advert_gone(self, node: NodeId) -> None:
        self._driver.act(lambda engine, _: engine.membership.withdraw(node))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop sensing, say goodbye, drain to the relay, let go of everything. Idempotent."""
        try:
            await self._stack.aclose()
        finally:  # whatever a part says, nobody is left waiting
            self._end_users()

    def _end_users(self) -> None:
        self._closed = True
        self._publishers.clear()
        for publisher in list(self._all_publishers):
            publisher.end()
        for subscription in list(self._subscriptions.values()):
            subscription.close()
        with self._answers_lock:
            answers, self._answers = list(self._answers.values()), {}
        for answer in answers:
            if not answer.done():
                answer.set_exception(InferenceError(f"the node {self.id} closed before the answer came"))

    # --- readings --------------------------------------------------------------------------------------------------
    def publisher(
        self, key: str, *, unit: str = "1", sensor: str = "application", where: Position | None = None,
        quality: float = 1.0, calibration: str = "", lineage: tuple[str, ...] = (), priority: int = 3,
        lifespan_ms: int = 0, hops: int = 0,
    ) -> Publisher:  # fmt: skip
        """Something that publishes on ``key``: make it once, ``put`` often.

        ``unit``: UCUM symbol (``m/s``). ``quality``: 0 to 1. ``lineage``: what it was derived from, nearest first.
        ``priority``: 0 to 7, 7 overtakes everything. ``lifespan_ms``: worthless after this; 0 never. ``hops``: how many
        neighbours may pass it on.

        :raises InvalidKey: when ``key`` is not one. :raises LocalProtocolError: when a number is out of its range.
        """
        if self._closed:
            raise not_open(self.id)
        how = Provenance(sensor, unit, quality, calibration, lineage)
        publication = checked_publication(key, how, where, priority, lifespan_ms, hops)
        publisher = Publisher(self, self._driver, self._recorder, publication)
        self._all_publishers.add(publisher)
        return publisher

    def subscribe(
        self, expression: str, callback: ReadingCallback | None = None, *, deadline_ms: int = 0,
        max_rate_hz: float = 0.0, conflate: bool = False, history: bool = True, hops: int = 0, own: bool = True,
        depth: int = 1_024,
    ) -> Subscription:  # fmt: skip
        """Readings whose key matches ``expression`` (``veh/*/speed``, ``rsu/**``), of this node and of neighbours.

        Without ``callback``: iterate over the result with ``async for``; at most ``depth`` readings wait.
        With ``callback``: it runs straight on the receiving thread and holds up all receiving while it runs.

        ``deadline_ms``: count streams that are silent for longer. ``max_rate_hz``: at most so many readings a second of
        a stream; the publisher leaves out the others. ``conflate``: of readings that wait only the newest of a key.
        ``history``: begin with the last known values. ``hops``: neighbours ask theirs, so many times. ``own``: this
        node's readings too.

        :raises InvalidKey: when ``expression`` is not one. :raises BoundExceeded: with too many subscriptions open.
        """
        if max_rate_hz < 0 or deadline_ms < 0 or depth < 1 or not 0 <= hops <= limits.MAX_HOPS:
            raise LocalProtocolError(
                f"max_rate_hz {max_rate_hz}, deadline_ms {deadline_ms}, depth {depth} or hops {hops} is out of range"
            )
        if self._closed:
            raise not_open(self.id)
        quality = Quality(
            deadline_ns=deadline_ms * limits.MS, min_interval_ns=int(limits.SECOND / max_rate_hz) if max_rate_hz else 0,
            conflate=conflate, history=history, hops=hops, own=own,
        )  # fmt: skip
        subscription = Subscription(expression, depth, conflate, None if callback is not None else self._loop)
        number = self._driver.subscribe(expression, quality, callback or subscription.take)
        self._subscriptions[number] = subscription

        def closed() -> None:
            self._subscriptions.pop(number, None)
            self._driver.unsubscribe(number)

        subscription.bind(closed)
        return subscription

    def _record_other(self, reading: Reading) -> None:
        recorder = self._recorder
        if recorder is not None and reading.origin != self.id:
            recorder.consider(reading, False)

    # --- inference -------------------------------------------------------------------------------------------------
    async def infer(
        self, model: str, inputs: "Mapping[str, ArrayLike | Tensor]", *, outputs: tuple[str, ...] = (),
        deadline_ms: int | None = None, hedge: bool | None = None,
    ) -> InferenceResult:  # fmt: skip
        """Have ``model`` computed by whoever is predicted to be done first: this node, or a neighbour.

        ``inputs``: arrays by input name. ``outputs``: names wanted; none: all. ``deadline_ms``: default from the
        configuration. ``hedge``: start a second run when the first is late.

        :raises ModelUnknown: nobody in reach has it. :raises InputInvalid: inputs of the wrong name, type or shape.
        :raises BudgetExhausted: no answer within the deadline. :raises InferenceError: it failed everywhere.
        """
        import numpy as np

        if self._closed:
            raise not_open(self.id)
        arrays = {name: value if isinstance(value, Tensor) else np.asarray(value) for name, value in inputs.items()}
        loaded = self._compute.models.get(model)
        if loaded is not None:
            loaded.check(arrays)
        if len(arrays) > limits.MAX_TENSORS or any(len(name) > limits.MAX_TEXT_CHARS for name in arrays):
            raise InputInvalid(
                f"{len(arrays)} inputs: give at most {limits.MAX_TENSORS}, with names of {limits.MAX_TEXT_CHARS}"
            )
        tensors = tuple(
            NamedTensor(name, value if isinstance(value, Tensor) else tensor_of(value))
            for name, value in arrays.items()
        )
        defaults = self.config.of(InferenceSection)
        budget_ns = (defaults.deadline_ms if deadline_ms is None else deadline_ms) * limits.MS
        future: asyncio.Future[Answered] = self._loop.create_future()
        with self._answers_lock:  # the answer may come before ask() has returned
            number = self._driver.begin(lambda engine, now: engine.inference.ask(
                model, tensors, outputs, budget_ns, defaults.hedge if hedge is None else hedge, now
            ))  # fmt: skip
            self._answers[number] = future
        self._driver.settle()
        try:
            answered = await future
        except asyncio.CancelledError:
            with self._answers_lock:
                self._answers.pop(number, None)
            self._driver.act(lambda engine, now: engine.inference.abandon(number, now))
            raise
        return self._result(model, answered)

    def _result(self, model: str, answered: Answered) -> InferenceResult:
        import numpy as np

        winner = answered.winner
        if winner is None:
            tried = ", ".join(
                f"{run.node}: {run.outcome} after {run.took_ns / 1e6:.0f} ms" for run in answered.attempts
            )
            message = f"{answered.detail or f'model {model!r} was not computed'} (tried {tried or 'nobody'})"
            kinds: dict[str, type[InferenceError]] = {
                "unknown": ModelUnknown, "invalid": InputInvalid, "late": BudgetExhausted
            }  # fmt: skip
            raise kinds.get(answered.failure, InferenceError)(message)
        outputs = {named.name: np.asarray(named.tensor) for named in answered.outputs}
        return InferenceResult(
            outputs,
            winner.node,
            answered.took_ns / 1e6,
            winner.compute_us / 1e3,
            winner.queued_us / 1e3,
            answered.attempts,
        )

    def _computed(self, run: int, answer: InferAnswer) -> None:
        self._driver.act(lambda engine, now: engine.inference.computed(run, answer, now))

    def _set_models(self, models: tuple[LocalModel, ...]) -> None:
        self._driver.act(lambda engine, now: engine.inference.set_models(models, now))

    def _compute_started(self, effect: Any) -> None:
        self._compute.start(effect)

    @property
    def models(self) -> dict[str, Any]:
        """Models loaded here, by name: ``meshnode.models.LoadedModel``."""
        return dict(self._compute.models)

    # --- who is there ----------------------------------------------------------------------------------------------
    def peers(self) -> list[PeerView]:
        """Every neighbour known, with state, round trip, lanes and offers; the dead for two minutes."""
        return self._driver.look(lambda engine, now: engine.peers(now))

    def entries(self) -> list[EntryView]:
        """Every gossip entry held, those of nodes far beyond the neighbours too, by author and kind."""
        return views(self._driver.look(lambda engine, now: engine.gossip.stored(now)))

    def put_entry(self, kind: str, body: bytes, lifetime_s: int) -> int:
        """Author a gossip entry for everybody to have, or replace the one of that kind; returns its version. Errors as
        ``Gossip.put``."""
        return self._driver.act(lambda engine, now: engine.gossip.put(kind, body, lifetime_s, now))

    async def wait_for_peers(self, count: int, timeout_s: float = 10.0) -> list[PeerView]:
        """Wait until at least ``count`` neighbours are met and alive.

        :raises TimeoutError: when they are not in time.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                self._changed.clear()
                met = [peer for peer in self.peers() if peer.met and peer.state.value == "alive"]
                if len(met) >= count:
                    return met
                await self._changed.wait()

    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` for every event from now on, on whichever thread it happens; it must not block."""
        self._listeners.append(listener)

    def on_advert(self, listener: Callable[[NodeId], None]) -> None:
        """Call ``listener`` with the id in every mDNS advert of another node, proven by nothing yet, on a thread of
        discovery; it must not block."""
        self._advert_listeners.append(listener)

    def _event(self, event: Event) -> None:
        match event:
            case Answered():
                with self._answers_lock:
                    future = self._answers.pop(event.request, None)
                if future is not None:
                    self._soon(_settle, future, event)
            case DeadlineMissed():
                subscription = self._subscriptions.get(event.subscription)
                if subscription is not None:
                    subscription.deadlines_missed += 1
            case DuplicateIdentity():
                _log.error(
                    "the id %s is used by another node as well (at %s): give each node its own", event.node, event.host
                )
            case EntryAccepted():  # thousands in a large mesh
                _log.debug("%s", event)
            case EntryRefused():
                _log.warning(
                    "%s handed over an entry that was not taken: %s %r of %r, version %d", event.source,
                    event.because, event.kind, event.author, event.version,
                )  # fmt: skip
            case PeerRefused():
                _log.warning("refused %s: %s: %s", event.who, event.code, event.detail)
            case _:
                _log.info("%s", event)
        self._soon(self._changed.set)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - one listener's bug must not keep the others from knowing
                _log.exception("a listener failed on %s", event)

    def _soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            _log.debug("the event loop has ended before %s", callback)

    # --- for operators ---------------------------------------------------------------------------------------------
    def statistics(self) -> dict[str, int]:
        """Counters by name; they only grow, except those named ``…_waiting`` and ``…_pending``."""
        counters = self._driver.statistics()
        if self._recorder is not None:
            counters.update({f"outbox_{name}": value for name, value in self._recorder.outbox.statistics().items()})
            counters["outbox_not_stored"] = self._recorder.not_stored
            if self._recorder.uplink is not None:
                counters.update({f"uplink_{name}": value for name, value in self._recorder.uplink.statistics().items()})
        if self._sensing is not None:
            counters["sensor_samples"] = self._sensing.samples
            counters["sensor_samples_without_position"] = self._sensing.without_position
            counters["sensor_inferences_skipped"] = self._sensing.skipped_inferences
        if self._local is not None:
            counters.update({f"local_{name}": value for name, value in self._local.statistics().items()})
        return counters

    def drops(self) -> list[tuple[tuple[str, str, str], int]]:
        """((peer, key, reason), count) of every reading or frame dropped."""
        return self._driver.look(lambda engine, _: list(engine.drops.items())) + (
            [] if self._local is None else self._local.drops()
        )

    def link_failures(self) -> list[FailedLink]:
        """With whom no link came about lately, and why; the last one last."""
        return self._driver.link_failures()

    @property
    def uplink_state(self) -> str:
        """How it stands with the relay: a word, and why when it is not a good one; empty without a relay."""
        uplink = self._recorder.uplink if self._recorder is not None else None
        return "" if uplink is None else f"{uplink.state.value} {uplink.detail}".strip()


_OPENED = frozenset((
    "_compute", "_driver", "_loop", "_notary", "_spread", "certificate_ends", "incarnation", "mesh", "role",
))  # fmt: skip
"""What a node has only once it was opened."""


def _settle(future: "asyncio.Future[Answered]", answer: Answered) -> None:
    if not future.done():
        future.set_result(answer)


def open(config: NodeConfig | Path | str) -> Node:  # noqa: A001 - ``meshnode.open`` reads as it should
    """A node, running inside ``async with``. ``config``: a TOML file, or a ``NodeConfig``.

    :raises ConfigError: at once, when the file is wrong. Entering raises ``IdentityError``, ``ModelInvalid``,
        ``StorageError`` or ``TransportError``, each with the way out.
    """
    if isinstance(config, NodeConfig):
        return Node(config, Path.cwd())
    path = Path(config)
    return Node(load(path), path.parent)
