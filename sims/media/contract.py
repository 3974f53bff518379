"""What links do to what is sent: the contract between models of the air and the wires, and both harnesses.

Nodes are numbers, in the order of ``Scenario.names``. Time is virtual nanoseconds in the simulator and monotonic ones
in the emulator. Chance comes from the ``random.Random`` a model was made with, and from nowhere else.

Datagrams (mDNS) are lost. Streams (TLS over TCP) never are: what the air loses is sent again, so a stream is late, or
stands still while its ends are out of reach.

:class:`sims.media.media.Media` is all of these protocols in one object.
"""

from typing import Protocol

RELAY = -1
"""Stands for the relay where a fault of the way to it is meant; no node has this number."""


class Places(Protocol):
    """Where the nodes are. Models hold on to it and its lists; :meth:`advance` changes them in place."""

    xs_m: "list[float]"
    ys_m: "list[float]"
    present: "list[bool]"
    """Whether a node is on the map at all (a trace's vehicle comes and goes)."""
    speeds_mps: "list[float]"
    headings_deg: "list[float]"

    def advance(self, now_ns: int) -> None:
        """Move everybody to where they are at ``now_ns``, which never goes back."""


class Links(Protocol):
    """One medium or several; the same object serves the simulator and the emulator.

    ``size_bytes`` of a datagram or frame counts from its IP header on; of a stream it is what the program writes: TLS,
    TCP and IP come on top here. ``now_ns`` never goes back from call to call. Arrivals are later than ``now_ns``.
    """

    def moved(self, now_ns: int) -> list[int]:
        """The places may have changed, and what is kept about distances has to be made anew. Returns the nodes, in
        order, of which :meth:`neighbours` or what lies between them and these may be others now."""

    def neighbours(self, node: int) -> list[int]:
        """Nodes that could hear ``node`` now (by air or by wire), in order. Not to be changed by the caller."""

    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        """When one multicast datagram arrives, and at whom, in order. It is on the air once: one event is enough."""

    def datagram_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """When a datagram that nobody acknowledges arrives at one receiver; None: it is lost.

        Calls with the same sender, size and instant are receivers of one transmission.
        """

    def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """When one unicast Ethernet frame arrives, the link layer's retries included; None: it is lost.

        The order of one pair's frames is the caller's to keep, as the link layer of 802.11 does.
        """

    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """When bytes put on an open stream arrive, retransmissions included, not regarding what is ahead of them; None:
        the stream stands still, for its ends are out of reach or lose too much in a row; ask again later.

        Order is the caller's: nothing on a pipe arrives before what was written earlier. What stood still for a while
        goes on with TCP's next retransmission, which comes after ever longer pauses.
        """

    def connect_ns(self, sender: int, receiver: int, now_ns: int) -> int | None:
        """When a stream is open at both ends, TCP and mutual TLS included; None: nobody answers."""

    def busy_share(self, node: int, now_ns: int) -> float:
        """Channel busy ratio that ``node`` sees, 0 to 1."""


class Uplink(Protocol):
    """The way between the nodes and the relay."""

    def uplink_ns(self, node: int, size_bytes: int, now_ns: int, upward: bool = True) -> int | None:
        """When bytes on an open stream between ``node`` and the relay arrive (``upward``: there); None: no coverage."""

    def uplink_connect_ns(self, node: int, now_ns: int) -> int | None:
        """When a stream to the relay is open; None: no coverage."""


class Overlay(Protocol):
    """Faults on top of what the media do, each one way: from ``sender`` to ``receiver``; one of them may be RELAY.

    A stream stands still when either of its directions is cut, for want of acknowledgements.
    """

    def cut(self, sender: int, receiver: int) -> None:
        """Nothing passes, until :meth:`uncut` was called as often as this."""

    def uncut(self, sender: int, receiver: int) -> None:
        """Takes back one :meth:`cut`; without one nothing happens."""

    def lose(self, sender: int, receiver: int, share: float) -> None:
        """So many of the frames are lost, the link layer's retries notwithstanding; 0 ends it."""

    def clog(self, sender: int, receiver: int, delay_ns: int) -> None:
        """Everything takes so much longer; 0 ends it."""

    def clear(self) -> None:
        """No fault any more."""


class Medium(Links, Uplink, Overlay, Protocol):
    """What a harness is given."""
