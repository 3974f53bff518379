"""Probes of the host and the network. Each has a time limit and leaves nothing behind."""

import ctypes
import secrets
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass
from typing import Final

import psutil

from meshnode.identity import identity_from_untrusted_names
from meshnode.links.names import connect, look_up_within
from meshnode.links.transport import Address, CredentialFiles
from protocols.base.errors import InvalidName
from protocols.base.ids import SERVER_NAME, PeerIdentity

MDNS_GROUP: Final = "224.0.0.251"
MDNS_PORT: Final = 5353
PROBE_S: Final = 1.0
CONNECT_S: Final = 3.0
_TIME_ERROR: Final = 5
"""What ``adjtimex`` returns while nothing synchronises the clock."""


class ProbeFailed(Exception):
    """A probe failed; the message says what happened and what to do."""

    def __init__(self, message: str, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent
        """Whether nobody answered, as opposed to somebody else."""


# --- clock -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class KernelClock:
    """What the kernel knows about the system clock."""

    synchronised: bool
    error_ms: float
    """The kernel's estimate of the clock's error."""


class _Timex(ctypes.Structure):
    """``struct timex`` of Linux on 64 bits; see adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_byte * 256),
    )  # fmt: skip


def kernel_clock() -> KernelClock | None:
    """Read the state of the clock; None where the system can't say."""
    if not sys.platform.startswith("linux"):
        return None
    timex = _Timex()  # modes 0: nothing is changed
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else KernelClock(state != _TIME_ERROR, timex.esterror / 1_000)


# --- multicast -------------------------------------------------------------------------------------------------------
def interface_addresses(chosen: tuple[str, ...]) -> list[tuple[str, str]]:
    """(interface, IPv4 address) of the interfaces that are up: the chosen ones, or all but loopback."""
    states = psutil.net_if_stats()
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        if name in states and states[name].isup:
            found += [(name, entry.address) for entry in addresses if entry.family == socket.AF_INET]
    if chosen:
        names = {address: name for name, address in found}
        return [(names.get(address, "not of this host"), address) for address in chosen if ":" not in address]
    return [(name, address) for name, address in found if not address.startswith("127.")]


def multicast_returns(address: str) -> str | None:
    """Send a datagram to the group of mDNS (on a port of our own) from ``address`` and wait until it comes back.

    Returns None when it does, else the reason. It proves that this host sends and receives on the interface; a switch
    or access point may still swallow datagrams.
    """
    nonce = secrets.token_bytes(16)
    interface = socket.inet_aton(address)
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("", 0))
            membership = struct.pack("4s4s", socket.inet_aton(MDNS_GROUP), interface)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            receiver.settimeout(PROBE_S)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            sender.sendto(nonce, (MDNS_GROUP, receiver.getsockname()[1]))
            for _ in range(16):  # others may send here too, so the tries are bounded
                if receiver.recv(64) == nonce:
                    return None
    except TimeoutError:
        return f"a multicast datagram did not come back within {PROBE_S:g} s"
    except OSError as error:
        return f"multicast can't be sent ({error.strerror})"
    return "foreign datagrams flood the probe"


def mdns_port_shared() -> str | None:
    """Why UDP port 5353 can't be shared with other programs; None: it can."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(("", MDNS_PORT))
    except OSError as error:
        return error.strerror or str(error)
    return None


# --- TLS -------------------------------------------------------------------------------------------------------------
def tls_identity(address: Address, credentials: CredentialFiles) -> PeerIdentity:
    """Who listens at ``address``: make a TLS handshake as this node would, and hang up.

    :raises ProbeFailed: nobody listens, it is not of the mesh, or it refuses this node.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(credentials.authority)
        context.load_cert_chain(credentials.certificate, credentials.key)
    except (OSError, ssl.SSLError) as error:
        raise ProbeFailed(f"this node's certificate can't be used ({error}): see its own check") from error
    try:
        targets = look_up_within(address.host, address.port, CONNECT_S)
        plain, _ = connect(targets, time.monotonic() + CONNECT_S)
        with plain:
            plain.settimeout(CONNECT_S)
            return _shake_hands(context, plain)
    except ssl.SSLCertVerificationError as error:
        raise ProbeFailed(
            f"it shows a certificate that this mesh does not trust ({error.verify_message}): correct the address, or "
            "issue its certificate with 'meshnode mesh issue'"
        ) from error
    except ssl.SSLError as error:
        raise ProbeFailed(f"the TLS handshake failed ({error.reason or error}): is that the right port?") from error
    except TimeoutError as error:
        raise ProbeFailed(
            f"no answer within {CONNECT_S:g} s: check address, route and firewall", absent=True
        ) from error
    except OSError as error:
        raise ProbeFailed(
            f"can't be reached ({error.strerror or error}): is it running, and is the address right?", absent=True
        ) from error


def _shake_hands(context: ssl.SSLContext, plain: socket.socket) -> PeerIdentity:
    with context.wrap_socket(plain, server_hostname=SERVER_NAME) as link:
        certificate = link.getpeercert() or {}
        names = [str(entry[1]) for entry in certificate.get("subjectAltName", ())]
        try:
            peer = identity_from_untrusted_names(names)
        except InvalidName as error:
            raise ProbeFailed(f"its certificate belongs to no mesh ({error}): correct the address") from error
        try:
            # In TLS 1.3 a refusal of our certificate shows in the first read; a peer of ours sends its greeting.
            if not link.recv(8):
                raise ProbeFailed("it hung up on this node: its log says why")
        except ssl.SSLError as error:
            raise ProbeFailed(
                f"it refuses this node's certificate ({error.reason or error}): issue it again with 'meshnode mesh "
                "issue'"
            ) from error
        return peer
