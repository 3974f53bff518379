"""What links and exchanges ask of a socket library, so that their logic names none. The package's module ``library``
provides it.

Invariants of every socket library: a handshake is judged before anything is received from or sent to the peer;
``connected`` and ``removed`` follow only for pipes that were judged and admitted, in that order; judges and notices run
on threads of the library, may not block and may not close sockets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from meshnode.links.names import NoConnection, is_name, look_up, look_up_within
from meshnode.links.transport import Address


@dataclass(frozen=True, slots=True)
class Handshake:
    """The other end of a pipe whose TLS handshake succeeded. ``names`` are the alternative names of its certificate."""

    pipe: int
    names: tuple[str, ...]
    host: str
    port: int
    own_port: int = 0
    """The port of our end; 0: not known."""


@dataclass(frozen=True, slots=True)
class Watch:
    """The callbacks of the owner of a socket, about its pipes."""

    judge: Callable[[Handshake], bool]
    """True lets the pipe live."""
    connected: Callable[[int], None]
    removed: Callable[[int], None]


class PushSocket(Protocol):
    """Dials one inbox, again and again until it is closed."""

    @property
    def descriptor(self) -> int:
        """Readable while the socket takes a frame."""

    def dial_also(self, address: Address) -> None:
        """Dial another address of the same host as well, until a pipe is there."""

    def keep_only(self, pipe: int) -> None:
        """Dial no other address any more than the one to which ``pipe`` leads."""

    def try_send(self, frame: bytes) -> bool:
        """Send a frame without waiting. False: a frame is under way, or there is no pipe."""

    def counters(self) -> dict[str, int]:
        """The number of failed dials by kind. What dialling again can't mend counts once all addresses show it."""

    def close(self) -> None:
        """Close the socket. It waits for callbacks under way: never call it from one."""


class PullSocket(Protocol):
    """An inbox."""

    @property
    def port(self) -> int:
        """The port where it listens."""

    def receive(self) -> tuple[int, bytes] | None:
        """The next frame and its pipe, in one thread. None: closed."""

    def close_pipe(self, pipe: int) -> None:
        """Close one pipe; unknown ones are ignored."""

    def counters(self) -> dict[str, int]:
        """The number of failed handshakes by kind."""

    def close(self) -> None:
        """Close it, and end a waiting ``receive``."""


class RequestSocket(Protocol):
    """Dials one relay, again and again until it is closed."""

    def ask(self, frame: bytes, timeout_s: float, lost: Callable[[], bool]) -> bytes:
        """Send a request and wait for its answer. ``lost()`` says whether the pipe that was there at the start is gone.

        :raises TransportError: there was no answer in time, or the connection was lost or closed.
        """

    def counters(self) -> dict[str, int]:
        """The number of failed dials by kind."""

    def close(self) -> None:
        """Close the socket, and end a waiting ``ask``."""


class ReplyContext(Protocol):
    """Takes one request at a time, in one thread."""

    def receive(self) -> tuple[int, bytes] | None:
        """The next request and its pipe. None: closed."""

    def reply(self, frame: bytes) -> bool:
        """Answer the request. False: its pipe has not taken the answers before this one for too long. The answer is
        lost silently when the requester has gone."""

    def close(self) -> None:
        """Close it, and end a waiting ``receive``."""


class ReplySocket(Protocol):
    """Listens for requests."""

    @property
    def port(self) -> int:
        """The port where it listens."""

    def context(self) -> ReplyContext:
        """A context for one more request at a time."""

    def close_pipe(self, pipe: int) -> None:
        """Close one pipe; unknown ones are ignored."""

    def close(self) -> None:
        """Close the socket and its contexts."""


class SocketLibrary(Protocol):
    """Opens sockets with one node's credentials. Each method raises ``TransportError`` with the address and what to
    do."""

    def push(self, address: Address, watch: Watch) -> PushSocket:
        """Start to dial an inbox."""

    def pull(self, host: str, port: int, watch: Watch) -> PullSocket:
        """Open an inbox."""

    def request(self, address: Address, watch: Watch) -> RequestSocket:
        """Start to dial a relay."""

    def reply(self, host: str, port: int, watch: Watch) -> ReplySocket:
        """Open a relay's end."""


def addresses_of(
    address: Address, timeout_s: float | None = None, is_wanted: Callable[[], bool] = lambda: True
) -> list[Address]:
    """The IP addresses of a host that can be dialled, in the order in which to try them. It blocks while a name is
    looked up; ``timeout_s`` and ``is_wanted`` as of :func:`look_up_within`.

    :raises NoConnection: the host is not known, or not found in time.
    """
    host, port = address.host, address.port
    if not is_name(host):
        return [address]
    targets = look_up(host, port) if timeout_s is None else look_up_within(host, port, timeout_s, is_wanted)
    usable = [Address(target.host, port) for target in targets if "%" not in target.host]
    if not usable:
        raise NoConnection("it has only addresses of one network segment, which links can't dial")
    return usable


def lasting_failure(counters: dict[str, int]) -> str | None:
    """A failure that dialling again can't mend, from the counters of a dialled socket.

    One failed handshake proves nothing: on a busy host about one in two thousand failed between certificates that trust
    each other. The socket dials again by itself, and a certificate that is really refused is refused again.
    """
    if counters.get("auth", 0) > 1:
        return (
            "the TLS handshake failed: one side refuses the other's certificate (other authority, expired, wrong name)"
        )
    if counters.get("proto"):
        return "it does not speak this protocol"
    return None


def failed_attempts(counters: dict[str, int]) -> int:
    """How many attempts to connect have failed, from the counters of a dialled socket."""
    return sum(counters.get(kind, 0) for kind in ("refused", "disconnect", "other"))


def no_connection(address: Address, seconds: float | None, counters: dict[str, int]) -> str:
    """The reason why there is no pipe, from the counters of a dialled socket. ``seconds``: the time that it had; None
    if every attempt has failed before."""
    if counters.get("refused"):
        why = "connection refused: is it running, and is the port right?"
    elif counters.get("disconnect"):
        why = "the connection was reset"
    elif counters.get("other"):
        why = "unreachable, unknown host, or hung up during the handshake"
    else:
        why = "no answer: unreachable or mute"
    within = "" if seconds is None else f" within {seconds:g} s"
    return f"no connection to {address}{within} ({why})"
