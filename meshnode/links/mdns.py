"""Discovery on the local network by multicast DNS-SD (RFC 6762, 6763). No other module imports zeroconf.

Invariants:
- everything received is a hint from a stranger: it is bounded, parsed into an ``Advert`` or counted, and nobody
  believes it;
- questions ask for multicast answers, since several nodes of one host share port 5353 and the kernel hands a unicast
  answer to only one of them;
- an instance name holds the incarnation, so it is unique without the 1.2 s of probing that DNS-SD asks for otherwise;
- a goodbye withdraws the life that it names, never a later one;
- for as long as it runs, a node asks every ``ASK_AGAIN_S`` who is there, unless somebody else has just asked the same.
  RFC 6762 (section 5.2) wants the intervals to double, for networks whose hosts come and stay. Vehicles stay in range
  for seconds, and did not hear what was announced or asked before they came;
- it follows the interfaces of the host: an interface that comes, or that was away for a moment, is joined (anew) and
  asked, and nobody counts as known there who was not heard since; what is announced are the addresses of now;
- sockets, groups and addresses change on the loop of zeroconf alone, one change after the other.

The adverts of a host that vanished stay for 20 minutes or more: adverts say where somebody may be, heartbeats say
whether it is alive.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from zeroconf import (  # type: ignore[attr-defined]  # documented, though not in its __all__
    DNSAddress,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSQuestionType,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
    current_time_millis,
)
from zeroconf import Error as ZeroconfError

from meshnode.links.adverts import MAJOR, Advert, OtherMesh, parse_untrusted_advert
from meshnode.links.interfaces import (
    EVERY_INTERFACE,
    HostAddress,
    announced_addresses,
    host_addresses,
    mdns_addresses,
)
from protocols.base.errors import RemoteProtocolError, TransportError
from protocols.base.ids import Incarnation, MeshName, NodeId
from protocols.base.limits import MAX_ADVERTS

_log = logging.getLogger(__name__)

SERVICE_TYPE = "_meshnode._tcp.local."
_MAX_LABEL_CHARS = 63
_MAX_RESOLVING = 32
"""Instances that are resolved at once. A name without records costs a stranger one packet and us the whole time-out."""
_RESOLVE_MS = 1_500
_START_S = 10.0
_CLOSES = 3
"""How often to close the library, which waits three seconds for its tasks: a computer may stall for longer."""
ASK_AGAIN_S = 2.0
"""The time between questions, ± 10 %. Vehicles that meet at 2 × 30 m/s are in range of each other for about ten
seconds."""
_ANNOUNCE_AGAIN_AFTER_S = 2.0, 6.0, 14.0, 30.0, 62.0
"""When the advert is sent again after a change (RFC 6762, section 8.3): a switch may swallow the first half minute of a
new link."""
_MAX_KNOWN_ANSWER_BYTES = 1_300
"""The size of the instances named in a question so that they don't answer: as many as fit into one datagram."""
_RECORD_BYTES = 15
"""The size of a pointer record without the label of its instance: the other names in it are compressed (RFC 1035)."""
_QUERY = 0x0000
_A, _PTR, _AAAA, _IN = 1, 12, 28, 1
"""DNS record types and class (RFC 1035, RFC 3596)."""
_FLUSHED_TTL_S = 1
_GROUP = "224.0.0.251"


@dataclass(frozen=True, slots=True)
class DiscoveryView:
    """What is announced where."""

    interfaces: tuple[HostAddress, ...]
    """Where adverts are sent and heard."""
    addresses: tuple[str, ...]
    """What adverts say."""
    announced_s: float | None
    """The age of the last advert in seconds; None before the first one."""
    heard: tuple[Advert, ...]
    """The newest advert of each other node; nobody has proven them."""


def open_discovery(
    mesh: MeshName,
    node: NodeId,
    incarnation: Incarnation,
    port: int,
    addresses: Sequence[str] | None,
    interfaces: Sequence[str],
    on_advert: Callable[[Advert], None],
    on_withdrawn: Callable[[NodeId], None],
) -> "Discovery":
    """Start to listen for adverts of ``mesh`` on the interfaces with these addresses (none given: all that have IPv4).

    Interfaces and addresses may come later: whoever learns of a change calls ``Discovery.follow``. ``addresses`` are
    announced for this node (None: those of the interfaces). Both callbacks run on threads of
    the discovery, must be quick, and are not called after ``Discovery.close`` returned. An advert of our own id with
    another incarnation is reported too: somebody else uses our id.

    It blocks for some milliseconds; call it from a thread that runs no event loop.

    :raises TransportError: the port of mDNS can't be used.
    """
    return Discovery(mesh, node, incarnation, port, addresses, interfaces, on_advert, on_withdrawn)


