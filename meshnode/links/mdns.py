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
  for seconds, and did not hear what was announced or asked before they came.

The adverts of a host that vanished stay for 20 minutes or more: adverts say where somebody may be, heartbeats say
whether it is alive.
"""

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import psutil
from zeroconf import (  # type: ignore[attr-defined]  # documented, though not in its __all__
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSQuestionType,
    InterfaceChoice,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
    current_time_millis,
)
from zeroconf import Error as ZeroconfError

from meshnode.links.transport import Address
from protocols.base.errors import InvalidName, RemoteProtocolError, TransportError
from protocols.base.ids import Incarnation, MeshName, NodeId, mesh_name, node_id
from protocols.base.limits import MAX_ADVERT_ADDRESSES, MAX_ADVERTS

_log = logging.getLogger(__name__)

SERVICE_TYPE = "_meshnode._tcp.local."
_MAJOR = b"1"
_MAX_TXT_VALUE_BYTES = 64
_MAX_INCARNATION = 2**63 - 1
_MAX_LABEL_CHARS = 63
_MAX_RESOLVING = 32
"""Instances that are resolved at once. A name without records costs a stranger one packet and us the whole time-out."""
_RESOLVE_MS = 1_500
_START_S = 10.0
ASK_AGAIN_S = 2.0
"""The time between questions, ± 10 %. Vehicles that meet at 2 × 30 m/s are in range of each other for about ten
seconds."""
_MAX_KNOWN_ANSWER_BYTES = 1_300
"""The size of the instances named in a question so that they don't answer: as many as fit into one datagram."""
_RECORD_BYTES = 15
"""The size of a pointer record without the label of its instance: the other names in it are compressed (RFC 1035)."""
_QUERY = 0x0000
_PTR, _IN = 12, 1
"""DNS record type and class (RFC 1035)."""


@dataclass(frozen=True, slots=True)
class Advert:
    """An unproven statement about a node."""

    node: NodeId
    incarnation: Incarnation
    addresses: tuple[Address, ...]


class OtherMesh(RemoteProtocolError):
    """An advert of another mesh, or of another major version, which does not concern us."""


def parse_untrusted_advert(
    properties: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int | None, mesh: MeshName
) -> Advert:
    """An advert from the TXT properties, addresses and port of a service.

    :raises OtherMesh: it is of another mesh or major version.
    :raises RemoteProtocolError: it is not an advert for any other reason.
    """
    if (version := properties.get(b"v")) != _MAJOR:
        raise OtherMesh(f"advert of major version {(version or b'')[:8]!r} ignored: this node speaks {_MAJOR!r}")
    try:
        if (found := mesh_name(_text(properties, b"m"))) != mesh:
            raise OtherMesh(f"advert of mesh {found!r}, this is {mesh!r}: ignored")
        node = node_id(_text(properties, b"n"))
    except InvalidName as error:
        raise RemoteProtocolError(f"advert ignored: {error}") from error
    digits = _text(properties, b"i")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > _MAX_INCARNATION:
        raise RemoteProtocolError(f"advert of {node!r} ignored: incarnation {digits[:24]!r} is not a number below 2^63")
    if port is None or not 0 < port <= 65_535:
        raise RemoteProtocolError(f"advert of {node!r} ignored: it has no valid port")
    hosts = [host for text in addresses[: 4 * MAX_ADVERT_ADDRESSES] if (host := _host(text)) is not None]
    usable = tuple(Address(host, port) for host in dict.fromkeys(hosts))[:MAX_ADVERT_ADDRESSES]
    if not usable:
        raise RemoteProtocolError(f"advert of {node!r} ignored: it has no address that can be dialled")
    return Advert(node, Incarnation(int(digits)), usable)


def _text(properties: Mapping[bytes, bytes | None], key: bytes) -> str:
    value = properties.get(key)
    if value is None:
        raise RemoteProtocolError(f"advert ignored: it has no {key.decode()!r}")
    if len(value) > _MAX_TXT_VALUE_BYTES:
        raise RemoteProtocolError(f"advert ignored: its {key.decode()!r} is longer than {_MAX_TXT_VALUE_BYTES} bytes")
    return value.decode("ascii", "replace")


