"""What a capability brings to a running node, and what it finds there.

A running part is made once for each life of a node. It brings the machines of the engine, the performers of their
effects, and all that is opened, counted, asked and served. Each method has a default that brings nothing.

It lives on the event loop of its node, in this order:

    made      the driver does not exist yet; right afterwards it takes what the part brings to the engine
    prepare   nothing listens yet: open files, start threads
    join      the inbox listens and links come about, unless its address is not there yet
    serve     the node is in the mesh: load what takes long, open doors for others

Each of the three steps is taken by all parts, in the order of their list, before the next one is. What has to be undone
is pushed on ``closing``, which undoes it in the opposite order, also when opening fails half-way.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from meshnode.config.sections import NodeConfig
from meshnode.driver import Driver
from meshnode.identity import NodeIdentity
from meshnode.links.interfaces import AddressWatch
from meshnode.links.transport import CredentialFiles, FailedLink
from meshnode.readings.publisher import PublishedWatch, Publisher
from meshnode.readings.publishing import Publishing
from meshnode.readings.subscribing import Subscribing
from meshnode.troubles import Troubles
from protocols.base.effects import Event
from protocols.base.ids import Incarnation, MeshName, NodeId, Role
from protocols.machine import Machine
from protocols.peers import PeerView
from protocols.wire.readings import Position

if TYPE_CHECKING:  # libraries that only some nodes load
    from prometheus_client.core import Metric
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

_P = TypeVar("_P", bound="RunningPart")
DropCount = tuple[tuple[str, str, str], int]
"""((peer, key, reason), count) of readings or frames dropped."""


class Host(Publishing[Publisher], Subscribing):
    """The running node as its parts, and what they serve, see it."""

    config: NodeConfig
    folder: Path
    """The folder of the configuration file; relative paths in options start here."""
    identity: NodeIdentity
    id: NodeId
    role: Role
    mesh: MeshName
    incarnation: Incarnation
    """Grows with every start."""
    position: Position | None
    """Where this node is now; a sensor that knows better sets it."""
    clock_uncertainty_ns: int
    """How well this host's clock is known now; a sensor that knows better sets it."""
    certificate_ends: datetime
    loop: asyncio.AbstractEventLoop
    """The event loop that opened the node."""
    driver: Driver
    """Set once the parts are made."""
    port: int
    """TCP port of the inbox; 0 until it listens."""
    listens: asyncio.Event
    """Set once the inbox listens. Its address may not be there when the node opens."""
    parts: "tuple[RunningPart, ...]"
    addresses: AddressWatch
    """Tells listeners which addresses this host has. It runs from ``serve`` on."""
    troubles: Troubles
    """What does not work now. A part that fails reports it there, so that the rest of the node goes on."""

    def part(self, kind: type[_P]) -> _P:
        """The part of that class. :raises LookupError: when the node has none."""
        for part in self.parts:
            if isinstance(part, kind):
                return part
        raise LookupError(f"this node has no part {kind.__name__}: hand its part over when it is opened")

    @abstractmethod
    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Call ``listener`` for every event from now on, on whichever thread it happens; it must not block."""

    @abstractmethod
    def peers(self) -> list[PeerView]:
        """Every neighbour known, with state, round trip, lanes and offers; dead ones stay for two minutes."""

    @abstractmethod
    def statistics(self) -> dict[str, int]:
        """Counters by name; they only grow, except those that a part declares as gauges."""

    @abstractmethod
    def drops(self) -> list[DropCount]:
        """((peer, key, reason), count) of every reading or frame dropped."""

    @abstractmethod
    def link_failures(self) -> list[FailedLink]:
        """Peers with whom no link could be opened lately, and why; the latest failure last."""

    @abstractmethod
    def ask(self, subject: str, argument: Any = None) -> Any:
        """Ask a part one of its :meth:`RunningPart.questions`. :raises LocalProtocolError: when no part answers it."""

    @abstractmethod
    def begin_asking(self, subject: str, argument: Any = None) -> Any:
        """As :meth:`ask`, but it never waits: for a question that takes long it returns a
        ``concurrent.futures.Future`` of the answer."""


class HttpService(Protocol):
    """What the handlers of all routes of one server share."""

    version: str
    """The version of this software."""
    leaving: bool
    """Whether the node is closing, so that no new work begins."""
    given_up: asyncio.Event
    """Set when a closing node stops waiting for requests under way."""

    def body(self, request: "Request", max_bytes: int) -> AbstractAsyncContextManager[bytes]:
        """The body of a request, within the server's bounds. :raises LocalProtocolError: when it exceeds them."""

    async def readyz(self, request: "Request", /) -> "Response":
        """Whether the node is ready."""


class RunningPart:
    """One capability of a running node. See the module."""

    gauges: ClassVar[frozenset[str]] = frozenset()
    """Names in the node's statistics that go up and down; all others only grow."""

    def __init__(self, host: Host) -> None:
        self.host = host

    # --- to the engine ---------------------------------------------------------------------------------------------
    def machines(self) -> Sequence[Machine]:
        """Its own machines, beside those that every engine has."""
        return ()

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """Functions that perform its machines' effects, by class; called on any thread, they must not block."""
        return {}

    def handlers(self) -> Mapping[type[Event], Callable[[Any], object]]:
        """Functions that handle the events of its machines, by class; called on any thread, they must not block. The
        node logs events that nobody handles."""
        return {}

    def watches_published(self) -> PublishedWatch | None:
        """A function to call with each reading that this node has published, on the thread that published it; it must
        not block. None: there is no such function."""
        return None

    # --- life ------------------------------------------------------------------------------------------------------
    async def prepare(self, closing: AsyncExitStack) -> None:
        """Open files and start threads. Nothing listens yet."""

    async def join(self, closing: AsyncExitStack) -> None:
        """Begin to work with neighbours: the inbox listens, or will."""

    async def serve(self, closing: AsyncExitStack) -> None:
        """Load what takes long, and let others in: the node is in the mesh."""

    def renewed(self, credentials: CredentialFiles, ends: datetime) -> None:
        """Use the node's new certificate. Called on a worker thread. What it raises is a trouble of the node, and it is
        called again until it succeeds. :raises IdentityError: it can't be used."""

    # --- what it tells; any thread ---------------------------------------------------------------------------------
    def statistics(self) -> Mapping[str, int]:
        """Its counters by name; each name begins with the part's."""
        return {}

    def drops(self) -> Iterable[DropCount]:
        """Readings and frames that it dropped."""
        return ()

    def capabilities(self) -> Iterable[str]:
        """What the node can do for others, for its address entry."""
        return ()

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        """What applications may ask (:meth:`Host.ask`), by subject: functions from plain data to plain data, which are
        called on any thread and must not block. One that would take long returns a ``concurrent.futures.Future``."""
        return {}

    # --- over HTTP; on the event loop ------------------------------------------------------------------------------
    def routes(self, service: HttpService) -> "Sequence[BaseRoute]":
        """Its own routes."""
        return ()

    def node_view(self) -> Mapping[str, Any]:
        """What it adds to ``GET /v1/node``."""
        return {}

    def readiness(self) -> Mapping[str, Any]:
        """What it adds to ``GET /readyz`` of a node that is ready."""
        return {}

    def metrics(self) -> "Iterable[Metric]":
        """Metrics beyond its statistics, which are always exposed. Called on a worker thread."""
        return ()
