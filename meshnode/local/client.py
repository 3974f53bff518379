"""The Python API of a node in another process of this computer.

    async with meshnode.connect("vehicle.toml") as node:
        node.publish("veh/veh-1/speed", 13.9, unit="m/s", sensor="wheel")
        async for reading in node.subscribe("veh/*/hazard"):
            ...

Methods and errors are those of :class:`meshnode.node.Node`, except where a docstring says otherwise. Importing this
module is cheap: it loads neither the links nor ONNX Runtime.
"""

import asyncio
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, assert_never

from msgspec import Struct

from meshnode.asking.question import RelayAnswer, plain_relay_question, relay_answer_of_untrusted
from meshnode.history.query import HistoryPage, Instant, page_of_untrusted, plain_question, sought
from meshnode.local.deliveries import Deliveries, Wanted
from meshnode.local.inferring import ConnectedInference
from meshnode.local.outgoing import Outgoing
from meshnode.local.publisher import ConnectedPublisher
from meshnode.local.session import Session
from meshnode.readings.publishing import Publishing
from meshnode.readings.subscribing import ReadingCallback, Subscribing
from meshnode.readings.subscriptions import Subscription
from meshnode.typed import prepared
from protocols.access import AccessTable
from protocols.base import limits
from protocols.base.effects import Event
from protocols.base.errors import (
    BoundExceeded,
    ConfigError,
    ContextMissing,
    InferenceError,
    LocalProtocolError,
    MeshError,
    RemoteProtocolError,
    TransportError,
)
from protocols.base.ids import Incarnation, NodeId, Role, UtcNs
from protocols.local import (
    DROPS,
    FIRST_SUBJECTS,
    MODELS,
    PEERS,
    POSITION,
    SOCKET_VARIABLE,
    STATISTICS,
    Ask,
    Closing,
    Done,
    Fallen,
    Flush,
    Happened,
    Inferred,
    LocalNodeFrame,
    Locate,
    Missed,
    ModelView,
    Parcels,
    Refused,
    Subscribe,
    Told,
    Unsubscribe,
    Welcome,
    error_named,
    event_kind,
    told,
)
from protocols.peers import PeerView
from protocols.readings.events import DeadlineMissed
from protocols.readings.publication import Publication
from protocols.readings.quality import Quality
from protocols.wire.readings import Position, check_position

if TYPE_CHECKING:
    from meshnode.config.sections import NodeConfig

_log = logging.getLogger(__name__)


class NodeAway(Struct, frozen=True):
    """The connection to the node is gone: it ended, was killed, or turned this application away."""

    reason: str


class NodeBack(Struct, frozen=True):
    """The node answers again. Subscriptions are renewed, and readings that waited are being sent."""

    incarnation: Incarnation
    """A larger one than before: the node was restarted."""


LocalEvent = Event | NodeAway | NodeBack


