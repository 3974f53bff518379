"""The contract between the driver of a node and a link engine.

There are two kinds of connection. Both use mutual TLS 1.3, and both ends are identified before the first frame:

- *links* between nodes: an inbox that takes frames from everybody, and outgoing lanes for each neighbour;
- *exchanges* with the relay: one request and one response on a connection that the node opened.

Threads. ``frame_received`` runs on the one receiving thread of a transport and nothing else is received while it runs.
``admit`` runs on a thread of the link engine, may not block and may not call the transport. ``inbound_opened`` and
``inbound_closed`` run on the receiving or the I/O thread, never two notices of one pipe at the same time. Every other
notice runs on the transport's I/O thread. ``try_send`` may be called from any thread and never blocks. ``close`` of the
transport waits for notices under way: call it without a lock that a notice takes. A notice may close lanes and pipes.

Certificates. ``express`` closes a pipe within a minute of the end of its peer's certificate and reports it. When a node
takes up another authority, it closes at once what that authority does not vouch for. NNG does
not show that end, so ``nng`` closes every pipe and lane after about an hour: the next handshake proves the certificate.
The relay does the same with the pipes of exchanges.

A lane is dialled once. When its pipe is gone, or does not open in time, the lane is finished and the observer is told
why. ``protocols.membership.machine`` decides whether and when to dial again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protocols.base.ids import PeerIdentity
from protocols.links.flow import Sample


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """PEM files of one node: its certificate (leaf first), its key, and the authority of the mesh."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class Address:
    """Where an inbox listens. An IPv6 host has no brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FailedLink:
    """A peer to which there is no link, because it failed or was ended for a reason of trust."""

    peer: str
    """Its place, as in ``192.0.2.7:7000`` (we dialled it) or ``192.0.2.7`` (it dialled us), and its identity once that
    was proved."""
    kind: str
    """The reason as one word."""
    why: str
    """The reason for a person."""
    count: int
    last_utc_ns: int


class OutgoingLane(Protocol):
    """One dialled connection to one inbox."""

    @property
    def address(self) -> Address:
        """The address that was dialled."""

    def try_send(self, frame: bytes, along: Sequence[bytes] = ()) -> bool:
        """Hand over a frame without waiting, and the small frames ``along`` behind it in the same segment. False: none
        was taken, because the link is busy or not open. If it is open, ``lane_writable`` follows once it takes frames
        again. ``nng`` takes nothing along: no node keeps a pace there."""

    sample: Sample | None
    """What a look has learned of how late frames are. Whoever takes it puts None there. ``nng`` learns nothing."""

    def is_full(self, now: int) -> bool:
        """Whether so much is under way that nothing but urgent frames should follow. ``nng`` does not know: libnng
        keeps its sockets to itself, so there the kernel's buffers bound what is under way."""

    def hurry(self) -> None:
        """Have computers and networks that can do so send what the lane takes before other traffic. ``nng`` can't:
        libnng keeps its sockets to itself."""

    def watch(self, waits: bool) -> None:
        """Have ``lane_writable`` called once a look has learned something, or if the caller ``waits``, once the lane is
        not full any more."""

    def notify(self) -> None:
        """Have ``lane_writable`` called soon, on the I/O thread, whether or not a frame was refused. Never blocks."""

    def close(self) -> None:
        """Finish the lane. No notice follows. Idempotent."""

    def abandon(self) -> int:
        """Finish the lane, like :meth:`close`, because its peer does not hear it. Returns how many of the frames that
        it took the peer's computer has not confirmed. The kernel counts bytes, so it is an estimate."""


class TransportObserver(Protocol):
    """The notices that the driver gets."""

    def admit(
        self, identity: PeerIdentity | None, detail: str, lane: OutgoingLane | None, remote_host: str
    ) -> str | None:
        """A handshake ended. Return None to let the pipe live or the reason to close it before its first frame.

        ``identity`` is None when the certificate names nobody of a mesh; ``detail`` then says why.
        ``lane`` is None for a pipe into our inbox.
        """

    def inbound_opened(self, pipe: int, identity: PeerIdentity, remote_host: str) -> None:
        """An admitted pipe into our inbox. Always before its first frame."""

    def inbound_closed(self, pipe: int) -> None:
        """The pipe has ended. Told once for every ``inbound_opened``, after its last frame was received or lost."""

    def frame_received(self, pipe: int, frame: bytes | bytearray) -> None:
        """One frame from an open inbound pipe."""

    def lane_opened(self, lane: OutgoingLane, identity: PeerIdentity) -> None:
        """The greeting of the lane was sent, and the lane takes frames now."""

    def lane_closed(self, lane: OutgoingLane, reason: str) -> None:
        """The lane is finished: it never opened in time, was refused, or its pipe is gone."""

    def lane_writable(self, lane: OutgoingLane) -> None:
        """The lane takes frames again, after a ``try_send`` that was not taken; or ``notify`` was called, or what a
        ``watch`` waited for has come."""


class Transport(Protocol):
    """One node's links."""

    def listen(self, host: str, port: int) -> int:
        """Open the inbox and return its port (``port`` 0: any free one).

        :raises TransportError: the port is in use or the credentials can't be used; names both and says what to do.
        """

    def dial(self, address: Address, greeting: Callable[[], bytes], timeout_s: float) -> OutgoingLane:
        """Start to open a lane and return at once. ``greeting()`` gives the first frame when the pipe is open."""

    def close_pipe(self, pipe: int) -> None:
        """Close a pipe into our inbox. ``inbound_closed`` follows."""

    def renew(self, credentials: CredentialFiles) -> None:
        """Use these for every handshake from now on; the listener and open pipes live on. If the authority is another
        one, pipes and lanes whose certificates it did not sign are closed at once. Any thread may call it.

        :raises IdentityError: they can't be used; the old ones stay in use.
        :raises TransportError: this engine can't change them while it runs (``nng``: NNG freezes a TLS configuration
            once it is used): start the node anew.
        """

    def receiving_since_ns(self) -> int | None:
        """The monotonic start of the ``frame_received`` under way; None when the receiving thread waits for frames."""

    def failures(self) -> list[FailedLink]:
        """A bounded number of recent links that failed, by peer and kind, the newest one last. Any thread may call it.
        NNG does not say who failed to connect to us, and why: ``nng`` only counts those."""

    def statistics(self) -> dict[str, int]:
        """Counters by name: refused and failed handshakes (``express``: by kind too), connections that were closed
        because they were mute, frames and bytes each way. ``lanes`` is the number of lanes now."""

    def close(self) -> None:
        """Close everything; no notice follows after it returns. Idempotent."""


class Requester(Protocol):
    """A node's connection to a relay."""

    def request(self, frame: bytes, timeout_s: float) -> bytes:
        """Send one request and wait for its response; one at a time.

        :raises TransportError: there was no answer in time, or the relay is not who it should be.
        """

    def close(self) -> None:
        """End a waiting request with an error. Idempotent."""


class Responder(Protocol):
    """A relay's end of all exchanges."""

    def close(self) -> None:
        """Stop taking requests; the one being handled is answered first. Idempotent."""


Handler = Callable[[PeerIdentity, bytes], bytes]
"""Answers one request. It runs on the responder's threads and must not raise."""