def _host(text: str) -> str | None:
    """An address that can be dialled. None: no node can listen there, or it is an IPv6 address that needs an
    interface."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if ip.is_multicast or ip.is_unspecified or (ip.version == 6 and ip.is_link_local) or str(ip) == "255.255.255.255":
        return None
    return str(ip)


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

    ``addresses`` are announced for this node (None: those of the interfaces). Both callbacks run on threads of
    the discovery, must be quick, and are not called after ``Discovery.close`` returned. An advert of our own id with
    another incarnation is reported too: somebody else uses our id.

    It blocks for some milliseconds; call it from a thread that runs no event loop.

    :raises TransportError: no interface can be used for multicast.
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
        self._lives: dict[str, tuple[NodeId, Incarnation]] = {}
        self._resolving: set[str] = set()
        self._unresolved: dict[str, None] = {}
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise TransportError("discovery can't start inside an event loop: use asyncio.to_thread")
        held = {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
        if unknown := [address for address in interfaces if address not in held]:
            raise TransportError(f"no interface of this host has the address {unknown[0]!r}: use one of its own")
        choice = list(interfaces) or InterfaceChoice.All
        version = IPVersion.All if any(":" in address for address in interfaces) else IPVersion.V4Only
        try:
            self._zeroconf = Zeroconf(interfaces=choice, ip_version=version)
        except (OSError, RuntimeError, ZeroconfError) as error:
            raise TransportError(
                f"no multicast on {', '.join(interfaces) or 'any interface'} ({error}): "
                "name the addresses of this host's interfaces, or list neighbours as seeds"
            ) from error
        self._service = _service(mesh, node, incarnation, port, announced_addresses(addresses, interfaces))
        self._browser = ServiceBrowser(
            self._zeroconf, SERVICE_TYPE, handlers=[self._changed], question_type=DNSQuestionType.QM
        )
        self._asking = self._on_loop(self._ask_again())

    def announce(self) -> None:
        """Send our advert, and answer questions about it until ``close``. Returns before the repetitions are sent.

        :raises TransportError: it can't be sent.
        """
        try:
            self._on_loop(self._zeroconf.async_register_service(self._service, cooperating_responders=True)).result(
                _START_S
            )
        except (OSError, TimeoutError, ZeroconfError) as error:
            raise TransportError(f"the advert can't be sent ({error}): check multicast on this host") from error

    def statistics(self) -> dict[str, int]:
        """The number of adverts by what became of them."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Say goodbye and stop, which takes up to half a second. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._asking.cancel()
        self._zeroconf.close()

    def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        loop = self._zeroconf.loop
        if loop is None:
            raise TransportError("discovery has ended: open it again")
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    async def _ask_again(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_S * random.uniform(0.9, 1.1))
            try:
                self._ask_who_is_there()
            except Exception:  # noqa: BLE001 -- a network that is down for a while, and whatever a stranger sent
                _log.debug("a question could not be asked", exc_info=True)

    def _ask_who_is_there(self) -> None:
        now_ms = current_time_millis()
        records = self._zeroconf.cache.get_all_by_details(SERVICE_TYPE, _PTR, _IN)
        with self._lock:
            unresolved = set(self._unresolved)
        known = [
            record
            for record in records
            if isinstance(record, DNSPointer) and not record.is_stale(now_ms) and record.alias not in unresolved
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
        try:
            addresses = service.parsed_addresses(IPVersion.All)
            advert = parse_untrusted_advert(service.properties, addresses, service.port, self._mesh)
        except OtherMesh:
            self._count("adverts_foreign")
            return
        except RemoteProtocolError as error:
            _log.debug("%s", error)
            self._count("adverts_invalid")
            return
        life = advert.node, advert.incarnation
        if life == self._own:
            return
        with self._lock:
            self._counts["adverts_received"] += 1
            self._lives.pop(name, None)
            self._lives[name] = life
            if len(self._lives) > MAX_ADVERTS:
                del self._lives[next(iter(self._lives))]
            if self._closed:
                return
        self._on_advert(advert)

    def _removed(self, name: str) -> None:
        with self._lock:
            self._unresolved.pop(name, None)
            life = self._lives.pop(name, None)
            if life is None or self._closed or any(node == life[0] for node, _ in self._lives.values()):
                return
        self._on_withdrawn(life[0])

    def _count(self, counter: str) -> None:
        with self._lock:
            self._counts[counter] += 1


def announced_addresses(addresses: Sequence[str] | None, interfaces: Sequence[str]) -> list[str]:
    """The IP addresses that neighbours are told: ``addresses``, or those of ``interfaces``, or those of this host."""
    if addresses:
        chosen = list(addresses)
    elif interfaces:
        chosen = list(interfaces)
    else:
        chosen = _host_addresses()
    return list(dict.fromkeys(chosen))[:MAX_ADVERT_ADDRESSES]


def _host_addresses() -> list[str]:
    """The IPv4 addresses of the interfaces that are up. Loopback counts only on a host that has nothing else."""
    running = {name for name, state in psutil.net_if_stats().items() if state.isup}
    every = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in running and entry.family == socket.AF_INET
    ]
    return [text for text in every if not ipaddress.ip_address(text).is_loopback] or every


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
        properties={b"v": _MAJOR, b"m": mesh.encode(), b"n": node.encode(), b"i": str(incarnation).encode()},
        server=f"{label}.local.",
    )
