"""From the name of a host to a connection: every address of it is tried, by RFC 8305 ("Happy Eyeballs").

A name may have IPv6 and IPv4 addresses of which only some lead to a listener. The addresses are ordered so that the
families take turns. A new attempt begins ``STAGGER_S`` after the one before, or as soon as that one has failed. The
first connection wins, and the others are closed.

Looking a name up may take half a minute, and nothing can interrupt it: never do it on a thread that others need.
"""

import contextlib
import errno
import ipaddress
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final

from protocols.base.limits import MAX_ADVERT_ADDRESSES

STAGGER_S: Final = 0.25
"""The "Connection Attempt Delay" of RFC 8305."""
_LOOK_S: Final = 0.1
"""How often an attempt looks whether it is still wanted."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


class NoConnection(OSError):
    """No address of a host took a connection. The text says why, for each of them."""


@dataclass(frozen=True, slots=True)
class Target:
    """One address of a host."""

    family: int
    to: SocketAddress

    @property
    def host(self) -> str:
        """The IP address. One that is link-local has its zone after ``%``."""
        return self.to[0]


def is_name(host: str) -> bool:
    """Whether a host has to be looked up, as opposed to an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def look_up(host: str, port: int) -> tuple[Target, ...]:
    """The addresses of a host, in the order in which to try them; at most ``MAX_ADVERT_ADDRESSES``. It blocks.

    :raises NoConnection: the host is not known.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise NoConnection(f"unknown host: {why}: use an IP address") from error
    targets = [Target(family, to) for family, _, _, _, to in found]  # type: ignore[arg-type]
    return interleaved(targets)[:MAX_ADVERT_ADDRESSES]


def interleaved(targets: Sequence[Target]) -> tuple[Target, ...]:
    """``targets`` without repetitions. The families take turns, and that of the first target begins."""
    once = list(dict.fromkeys(targets))
    first = [target for target in once if target.family == once[0].family]
    others = [target for target in once if target.family != once[0].family]
    return tuple(target for target in chain(*zip_longest(first, others)) if target is not None)


def look_up_within(
    host: str, port: int, timeout_s: float, is_wanted: Callable[[], bool] = lambda: True
) -> tuple[Target, ...]:
    """As :func:`look_up`, on a thread of its own. The caller waits for it until ``is_wanted`` says no, and no longer
    than ``timeout_s`` seconds.

    :raises NoConnection: the host is not known, or the look-up takes too long.
    """
    ends_s = time.monotonic() + timeout_s
    ended: list[tuple[Target, ...] | NoConnection] = []

    def run() -> None:
        try:
            ended.append(look_up(host, port))
        except NoConnection as error:
            ended.append(error)

    thread = threading.Thread(target=run, name="mesh-look-up", daemon=True)
    thread.start()
    while not ended and is_wanted() and (left_s := ends_s - time.monotonic()) > 0:
        thread.join(min(left_s, _LOOK_S))
    if not ended:
        raise NoConnection(f"the name was not found within {timeout_s:g} s: check the resolver, or use an IP address")
    if isinstance(ended[0], NoConnection):
        raise ended[0]
    return ended[0]


def connect(
    targets: Sequence[Target], ends_s: float, is_wanted: Callable[[], bool] = lambda: True
) -> tuple[socket.socket, Target]:
    """A non-blocking socket that is connected to one of ``targets``, and which one. It blocks until ``ends_s`` of
    ``time.monotonic``, or until ``is_wanted`` says no, at the latest.

    :raises NoConnection: none took a connection in time.
    """
    race = _Race(list(targets), ends_s)
    try:
        while is_wanted():
            winner = race.step()
            if winner is not None:
                return winner
        raise NoConnection("it is not wanted any more")
    finally:
        race.close()


class _Race:
    """The attempts to connect that are under way."""

    def __init__(self, targets: list[Target], ends_s: float) -> None:
        self._left, self._ends_s = targets, ends_s
        self._running: dict[int, tuple[socket.socket, Target]] = {}
        self._poll = select.poll()
        self._next_s = 0.0
        self._failed: list[str] = []

    def step(self) -> tuple[socket.socket, Target] | None:
        """Begin the next attempt if it is due, and wait a little. Returns the winner, if there is one."""
        now_s = time.monotonic()
        if self._left and (now_s >= self._next_s or not self._running):
            self._next_s = now_s + STAGGER_S
            self._begin(self._left.pop(0))
            return None
        if not self._running:
            raise NoConnection("; ".join(self._failed) or "it has no address")
        if now_s >= self._ends_s:
            mute = [f"{target.host}: no answer" for _, target in self._running.values()]
            raise NoConnection("; ".join([*self._failed, *mute]))
        until_s = min(self._ends_s, self._next_s if self._left else self._ends_s, now_s + _LOOK_S)
        for descriptor, _ in self._poll.poll(max(1, 1_000 * (until_s - now_s))):
            sock, target = self._running.pop(descriptor)
            self._poll.unregister(descriptor)
            if not (error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                return sock, target
            self._fail(sock, target, error)
        return None

    def _begin(self, target: Target) -> None:
        try:
            sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:  # a system without IPv6
            self._failed.append(f"{target.host}: {error.strerror or error}")
            self._next_s = 0.0
            return
        error_number = sock.connect_ex(target.to)
        if error_number not in (0, errno.EINPROGRESS):
            self._fail(sock, target, error_number)
            return
        self._running[sock.fileno()] = sock, target
        self._poll.register(sock.fileno(), select.POLLOUT)

    def _fail(self, sock: socket.socket, target: Target, error: int) -> None:
        sock.close()
        self._failed.append(f"{target.host}: {os.strerror(error).lower()}")
        self._next_s = 0.0  # the next one need not wait

    def close(self) -> None:
        """Close the attempts that did not win."""
        for sock, _ in self._running.values():
            with contextlib.suppress(OSError):
                sock.close()
        self._running.clear()
