"""Networks without names: one network namespace for each node, with one TAP as its only way out.

A namespace lives as long as a descriptor or a process holds it, and a TAP as long as its descriptor is open. Nothing
has a name under ``/run/netns``, so nothing can be left behind, however the harness ends. Addresses and flags are set by
five ioctls of netdevice(7), so ``ip`` need not be installed.

Hardware addresses are set beforehand and permanently, so ARP never asks. The kernel has one table of neighbours for all
namespaces, with room for 1,024 learnt entries (``net.ipv4.neigh.default.gc_thresh3``). 33 nodes that met filled it, and
the 34th could not even send multicast. Permanent entries do not count.

The descriptors of a node's TAP carry bare Ethernet frames (``IFF_NO_PI``), one for each read or write.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sims.errors import EmulatorError

INTERFACE = "wlan0"
TUN = Path("/dev/net/tun")
STILL_WORKS = "'meshsim run' simulates the same scenario without root, on any system"
NETWORK = "10.78.0.0"
MOST_NODES = 60_000
"""The hosts of the /16, less a few."""

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFHWADDR = 0x8916, 0x891C, 0x8924
_SIOCSARP = 0x8955
_ATF_COM, _ATF_PERM = 0x02, 0x04
_IFF_UP = 0x1
_ARPHRD_ETHER = 1


def address_of(node: int) -> str:
    """The IPv4 address of a node, by its number."""
    return socket.inet_ntoa(struct.pack("!I", struct.unpack("!I", socket.inet_aton(NETWORK))[0] + node + 1))


def hardware_address_of(node: int) -> bytes:
    """The MAC address of a node, by its number: locally administered, unicast."""
    return b"\x02\x00" + struct.pack("!I", node + 1)


def check_possible() -> None:
    """:raises EmulatorError: when this host, or this user, can't emulate; says why and what still works."""
    if sys.platform != "linux":
        raise EmulatorError(
            f"the emulator needs the network namespaces of Linux, this is {sys.platform}; {STILL_WORKS}"
        )
    if os.geteuid() != 0:
        raise EmulatorError(
            f"the emulator makes network namespaces and needs root, this is user {os.geteuid()}: run it with sudo; "
            f"{STILL_WORKS}"
        )
    if not TUN.exists():
        raise EmulatorError(
            f"{TUN} is missing, and the emulated radio needs TAP interfaces: load the module with 'modprobe tun', or "
            f"start the container with '--device {TUN}'; {STILL_WORKS}"
        )


@dataclass(slots=True)
class Network:
    """The network of one node. :meth:`close` closes both descriptors. Only processes that they are passed to inherit
    them."""

    namespace: int
    """The descriptor of the namespace, for setns(2)."""
    tap: int
    """The descriptor of the TAP, non-blocking."""

    def close(self) -> None:
        """Let the network go; the kernel removes what nobody else holds."""
        for descriptor in (self.namespace, self.tap):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def open_network(node: int, nodes: int) -> Network:
    """Make a new namespace with loopback and ``wlan0`` up and addressed, for one of ``nodes`` that all know one
    another.

    :raises EmulatorError: when the kernel refuses; says what.
    """
    with _own_namespace(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _silence_ipv6()
            _up(control, "lo")
            tap = _tap()
            try:
                address, mac = address_of(node), hardware_address_of(node)
                _ioctl(control, _SIOCSIFHWADDR, INTERFACE, struct.pack("=H14s", _ARPHRD_ETHER, mac))
                _ioctl(control, _SIOCSIFADDR, INTERFACE, _internet(address))
                _ioctl(control, _SIOCSIFNETMASK, INTERFACE, _internet("255.255.0.0"))
                _up(control, INTERFACE)
                for other in range(nodes):
                    if other != node:
                        _know(control, other)
            except BaseException:
                os.close(tap)
                raise
        except OSError as error:
            os.close(namespace)
            raise EmulatorError(f"the network of node {node} can't be set up ({error}); {STILL_WORKS}") from error
        except BaseException:
            os.close(namespace)
            raise
    return Network(namespace, tap)


@contextlib.contextmanager
def _own_namespace() -> Iterator[None]:
    """Put the calling thread into a new network namespace, and back. :raises EmulatorError: when it may not."""
    library = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if library.unshare(_CLONE_NEWNET):
            reason = os.strerror(ctypes.get_errno())
            raise EmulatorError(
                f"this process may not make a network namespace ({reason}): a container needs the capability "
                f"SYS_ADMIN, and its kernel room in user.max_net_namespaces; {STILL_WORKS}"
            )
        try:
            yield
        finally:
            if library.setns(home, _CLONE_NEWNET):  # going on would mix up all networks
                raise OSError(ctypes.get_errno(), "no way back to the network of this host")
    finally:
        os.close(home)


def _tap() -> int:
    try:
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        raise EmulatorError(f"{TUN} can't be opened ({error.strerror}); {STILL_WORKS}") from error
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        os.close(tap)
        hint = "it needs the capability NET_ADMIN" if error.errno == errno.EPERM else "see 'dmesg'"
        raise EmulatorError(f"no TAP interface can be made ({error.strerror}): {hint}; {STILL_WORKS}") from error
    return tap


def _silence_ipv6() -> None:
    """Keep router solicitations and listener reports off the air: nodes announce IPv4. It does not matter when this
    fails."""
    for interface in ("all", "default"):
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")


def _ioctl(control: socket.socket, request: int, interface: str, value: bytes) -> bytes:
    """Call an ioctl with a ``struct ifreq``: a name of 16 bytes and a union of 24."""
    return fcntl.ioctl(control.fileno(), request, struct.pack("16s24s", interface.encode(), value))


def _internet(address: str) -> bytes:
    """The bytes of a ``struct sockaddr_in``."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def _up(control: socket.socket, interface: str) -> None:
    flags = struct.unpack_from("=H", _ioctl(control, _SIOCGIFFLAGS, interface, b""), 16)[0]
    _ioctl(control, _SIOCSIFFLAGS, interface, struct.pack("=H", flags | _IFF_UP))


def _know(control: socket.socket, node: int) -> None:
    """Make a neighbour known by a ``struct arpreq``: protocol address, hardware address, flags, netmask, device."""
    hardware = struct.pack("=H14s", _ARPHRD_ETHER, hardware_address_of(node))
    request = struct.pack(
        "16s16si16s16s", _internet(address_of(node)), hardware, _ATF_COM | _ATF_PERM, b"", INTERFACE.encode()
    )
    fcntl.ioctl(control.fileno(), _SIOCSARP, request)
