"""Opens a node from its configuration: what is opened, in which order, and undone in the reverse order."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from meshnode.backoff import listen_now_or_later
from meshnode.config.sections import NodeConfig
from meshnode.discovery.running import AdvertListener, RunningDiscovery
from meshnode.driver import Driver
from meshnode.identity import NodeIdentity, inspect, load_identity
from meshnode.identity.clock_watch import ClockWatch
from meshnode.identity.renewal import Renewal, Use
from meshnode.identity.reservation import Reservation
from meshnode.identity.state import StateFolder
from meshnode.links.interfaces import EVERY_INTERFACE, HostAddress, host_addresses
from meshnode.links.transport import Address, CredentialFiles, Transport
from meshnode.loading import load, parts_of
from meshnode.node import Node
from meshnode.part import Part
from meshnode.running import RunningPart
from meshnode.waiting import wait_for_clock
from protocols.access import LINK_ROLES
from protocols.base.effects import Event
from protocols.base.errors import ClockImplausible, ConfigError
from protocols.base.ids import NodeId, PeerIdentity

_SWITCH_INTERVAL_S: Final = 0.0002
"""The interpreter's switch interval, which holds for the whole process. A thread of the application that only computes
holds the interpreter this long before a thread with a reading gets it. Measured one way between two processes that both
have such a thread, the median is 5.3 ms at Python's default of 5 ms, 0.66 ms at 0.5 ms and 0.25 ms at 0.1 ms; but at
0.1 ms publishing in a loop lost a sixth of its rate."""

EventListener = Callable[[Event], None]


class ConfiguredNode:
    """A node that is not open. ``async with`` opens it and gives the running :class:`Node`."""

    def __init__(
        self, config: NodeConfig, folder: Path, parts: Sequence[Part], driver: Callable[..., Driver] = Driver,
        *, wait_for_clock: bool = False,
    ) -> None:  # fmt: skip
        """Relative paths in options start at ``folder``. ``parts``: all of them, in the order in which they open.
        ``wait_for_clock``: see :func:`open`."""
        self.config = config
        self.id = NodeId(config.node.id)
        self._folder, self._parts, self._driver = folder, tuple(parts), driver
        self._wait_for_clock = wait_for_clock
        self._listeners: list[EventListener] = []
        self._advert_listeners: list[AdvertListener] = []
        self._closing = AsyncExitStack()

    def on_event(self, listener: EventListener) -> None:
        """Like :meth:`Node.on_event`, but from the first event on."""
        self._listeners.append(listener)

    def on_advert(self, listener: AdvertListener) -> None:
        """Call ``listener`` with the id in every mDNS advert of another node, on a thread of discovery; it must not
        block. Nothing has proven the id yet."""
        self._advert_listeners.append(listener)

    async def __aenter__(self) -> Node:
        """:raises IdentityError, StorageError, ConfigError: each says what to do."""
        self._closing = AsyncExitStack()
        try:
            return await self._open(self._closing)
        except BaseException:
            await self._closing.aclose()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    async def _open(self, closing: AsyncExitStack) -> Node:
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        config = self.config
        try:
            identity = self._identify()
        except ClockImplausible as error:
            if not self._wait_for_clock:
                raise
            identity = await wait_for_clock(config, self._identify, error)
        state = StateFolder(config.node.state_dir)
        closing.callback(state.close)
        node = Node(
            config, self._folder, identity, state.next_incarnation(), self._parts, self._driver, closing
        )  # fmt: skip
        closing.callback(node.end)
        for listener in self._listeners:
            node.on_event(listener)
        for advert_listener in self._advert_listeners:
            node.part(RunningDiscovery).on_advert(advert_listener)
        for part in node.parts:
            await part.prepare(closing)
        transport = self._transport(node)
        closing.push_async_callback(asyncio.to_thread, transport.close)
        closing.push_async_callback(asyncio.to_thread, node.driver.close, "leaving")
        # before there is any link: what changes from now on may break one
        node.addresses.listen(_Redialling(node, await asyncio.to_thread(host_addresses)))
        await self._listen(node, transport, closing)
        for part in node.parts:
            await part.join(closing)
        for watch in (
            _renewal_of(node, transport), Reservation(state, node.next_sequence, node.troubles),
            ClockWatch(identity.not_before, lambda: node.certificate_ends, node.troubles), node.addresses,
        ):  # fmt: skip
            task = asyncio.create_task(watch.run(), name=type(watch).__name__.lower())
            closing.callback(task.cancel)
        dialling = asyncio.create_task(self._dial_seeds(node), name="seeds")
        closing.callback(dialling.cancel)
        # After joining: loading takes seconds, and hazards of neighbours need not wait for it.
        for part in node.parts:
            await part.serve(closing)
        closing.callback(node.end_streams)
        return node

    async def _listen(self, node: Node, transport: Transport, closing: AsyncExitStack) -> None:
        """Open the inbox, now or once its address can be had: it may belong to an interface that is not there yet.

        Until then no seed is dialled and the node is not announced, because a neighbour could not dial back. Everything
        else works.
        """
        listen = self.config.listen

        async def attempt() -> None:
            node.port = await asyncio.to_thread(node.driver.start, transport, listen.host, listen.port)
            node.listens.set()

        waiting = await listen_now_or_later(attempt, "inbox", node.troubles, essential=True)
        if waiting is not None:
            closing.callback(waiting.cancel)

    async def _dial_seeds(self, node: Node) -> None:
        await node.listens.wait()
        for address in self.config.discovery.seeds:
            _hint(node, f"seed {address}", None, (address,))

    def _identify(self) -> NodeIdentity:
        files = self.config.identity
        try:
            identity = load_identity(files.certificate, files.key, files.authority)
        except ClockImplausible:
            self._check_holder(inspect(files.certificate, files.key, files.authority).identity)
            raise
        self._check_holder(identity.peer)
        return identity

    def _check_holder(self, holder: PeerIdentity | None) -> None:
        certificate = self.config.identity.certificate
        if holder is not None and holder.node != self.id:
            raise ConfigError(
                f"[node] id is {self.id!r}, but {certificate} belongs to {holder.node!r}: "
                "use its id, or issue a certificate for this one"
            )
        if holder is not None and holder.role not in LINK_ROLES:
            raise ConfigError(f"{certificate} has the role {holder.role.value!r}, which a node can't have")

    def _transport(self, node: Node) -> Transport:
        credentials, listen = self.config.identity.credentials, self.config.listen
        if listen.link_engine == "express":
            from meshnode.links.express.engine import open_express

            return open_express(credentials, node.driver, node.mesh, listen.spin_us * 1_000, listen.priority)
        from meshnode.links.nng.library import open_transport  # libnng takes 0.1 s to load

        return open_transport(credentials, node.driver, node.mesh)


class _Redialling:
    """Has the engine dial again at once when the network of this host has changed. A listener of ``AddressWatch``."""

    def __init__(self, node: Node, held: Sequence[HostAddress]) -> None:
        """``held``: the addresses that this host has so far."""
        self._node, self._held = node, held

    def __call__(self, held: Sequence[HostAddress], interrupted: frozenset[int]) -> bool:
        before, self._held = self._held, held
        away = not interrupted.isdisjoint({EVERY_INTERFACE, *(entry.index for entry in held)})
        if away or set(held) != set(before):
            self._node.driver.act(lambda engine, now: engine.membership.network_changed(now))
        return True


def _hint(node: Node, name: str, other: NodeId | None, addresses: tuple[Address, ...]) -> None:
    """Tell the engine that a node may be at one of ``addresses``."""
    at = tuple((address.host, address.port) for address in addresses)
    node.driver.act(lambda engine, now: engine.membership.hint(name, other, at, now))


def _renewal_of(node: Node, transport: Transport) -> Renewal:
    def links(credentials: CredentialFiles, identity: NodeIdentity) -> None:
        transport.renew(credentials)
        node.certificate_ends = identity.not_after

    def part_of(part: RunningPart) -> Use:
        return lambda credentials, identity: part.renewed(credentials, identity.not_after)

    return Renewal(node.identity, links, [part_of(part) for part in node.parts], node.troubles)


def open(  # noqa: A001 - ``meshnode.open`` reads as it should
    config: NodeConfig | Path | str, parts: Sequence[Part] = (), *, wait_for_clock: bool = False
) -> ConfiguredNode:
    """A node that runs inside ``async with``. ``config``: a TOML file, or a ``NodeConfig``. ``parts``: capabilities on
    top of those that every node has; see :mod:`meshnode.part`.

    ``wait_for_clock``: whether entering waits while the clock shows a time at which the certificate can't be used, as
    ``meshnode run`` does, or raises ``ClockImplausible``, a kind of ``IdentityError``.

    :raises ConfigError: at once, when the file is wrong. Entering raises ``IdentityError`` or
        ``StorageError``; each says what to do. An address that can't be had is a trouble, and waited for.
    """
    if isinstance(config, NodeConfig):
        return ConfiguredNode(config, Path.cwd(), parts_of(config, parts), wait_for_clock=wait_for_clock)
    path = Path(config)
    loaded = load(path, parts)
    return ConfiguredNode(loaded, path.parent, parts_of(loaded, parts), wait_for_clock=wait_for_clock)