class ConnectedNode(Publishing[ConnectedPublisher], Subscribing, ConnectedInference):
    """A node in another process. Made by :func:`connect`; methods raise ``LocalProtocolError`` outside ``async with``.

    Unlike :class:`meshnode.node.Node` it has no ``config``, ``port``, ``http_port``, ``grpc_port`` and
    ``certificate_ends``, which concern only the node itself. When the node is restarted it reconnects, with its
    subscriptions, and reports that by the events :class:`NodeAway` and :class:`NodeBack`.

    A put hands the reading over and does not wait until it is published; see :meth:`ConnectedPublisher.put`.
    ``subscribe`` waits for the node's answer, so it raises the same errors, and ``TransportError`` when the node is
    away. A callback runs on this application's receiving thread and holds up only this application; when it is too
    slow, the node drops the oldest readings of the lowest priority and ``dropped`` says how many. After a restart of
    the node a subscription goes on, and readings that it had before do not come again.
    """

    role: Role
    mesh: str
    incarnation: Incarnation

    def __init__(self, path: Path, name: str) -> None:
        super().__init__()
        ConnectedInference.__init__(self)
        self.session = Session(path, name, self._received, self._back, self._gone)
        self.outgoing: Outgoing = self.session.outgoing
        self.access = AccessTable(())
        self._closed = True
        self._puts = itertools.count(1)
        self._position_known = False
        self._deliveries = Deliveries()
        self._flushes: dict[int, asyncio.Future[None]] = {}
        self._refused: dict[str, MeshError] = {}
        self._listeners: list[Callable[[LocalEvent], None]] = []
        self._changed = asyncio.Event()
        self._counters = {"puts_refused": 0, "reconnected": 0}

    # --- life ------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        """:raises TransportError: when no node answers at the socket; says why and the way out."""
        self.loop = asyncio.get_running_loop()
        self._welcomed(await asyncio.to_thread(self.session.start))
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what waits, for at most half a second, and disconnect. The node goes on. Idempotent."""
        self._closed = True
        self.streams.end(InferenceError("the application closed its connection while a stream was being read"))
        await asyncio.to_thread(self.session.close)
        self._publishers.clear()
        for wanted in list(self._deliveries.wanted.values()):
            wanted.handle.close()
        self._fail_all("the application closed its connection")

    def require_open(self) -> None:
        """:raises LocalProtocolError: outside ``async with``."""
        if self._closed:
            raise LocalProtocolError(
                f"not connected to the node at {self.session.path}: use it inside 'async with meshnode.connect(…) as "
                "node:'"
            )

    def _welcomed(self, welcome: Welcome) -> None:
        self.id, self.role, self.mesh = NodeId(welcome.node), welcome.role, welcome.mesh
        self.incarnation = Incarnation(welcome.incarnation)
        self.access, self._minor = AccessTable(welcome.rules), welcome.minor
        self._position_known = False

    def _gone(self, reason: str) -> None:
        _log.warning("the node %s is away: %s", self.id, reason)
        self._deliveries.node_went()
        self._soon(self._fail_all, reason)
        self._tell(NodeAway(reason))

    def _back(self, welcome: Welcome) -> None:
        if welcome.node != self.id:
            _log.error("at %s there is now the node %s instead of %s", self.session.path, welcome.node, self.id)
        self._welcomed(welcome)
        for wanted in list(self._deliveries.wanted.values()):
            self.session.say(wanted.frame)
        self._counters["reconnected"] += 1
        _log.warning("the node %s is back, incarnation %d", self.id, self.incarnation)
        self._tell(NodeBack(self.incarnation))

    def _fail_all(self, reason: str) -> None:
        flushes, self._flushes = self._flushes, {}
        self._fail_answers(f"the node {self.id} was lost before it answered: {reason}")
        for flush in flushes.values():
            if not flush.done():
                flush.set_exception(TransportError(f"the node {self.id} was lost before it confirmed: {reason}"))

    # --- readings --------------------------------------------------------------------------------------------------
    def _publisher_of(self, publication: Publication) -> ConnectedPublisher:
        return ConnectedPublisher(self, publication)

    async def flushed(self, timeout_s: float = 10.0, key: str | None = None) -> None:
        """Wait until the node has published what this application put so far; errors as
        :meth:`ConnectedPublisher.flushed`, of ``key`` or of any."""
        self.require_open()
        number = self.session.number()
        flush: asyncio.Future[None] = self.loop.create_future()
        self._flushes[number] = flush
        try:
            async with asyncio.timeout(timeout_s):
                self.session.say(Flush(number), last=True)
                await flush
        finally:
            self._flushes.pop(number, None)
        if key is None:
            refused, self._refused = self._refused, {}
            if refused:
                raise next(iter(refused.values()))
        elif (refusal := self._refused.pop(key, None)) is not None:
            raise refusal

    def next_put(self) -> int:
        """The number of a put."""
        return next(self._puts)

    def require_position(self, key: str) -> None:
        """Ask whether the node knows where it is, until it does. :raises ContextMissing: when it does not."""
        if self._position_known:
            return
        try:
            self._position_known = self.position is not None
        except TransportError:
            return  # away: the reading waits, and the node that comes back may know
        if not self._position_known:
            raise ContextMissing(
                f"a reading on {key!r} has no 'where': a value without its context is of no use to others. "
                "Set [node] position of the node, set node.position here, or pass where="
            )

    def _subscribe(
        self, expression: str, quality: Quality, subscription: Subscription, callback: ReadingCallback
    ) -> Callable[[], None]:
        number, wanted = self.session.number(), self._deliveries.wanted
        frame = Subscribe(
            number, expression, quality.deadline_ns // limits.MS, quality.min_interval_ns // 1_000, quality.conflate,
            quality.history, quality.hops, quality.own, quality.every,
        )  # fmt: skip
        wanted[number] = Wanted(frame, subscription, callback)
        try:
            self.session.ask(number, frame)
        except BaseException:
            wanted.pop(number, None)
            raise

        def ended() -> None:
            if wanted.pop(number, None) is not None and not self._closed:
                try:
                    self.session.say(Unsubscribe(number))
                except (BoundExceeded, TransportError) as error:
                    _log.debug("nothing to unsubscribe at the node: %s", error)

        return ended

    # --- who is there, and for operators: each asks the node and waits, normally well below a millisecond -----------
    def ask(self, subject: str, argument: Any = None) -> Any:
        """As :meth:`meshnode.node.Node.ask`; the answer comes as plain data.

        :raises LocalProtocolError: no part of the node answers that; or whatever the part raises.
        :raises TransportError: when the node is away.
        """
        self.require_open()
        if self._minor < 1 and subject not in FIRST_SUBJECTS:
            raise LocalProtocolError(
                f"the node {self.id} is of an older version, which answers only {', '.join(sorted(FIRST_SUBJECTS))}: "
                f"update it to ask for {subject[:60]!r}"
            )
        number = self.session.number()
        answer = self.session.ask(number, Ask(number, subject, argument))
        if type(answer) is not Told:
            raise RemoteProtocolError(f"the node answered {subject!r} with {type(answer).__name__}: update the older")
        return answer.content

    async def history(
        self, expression: str = "**", *, since: Instant | None = None, until: Instant | None = None,
        origin: str | None = None, box: Sequence[float] | None = None, limit: int = 100, newest_first: bool = True,
        cursor: str | None = None,
    ) -> HistoryPage:  # fmt: skip
        """As :meth:`meshnode.node.Node.history`, of keys that the table of access lets the node subscribe to.

        :raises TransportError: when the node is away.
        """
        query = sought(
            expression, since=since, until=until, origin=origin, box=box, limit=limit, newest_first=newest_first,
            cursor=cursor, now=UtcNs(time.time_ns()),
        )  # fmt: skip
        return page_of_untrusted(await asyncio.to_thread(self.ask, "history", plain_question(query)))

    async def query(
        self, expression: str, *, newest: bool = False, since: Instant | None = None,
        box: Sequence[float] | None = None, near: Sequence[float] | None = None, radius_m: float | None = None,
        limit: int = limits.MAX_TOLD_RECORDS, cursor: str | None = None,
    ) -> RelayAnswer:  # fmt: skip
        """As :meth:`meshnode.node.Node.query`. :raises TransportError: when the node or the relay is away."""
        asked = plain_relay_question(
            expression, newest, since, box, near, radius_m, limit, cursor
        )  # fmt: skip
        return relay_answer_of_untrusted(await asyncio.to_thread(self.ask, "query", asked))

    @property
    def models(self) -> dict[str, ModelView]:
        """Models loaded in the node, by name: their digest and signature. :raises TransportError: the node is away."""
        return {view.name: view for view in told(self.ask("models"), MODELS)}

    @property
    def position(self) -> Position | None:
        """Where the node is now; an application that knows better (a GNSS receiver's) sets it.

        :raises TransportError: when the node is away.
        """
        position: Position | None = told(self.ask("position"), POSITION)  # type: ignore[arg-type]  # a union
        return position

    @position.setter
    def position(self, position: Position | None) -> None:
        self.require_open()
        if position is not None:
            check_position(position)
        self.session.say(Locate(position))
        self._position_known = position is not None

    @property
    def uplink_state(self) -> str:
        """As :attr:`meshnode.node.Node.uplink_state`. :raises TransportError: when the node is away."""
        return told(self.ask("uplink"), str)

    def peers(self) -> list[PeerView]:
        """Every neighbour of the node, as it sees them. :raises TransportError: when the node is away."""
        return list(told(self.ask("peers"), PEERS))

    async def wait_for_peers(self, count: int, timeout_s: float = 10.0) -> list[PeerView]:
        """Wait until the node has met at least ``count`` neighbours that are alive.

        :raises TimeoutError: when they are not in time. :raises TransportError: when the node is away.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                self._changed.clear()
                met = [peer for peer in self.peers() if peer.met and peer.state.value == "alive"]
                if len(met) >= count:
                    return met
                await self._changed.wait()

    def on_event(self, listener: Callable[[LocalEvent], None]) -> None:
        """Call ``listener`` for every event of the node's neighbourhood, for missed deadlines of own subscriptions, and
        for :class:`NodeAway` and :class:`NodeBack`, on the receiving thread. ``Answered`` is not reported, because
        it would show inferences of other applications. An application that is too slow for its readings may miss
        events, and should ask ``peers()``.
        """
        self._listeners.append(listener)

    def statistics(self) -> dict[str, int]:
        """Counters of this connection under ``application_…`` and, unless the node is away, those of the node."""
        try:
            counters = told(self.ask("statistics"), STATISTICS)
        except TransportError:
            counters = {}
        session = self.session
        own = {
            **self._counters,
            "callbacks_failed": self._deliveries.callbacks_failed,
            "frames_unknown": session.frames_unknown,
            "frames_malformed": session.frames_malformed + self._deliveries.malformed,
            "frames_put_off_too_long": session.backlog_dropped,
            "readings_waiting": session.outgoing.waiting_readings,
        }
        counters.update({f"application_{name}": value for name, value in own.items()})
        return counters

    def drops(self) -> list[tuple[tuple[str, str, str], int]]:
        """((peer, key, reason), count) of the node's drops. The peer is empty for readings put here that the node did
        not take in time; while the node is away, only those are listed."""
        try:
            drops = told(self.ask("drops"), DROPS)
        except TransportError:
            drops = []
        with self.session.outgoing.lock:
            return drops + list(self.session.drops.items())

    # --- the receiving thread --------------------------------------------------------------------------------------
    def _received(self, frame: LocalNodeFrame) -> None:
        match frame:
            case Parcels():
                self._deliveries.deliver(frame)
            case Inferred():
                self._soon(_settle, self._answers.get(frame.request), frame)
            case Refused():
                self._put_was_refused(frame)
            case Happened():
                kind = event_kind(frame)
                if kind is not None:
                    self._tell(told(frame.fields, prepared(kind)))
            case Missed():
                if self._deliveries.missed(frame.subscription):
                    self._tell(DeadlineMissed(frame.subscription, frame.origin, frame.key))
            case Fallen():
                self._deliveries.fell(frame.subscription, frame.dropped)
            case Done():  # no thread waits for it: it answers a flush, or a subscription made again
                flush = self._flushes.get(frame.question)
                if flush is not None:
                    self._soon(_settle, flush, None)
                elif frame.error:
                    self._deliveries.refused(frame.question, f"{frame.error}: {frame.detail}")
            case Told() | Welcome() | Closing():  # an answer that came too late; the others belong to the session
                pass
            case _:
                assert_never(frame)

    def _put_was_refused(self, frame: Refused) -> None:
        self._counters["puts_refused"] += 1
        error = error_named(frame.error, frame.detail)
        if len(self._refused) < limits.MAX_CACHED_KEYS:
            self._refused.setdefault(frame.key, error)
        count = self._counters["puts_refused"]
        if count & (count - 1) == 0:  # 1, 2, 4, 8 …
            _log.warning("the node refused a reading on %s: %s (%d so far)", frame.key, error, count)

    def _tell(self, event: LocalEvent) -> None:
        for listener in list(self._listeners):
            self._deliveries.call(listener, event)
        self._soon(self._changed.set)

    def _soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            _log.debug("the event loop has ended before %s", callback)


def _settle(future: "asyncio.Future[Any] | None", value: object) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def connect(node: "NodeConfig | Path | str | None" = None, name: str | None = None) -> ConnectedNode:
    """A node that runs in another process of this computer, connected inside ``async with``.

    ``node``: its TOML file, its ``NodeConfig``, or the path of its socket; None: the node that has started this program
    as one of its applications. ``name``: the application's name in the node's logs; by default that of the program.

    :raises ConfigError: at once, when the file is wrong, or no node has started this program. Entering raises
        ``TransportError`` with the way out.
    """
    if name is None:
        name = Path(sys.argv[0]).name or "python"
    if node is None:
        node = os.environ.get(SOCKET_VARIABLE)
        if node is None:
            raise ConfigError(
                f"no node has started this program, since {SOCKET_VARIABLE} is not set: name its configuration "
                "file or its socket"
            )
    if not isinstance(node, Path | str):
        from meshnode.local.section import socket_of

        return ConnectedNode(socket_of(node), name[: limits.MAX_TEXT_CHARS])
    path = Path(node)
    if path.suffix == ".toml" or path.is_file():
        from meshnode.local.section import load_local_socket

        path = load_local_socket(path)
    return ConnectedNode(path, name[: limits.MAX_TEXT_CHARS])
