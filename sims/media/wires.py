"""The simplest medium: one delay for everything, and links that are shaped and cut by hand. It is for tests and small
programs.

It implements :class:`~sims.media.contract.Links`. Nothing is lost by chance. A link with a rate sends one frame after
the other, whichever pipe it is on.
"""

from protocols.base import limits

HANDSHAKE_TRIPS = 5
"""One-way trips until a stream takes a frame: TCP, TLS 1.3 with certificates of both sides, and NNG's headers."""


class _Shape:
    __slots__ = ("bytes_per_s", "delay_ns", "free_ns")

    def __init__(self, delay_ns: int, bytes_per_s: int) -> None:
        self.delay_ns, self.bytes_per_s = delay_ns, bytes_per_s
        self.free_ns = 0


class Wires:
    """Wires between all nodes."""

    def __init__(self, delay_ns: int) -> None:
        self.delay_ns = delay_ns
        self.nodes = 0
        """How many nodes there are."""
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._cut: set[tuple[int, int]] = set()

    def shape(self, sender: int, receiver: int, delay_ns: int, bytes_per_s: int) -> None:
        """Shape one direction from now on; 0 bytes a second means that frames take no time to send."""
        self._shapes[sender, receiver] = _Shape(delay_ns, bytes_per_s)

    def cut(self, sender: int, receiver: int) -> None:
        """Nothing passes one way."""
        self._cut.add((sender, receiver))

    def heal(self) -> None:
        """All cuts end."""
        self._cut.clear()

    def moved(self, now_ns: int) -> list[int]:
        """An empty list, because no node moves."""
        return []

    def neighbours(self, node: int) -> list[int]:
        """All other nodes."""
        return [other for other in range(self.nodes) if other != node]

    def multicast_ns(self, sender: int, size_bytes: int, now_ns: int) -> tuple[int, list[int]]:
        """A datagram arrives at all nodes that the sender is not cut off from, after the common delay."""
        del size_bytes
        return now_ns + self.delay_ns, [o for o in self.neighbours(sender) if (sender, o) not in self._cut]

    def datagram_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """A datagram takes as long as a frame."""
        return self.stream_ns(sender, receiver, size_bytes, now_ns)

    def frame_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """A frame takes as long as bytes on a stream."""
        return self.stream_ns(sender, receiver, size_bytes, now_ns)

    def stream_ns(self, sender: int, receiver: int, size_bytes: int, now_ns: int) -> int | None:
        """See :class:`~sims.media.contract.Links`."""
        if self._cut and (sender, receiver) in self._cut:
            return None
        shape = self._shapes.get((sender, receiver)) if self._shapes else None
        if shape is None:
            return now_ns + self.delay_ns
        if shape.bytes_per_s:
            shape.free_ns = max(shape.free_ns, now_ns) + size_bytes * limits.SECOND // shape.bytes_per_s
            return shape.free_ns + shape.delay_ns
        return now_ns + shape.delay_ns

    def connect_ns(self, sender: int, receiver: int, now_ns: int, *, answers: bool = True) -> int | None:
        """When a stream is open; None while either direction is cut."""
        if (sender, receiver) in self._cut or (receiver, sender) in self._cut:
            return None
        return now_ns + HANDSHAKE_TRIPS * self.delay_ns

    def busy_share(self, node: int, now_ns: int) -> float:
        """Always 0, because wires are not shared."""
        return 0.0
