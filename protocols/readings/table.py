"""The streams that one node knows: those that it hears from their origins, and those that it knows by hearsay.

The two kinds are kept apart, so that nothing that a neighbour passes on can change what is known of a stream from its
origin. Together they stay within ``MAX_STREAMS``. The neighbour that a stream came from pays for it, and the largest
holder gives way; what neighbours that are gone have left is one share.
"""

from typing import Final

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.shares import SharedRows
from protocols.readings.cache import LastValues
from protocols.readings.deadlines import Deadlines
from protocols.readings.streams import LocalSubscription, Stream
from protocols.wire.readings import Reading

StreamId = tuple[str, str]
"""The origin and the key of a stream."""
GONE: Final = NodeId("")
"""The payer for what neighbours have left that are gone."""


class StreamTable:
    """The streams of one router, their last values and their deadlines."""

    __slots__ = ("_rows", "_subscriptions", "deadlines", "first_hand", "hearsay", "last_values")

    def __init__(self, subscriptions: dict[int, LocalSubscription]) -> None:
        self.first_hand: dict[StreamId, Stream] = {}
        """Streams of this node and of neighbours that sent them themselves, oldest first."""
        self.hearsay: dict[StreamId, Stream] = {}
        """Streams that other neighbours passed on, oldest first."""
        self.last_values = LastValues()
        self.deadlines = Deadlines(subscriptions, self.first_hand, self.hearsay)
        self._subscriptions = subscriptions
        self._rows: SharedRows[NodeId, Stream] = SharedRows()

    def __len__(self) -> int:
        return len(self.first_hand) + len(self.hearsay)

    def all(self) -> list[Stream]:
        """All streams; of one (origin, key), the stream from the origin comes first."""
        return [*self.first_hand.values(), *self.hearsay.values()]

    def keep(self, stream: Stream, now: int) -> None:
        """Add a stream. The oldest of the largest holder gives way when the table is full."""
        if len(self) >= limits.MAX_STREAMS:
            self.drop(self._rows.next_to_go())
        self._rows.add(stream.payer, stream)
        table = self.hearsay if stream.is_hearsay else self.first_hand
        table[stream.origin, stream.key] = stream
        stream.last_ns = now
        key, chunks = stream.key, stream.key.split("/")
        for subscription in self._subscriptions.values():
            quality = subscription.quality
            if quality.deadline_ns and (quality.hops or not stream.is_hearsay):
                if subscription.pattern.matches(key, chunks):
                    self.deadlines.watch(subscription.number, stream, now + quality.deadline_ns, now)

    def drop(self, stream: Stream) -> None:
        """Remove a stream and its last value."""
        table = self.hearsay if stream.is_hearsay else self.first_hand
        del table[stream.origin, stream.key]
        stream.version = -1  # a neighbour may have it as its most recent one
        self._rows.remove(stream)
        self.last_values.forget(stream)

    def charge(self, stream: Stream, payer: NodeId) -> None:
        """Let ``payer`` pay for a stream from now on, because it comes from there."""
        if stream.payer != payer:
            stream.payer = payer
            self._rows.move(stream, payer)
            self.last_values.charge(stream)

    def disown(self, node: NodeId) -> None:
        """Keep what a neighbour that is gone has left in the share of all that are gone. Whoever left much keeps a
        share of its own, because moving it would take long."""
        if self._rows.shares.held(node) <= limits.MAX_DISOWNED:
            for stream in self._rows.move_all(node, GONE):
                stream.payer = GONE
                self.last_values.charge(stream)
        self.deadlines.disown(node, GONE)

    def forget_origin(self, origin: NodeId, sequence: int) -> None:
        """Remove the streams that ``origin`` sent itself and whose newest reading has this sequence or a larger one. 0:
        remove all that is known of ``origin``, by hearsay too."""
        known = self.first_hand.values() if sequence else self.all()
        for stream in [stream for stream in known if stream.origin == origin and stream.newest >= sequence]:
            self.drop(stream)

    def note(self, stream: Stream, reading: Reading, size_bytes: int, now: int) -> None:
        """Keep the newest reading of a stream. ``size_bytes``: of the encoded reading; 0: it is not known."""
        stream.newest, stream.last_ns = reading.sequence, now
        if stream.missed:
            self.deadlines.watch_again(stream, now)
        self.last_values.keep(stream, reading, size_bytes)