class Discovery:
    """A running search, and after ``announce`` an advert of our own. Made by ``open_discovery``."""

    def __init__(
        self,
        mesh: MeshName,
        node: NodeId,
        incarnation: Incarnation,
        port: int,
        addresses: Sequence[str] | None,
        interfaces: Sequence[str],
        on_advert: Callable[[Advert], None],
        on_withdrawn: Callable[[NodeId], None],
    ) -> None:
        self._mesh = mesh
        self._own = node, incarnation
        self._on_advert = on_advert
        self._on_withdrawn = on_withdrawn
        self._lock = threading.Lock()
        self._closed = False
        self._counts = {"adverts_received": 0, "adverts_foreign": 0, "adverts_invalid": 0, "adverts_unresolved": 0}
        self._lives: dict[str, Advert] = {}
        self._resolving: set[str] = set()
        self._unresolved: dict[str, None] = {}
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise TransportError("discovery can't start inside an event loop: use asyncio.to_thread")
        version = IPVersion.All if any(":" in address for address in interfaces) else IPVersion.V4Only
        try:
            self._zeroconf = Zeroconf(interfaces=[], ip_version=version)  # follow() adds them
        except (OSError, RuntimeError, ZeroconfError) as error:
            raise TransportError(
                f"UDP port 5353 can't be used for mDNS ({error}): stop the program that does not share it, or set "
                "[discovery] mdns = false and list neighbours as seeds"
            ) from error
        self._place = mesh, node, incarnation, port
        self._advertise, self._chosen = tuple(addresses or ()), tuple(interfaces)
        self._following = threading.Lock()
        self._joined: dict[str, HostAddress] = {}
        self._service: ServiceInfo | None = None
        self._addresses: tuple[str, ...] = ()
        self._announcing = False
        self._announced_s: float | None = None
        self._again_s: list[float] = []
        self._anew = False
        """Whether a change failed half-way, so that every interface has to be joined again."""
        self._faded: frozenset[str] = frozenset()
        self._known_since_ms = 0.0
        self._browser = ServiceBrowser(
            self._zeroconf, SERVICE_TYPE, handlers=[self._changed], question_type=DNSQuestionType.QM
        )
        self.follow(host_addresses())
        self._asking = self._on_loop(self._ask_again())

    def announce(self) -> None:
        """Send our advert, and answer questions about it until ``close``. Returns before the repetitions are sent.

        :raises TransportError: it can't be sent.
        """
        try:
            self._on_loop(self._announce()).result(_START_S)
        except (OSError, TimeoutError, ZeroconfError) as error:
            raise TransportError(f"the advert can't be sent ({error}): check multicast on this host") from error

    def follow(self, held: Sequence[HostAddress], interrupted: frozenset[int] = frozenset()) -> bool:
        """Work on the interfaces that this host has now, and announce its present addresses. ``interrupted``: indexes
        of interfaces that were away for a moment. Returns whether all of them could be joined; call it again if not.
        It blocks for up to a second when something has changed, and does nothing otherwise."""
        with self._following:
            if self._closed:
                return True
            wanted = {entry.address: entry for entry in mdns_addresses(held, self._chosen)}
            told = tuple(announced_addresses(self._advertise, self._chosen, held))
            following: Future[bool] = self._on_loop(self._follow(wanted, told, interrupted))
            try:
                return following.result(_START_S)
            except (OSError, RuntimeError, TimeoutError, ZeroconfError) as error:
                following.cancel()
                _log.warning("multicast DNS can't follow the interfaces of this host (%r): it tries again", error)
                return False

    def view(self) -> DiscoveryView:
        """What is announced where. Any thread may call it."""
        at_s = self._announced_s
        age_s = None if at_s is None else time.monotonic() - at_s
        with self._lock:
            heard = tuple(self._lives.values())
        return DiscoveryView(tuple(self._joined.values()), self._addresses, age_s, heard)

    def statistics(self) -> dict[str, int]:
        """The number of adverts by what became of them."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Say goodbye and stop, which takes up to half a second. Idempotent."""
        with self._following, self._lock:
            if self._closed:
                return
            self._closed = True
        self._asking.cancel()
        whys: list[str] = []
        while len(whys) < _CLOSES:
            try:
                self._zeroconf.close()
            except (TimeoutError, ZeroconfError) as error:
                whys.append(repr(error))
            else:
                return
        _log.warning("multicast DNS does not end: %s", whys[-1])

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        loop = self._zeroconf.loop
        if loop is None:
            raise TransportError("discovery has ended: open it again")
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    # --- on the loop of zeroconf -----------------------------------------------------------------------------------
    async def _announce(self) -> None:
        self._announcing = True
        if self._service is None:
            self._service = _service(*self._place, self._addresses)
            await self._zeroconf.async_register_service(self._service, cooperating_responders=True)
        else:
            await self._zeroconf.async_update_service(self._service)
        self._announced_now()

    def _announced_now(self) -> None:
        self._announced_s = now_s = time.monotonic()
        self._again_s = [now_s + pause_s for pause_s in _ANNOUNCE_AGAIN_AFTER_S]

    async def _follow(self, wanted: dict[str, HostAddress], told: tuple[str, ...], interrupted: frozenset[int]) -> bool:
        zeroconf = self._zeroconf
        anew, self._anew = self._anew or EVERY_INTERFACE in interrupted, True
        stale = [
            entry
            for address, entry in self._joined.items()
            if anew or wanted.get(address) != entry or entry.index in interrupted
        ]
        for entry in stale:
            del self._joined[entry.address]
            self._leave(entry)
        if stale or anew:
            await zeroconf.async_update_interfaces(list(self._joined))
        moved = told != self._addresses
        if moved:
            self._addresses = told
            if self._service is not None:
                self._service = _service(*self._place, told)
                zeroconf.registry.async_update(self._service)
        fresh = wanted.keys() - self._joined.keys()
        if fresh:
            await self._join(wanted)
        elif moved and self._service is not None:
            await zeroconf.async_update_service(self._service)
        if self._announcing and (fresh or moved):
            self._announced_now()
        if stale or fresh or moved:
            places = [f"{entry.interface} ({address})" for address, entry in self._joined.items()]
            _log.info("mDNS works on %s, announces %s", ", ".join(places) or "nothing", ", ".join(told) or "nothing")
        self._anew = False
        return self._joined.keys() == wanted.keys()

    async def _join(self, wanted: dict[str, HostAddress]) -> None:
        """Open what is wanted and not open yet, announce what is registered there, and ask who is there."""
        self._known_since_ms = current_time_millis()
        self._joined = dict(wanted)  # so that all of them are left if this fails half-way
        joining = asyncio.ensure_future(self._zeroconf.async_update_interfaces(list(wanted)))
        while not joining.done() and not self._open() >= wanted.keys():  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.01)
        self._ask_who_is_there()  # now: joining ends once the last announcement was sent
        await joining
        still_open = self._open()
        self._joined = {address: entry for address, entry in wanted.items() if address in still_open}

    def _open(self) -> set[str]:
        return {sender.interface_key[0] for sender in self._zeroconf.engine.senders}

    def _leave(self, entry: HostAddress) -> None:
        """Leave the group by the number of the interface. zeroconf leaves it by address, which fails for an address
        that another interface has by now, and the kernel allows a socket only twenty groups."""
        if ":" in entry.address:
            return
        request = socket.inet_aton(_GROUP) + struct.pack("=4xi", entry.index)
        senders = {id(sender.transport) for sender in self._zeroconf.engine.senders}
        for reader in self._zeroconf.engine.readers:
            if id(reader.transport) not in senders:
                try:
                    reader.sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, request)
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
                        raise

    async def _ask_again(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_S * random.uniform(0.9, 1.1))
            try:
                self._look_again()
                self._ask_who_is_there()
                self._announce_again()
            except Exception:  # noqa: BLE001 -- a network that is down for a while, and whatever a stranger sent
                _log.debug("a question could not be asked", exc_info=True)

    def _announce_again(self) -> None:
        if self._service is not None and self._again_s and self._again_s[0] <= time.monotonic():
            self._again_s.pop(0)
            self._announced_s = time.monotonic()
            self._zeroconf.async_send(self._zeroconf.generate_service_broadcast(self._service, None))

    def _look_again(self) -> None:
        """Tell of addresses that changed without notice. zeroconf gives none when an address ends, or when it comes
        back before the cache has forgotten it. Whoever has no valid address any more has to tell it again."""
        faded = set()
        with self._lock:
            lives = dict(self._lives)
        for name, told in lives.items():
            service = ServiceInfo(SERVICE_TYPE, name)
            if not service.load_from_cache(self._zeroconf):
                faded.add(name)
                continue
            advert = self._parsed(service)
            with self._lock:
                gone = self._lives.get(name) is not told
            if advert is not None and not gone and set(advert.addresses) != set(told.addresses):
                self._tell(name, advert)
        self._faded = frozenset(faded)

    def _ask_who_is_there(self) -> None:
        now_ms = current_time_millis()
        records = self._zeroconf.cache.get_all_by_details(SERVICE_TYPE, _PTR, _IN)
        with self._lock:
            unknown = self._faded | self._unresolved.keys()
        known = [
            record
            for record in records
            if isinstance(record, DNSPointer)
            and not record.is_stale(now_ms)
            and record.created >= self._known_since_ms
            and record.alias not in unknown
        ]
        question = DNSQuestion(SERVICE_TYPE, _PTR, _IN)
        history = self._zeroconf.question_history
        if history.suppresses(question, now_ms, set(known)):
            return
        history.add_question_at_time(question, now_ms, set(known))
        message = DNSOutgoing(_QUERY)
        message.add_question(question)
        size_bytes = 0
        for record in known:
            size_bytes += _RECORD_BYTES + len(record.alias) - len(SERVICE_TYPE)
            if size_bytes > _MAX_KNOWN_ANSWER_BYTES:
                break
            message.add_answer_at_time(record, now_ms)
        self._zeroconf.async_send(message)

    # --- the browser's thread --------------------------------------------------------------------------------------

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        try:
            if state_change is ServiceStateChange.Removed:
                self._removed(name)
                return
            service = ServiceInfo(service_type, name)
            if service.load_from_cache(zeroconf):
                self._seen(name, service)
            else:
                self._resolve(name, service)
        except Exception:  # noqa: BLE001 -- never into zeroconf's threads, whatever a stranger sent
            _log.exception("an advert could not be handled: it is ignored")
            self._count("adverts_invalid")

    def _resolve(self, name: str, service: ServiceInfo) -> None:
        with self._lock:
            if name in self._resolving or self._closed:
                return
            full = len(self._resolving) >= _MAX_RESOLVING
            if not full:
                self._resolving.add(name)
        if full:
            self._not_resolved(name)
            return
        self._on_loop(self._ask(name, service))

    async def _ask(self, name: str, service: ServiceInfo) -> None:
        try:
            if await service.async_request(self._zeroconf, _RESOLVE_MS, DNSQuestionType.QM):
                self._seen(name, service)
            else:
                self._not_resolved(name)
        except Exception:  # noqa: BLE001 -- never into zeroconf's threads, whatever a stranger sent
            _log.exception("an advert could not be resolved: it is ignored")
            self._not_resolved(name)
        finally:
            with self._lock:
                self._resolving.discard(name)

    def _not_resolved(self, name: str) -> None:
        """Only the name of a node arrived. As long as it is not among the known answers, the node tells all again."""
        with self._lock:
            self._counts["adverts_unresolved"] += 1
            self._unresolved[name] = None
            if len(self._unresolved) > MAX_ADVERTS:
                del self._unresolved[next(iter(self._unresolved))]

    def _seen(self, name: str, service: ServiceInfo) -> None:
        with self._lock:
            self._unresolved.pop(name, None)
        advert = self._parsed(service)
        if advert is not None and (advert.node, advert.incarnation) != self._own:
            self._tell(name, advert)

    def _parsed(self, service: ServiceInfo) -> Advert | None:
        try:
            addresses = self._present(service)
            return parse_untrusted_advert(service.properties, addresses, service.port, self._mesh)
        except OtherMesh:
            self._count("adverts_foreign")
        except RemoteProtocolError as error:
            _log.debug("%s", error)
            self._count("adverts_invalid")
        return None

    def _present(self, service: ServiceInfo) -> list[str]:
        """The addresses of an advert, the newest first. Those that a later advert did not name any more are left out:
        zeroconf gives them one second to live, as RFC 6762 says (section 10.2), but keeps them for up to ten."""
        told = service.parsed_addresses(IPVersion.All)
        records = [
            record
            for kind in (_A, _AAAA)
            for record in self._zeroconf.cache.get_all_by_details(service.server or service.name, kind, _IN)
            if isinstance(record, DNSAddress)
        ]
        flushed = {str(ipaddress.ip_address(record.address)) for record in records if record.ttl <= _FLUSHED_TTL_S}
        return [address for address in told if address.partition("%")[0] not in flushed] or told

    def _tell(self, name: str, advert: Advert) -> None:
        with self._lock:
            self._counts["adverts_received"] += 1
            self._lives.pop(name, None)
            self._lives[name] = advert
            if len(self._lives) > MAX_ADVERTS:
                del self._lives[next(iter(self._lives))]
            if self._closed:
                return
        self._on_advert(advert)

    def _removed(self, name: str) -> None:
        with self._lock:
            self._unresolved.pop(name, None)
            life = self._lives.pop(name, None)
            if life is None or self._closed or any(life.node == other.node for other in self._lives.values()):
                return
        self._on_withdrawn(life.node)

    def _count(self, counter: str) -> None:
        with self._lock:
            self._counts[counter] += 1


def _service(
    mesh: MeshName, node: NodeId, incarnation: Incarnation, port: int, addresses: Sequence[str]
) -> ServiceInfo:
    life = f"-{incarnation:x}"
    label = f"{node[: _MAX_LABEL_CHARS - len(life)]}{life}"
    return ServiceInfo(
        SERVICE_TYPE,
        f"{label}.{SERVICE_TYPE}",
        port=port,
        parsed_addresses=list(addresses),
        properties={b"v": MAJOR, b"m": mesh.encode(), b"n": node.encode(), b"i": str(incarnation).encode()},
        server=f"{label}.local.",
    )
