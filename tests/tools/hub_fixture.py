"""A local network of the test's own: network namespaces with one TAP each, and a hub between them.

Nothing of it has a name, so nothing is left behind. Hardware addresses are learnt by ARP, as on a real network. The
address of a host may change while programs in it run, as when an interface gets another one by DHCP.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from sims.emulator.namespaces import INTERFACE, Network, address_of, open_network

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_FRAME_BYTES = 2_048


def enter(namespace: int) -> None:
    """Put the calling thread, and those that it starts, into a network namespace."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace can't be entered")


class Hub:
    """Some hosts on one wire. As a context it runs, and takes everything away at its end."""

    def __init__(self, hosts: int) -> None:
        self.hosts: list[Network] = []
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        for host in range(hosts):
            self.hosts.append(open_network(host, 0))

    def address(self, host: int) -> str:
        """The address that a host has at first."""
        return address_of(host)

    def within(self, host: int, task: Callable[[], T]) -> T:
        """Run ``task`` on a thread in the namespace of a host."""
        results: list[T] = []

        def run() -> None:
            enter(self.hosts[host].namespace)
            results.append(task())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return results[0]

    def move(self, host: int, address: str) -> None:
        """Give the interface of a host another address. The one that it had is gone from then on."""

        def change() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                for request, text in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.0.0")):
                    value = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
                    fcntl.ioctl(control.fileno(), request, struct.pack("16s24s", INTERFACE.encode(), value))

        self.within(host, change)

    def _run(self) -> None:
        taps = [host.tap for host in self.hosts]
        poll = select.poll()
        for descriptor in (*taps, self._stopped.fileno()):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._stopped.fileno():
                    return
                try:
                    frame = os.read(descriptor, _FRAME_BYTES)
                except OSError:
                    continue
                for other in taps:
                    if other != descriptor:
                        try:
                            os.write(other, frame)
                        except OSError:
                            continue  # its queue is full, as on a real wire

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join(30)
        self._stopped.close()
        for host in self.hosts:
            host.close()


def is_possible() -> bool:
    """Whether this user may make such a network."""
    return sys.platform == "linux" and os.geteuid() == 0 and Path("/dev/net/tun").exists()
