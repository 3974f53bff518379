"""The contract between models of the air and the wires and both harnesses: what links do to what is sent.

Nodes are numbers, in the order of ``Scenario.names``. Time is virtual nanoseconds in the simulator, and monotonic
nanoseconds in the emulator. Chance comes from the ``random.Random`` that a model was made with, and from nowhere else.

Datagrams (mDNS) may be lost. Streams (TLS over TCP) never lose anything: what the air loses is sent again, so a stream
is late, or stands still while its ends are out of reach.

:class:`sims.media.media.Media` implements all of these protocols in one object.
"""

from typing import Protocol

RELAY = -1
"""Stands for the relay in a fault of the way to it. No node has this number."""


class Places(Protocol):
    """Where the nodes are. Models keep the object and its lists; :meth:`advance` changes them in place."""

    xs_m: "list[float]"
    ys_m: "list[float]"
    present: "list[bool]"
    """Whether a node is on the map at all: a vehicle of a trace comes and goes."""
    speeds_mps: "list[float]"
    headings_deg: "list[float]"

    def advance(self, now_ns: int) -> None:
        """Move all nodes to where they are at ``now_ns``, which never goes back."""


class Links(Protocol):
    """One medium or several. The same object serves the simulator and the emulator.

    ``size_bytes`` of a datagram or frame counts from its IP header on. Of a stream it is what the program writes,
    without TLS, TCP and IP. ``now_ns`` never goes back from call to call. Arrivals are later than ``now_ns``.
    """

    def moved(self, now_ns: int) -> list[int]:
        """Take in that the places may have changed: what is kept about distances is made anew. Returns the nodes, in
        order, whose :meth:`neighbours` may have changed, or the links between them and these."""

    def neighbours(self, node: int) -> list[int]:
        """The nodes that could hear ``node`` now, by air or by wire, in order. The caller must not change the list."""

    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        """When one multicast datagram arrives, and at which nodes, in order. It is on the air once, so it arrives
        everywhere at one instant."""

    def datagram_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """When a datagram that nobody acknowledges arrives at one receiver; None when it is lost.

        Calls with the same sender, size and instant are receivers of one transmission.
        """

    def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """When one unicast Ethernet frame arrives, retries of the link layer included; None when it is lost.

        The caller keeps the frames of one pair in order, as the link layer of 802.11 does.
        """

    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """When bytes put on an open stream arrive, with retransmissions, whatever is ahead of them. None means that the
        stream stands still, because its ends are out of reach or lose too much in a row; ask again later.

        The caller keeps the order: nothing on a pipe arrives before what was written earlier. A stream that stood still
        goes on with TCP's next retransmission, which comes after ever longer pauses.
        """

    def connect_ns(self, sender: int, receiver: int, now_ns: int, *, answers: bool = True) -> int | None:
        """When a stream is open at both ends, with TCP and mutual TLS; None when the receiver is out of reach. If no
        process ``answers`` there: when its host has said so."""

    def busy_share(self, node: int, now_ns: int) -> float:
        """The channel busy ratio that ``node`` sees, 0 to 1."""


class RelayLinks(Protocol):
    """What the cellular network does to streams between the nodes and the relay."""

    def uplink_ns(self, node: int, size_bytes: int, now_ns: int, upward: bool = True) -> int | None:
        """When bytes on an open stream between ``node`` and the relay arrive; None without coverage. ``upward``:
        towards the relay."""

    def uplink_connect_ns(self, node: int, now_ns: int) -> int | None:
        """When a stream to the relay is open; None without coverage."""


class Overlay(Protocol):
    """Faults on top of what the media do. Each is one way, from ``sender`` to ``receiver``, one of which may be RELAY.

    A stream stands still when either of its directions is cut, because acknowledgements are missing.
    """

    def cut(self, sender: int, receiver: int) -> None:
        """Nothing passes until :meth:`uncut` was called as often as this."""

    def uncut(self, sender: int, receiver: int) -> None:
        """Take back one :meth:`cut`. Without one, nothing happens."""

    def lose(self, sender: int, receiver: int, share: float) -> None:
        """A share of the frames is lost, whatever the link layer retries; 0 ends it."""

    def clog(self, sender: int, receiver: int, delay_ns: int) -> None:
        """Everything takes ``delay_ns`` longer; 0 ends it."""

    def clear(self) -> None:
        """End all faults."""


class Medium(Links, RelayLinks, Overlay, Protocol):
    """Everything that a harness needs of the media."""
