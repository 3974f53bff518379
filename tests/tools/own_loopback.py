"""A network of a test's own that has nothing but loopback, whose addresses and state the test may change. It takes
root."""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.tools.eventually import eventually

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _SIOCSIFADDR = 0x8914, 0x8916
_IFF_UP = 0x1


def on_own_loopback(task: Callable[[], None], *addresses: str) -> None:
    """Run ``task`` on a thread in a network of its own, whose loopback has these addresses of IPv6 too."""

    def run() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        if library.unshare(_CLONE_NEWNET):
            pytest.skip(f"no network of its own: {os.strerror(ctypes.get_errno())}")
        switch(on=True)
        for address in addresses:
            packed = socket.inet_pton(socket.AF_INET6, address)
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("=16sIi", packed, 64, socket.if_nametoindex("lo")))
        for address in addresses:
            eventually(lambda address=address: _is_usable(address), "the kernel has made sure of it")  # type: ignore[misc]
        task()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


def _is_usable(address: str) -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
        return True


def switch(*, on: bool) -> None:
    """Switch the loopback of the calling thread on or off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP if on else 0))
