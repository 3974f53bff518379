"""The last value of each stream, and what all of them hold in memory.

Together they stay within ``MAX_CACHE_BYTES``: the stream whose size changed longest ago gives its value up first, and
a value that is above the bound by itself is not kept at all.
"""

from typing import Final

import msgspec

from protocols.base import limits
from protocols.readings.streams import Stream
from protocols.wire.readings import Reading
from protocols.wire.tensors import Tensor
from protocols.wire.values import kept_alive, weight_bytes

SMALL: Final = frozenset((type(None), bool, int, float))
"""Types of values that take :data:`SMALL_BYTES`."""
SMALL_BYTES: Final = 64
"""How many bytes a held value of these types counts, together with its reading."""


class LastValues:
    """The values that one router keeps in ``Stream.last``; ``Stream.held_bytes`` says what each of them counts."""

    __slots__ = ("_holding", "held_bytes")

    def __init__(self) -> None:
        self.held_bytes = 0
        """What all values together count."""
        self._holding: dict[Stream, None] = {}  # streams whose last value counts, oldest first

    def keep(self, stream: Stream, reading: Reading, size_bytes: int) -> None:
        """Keep ``reading`` as the last of its stream. ``size_bytes``: how many bytes its value counts if it is neither
        text nor bytes; 0: compute that here."""
        stream.last = reading
        value = reading.value
        kind = type(value)
        if kind is bytes or kind is str:
            size_bytes = len(value)
        elif not size_bytes:
            if kind is Tensor:
                size_bytes = len(value.data)
                if len(kept_alive(value)) > 2 * size_bytes + 4_096:  # a small part of a large frame
                    alone = Tensor(value.dtype, value.shape, memoryview(bytes(value.data)))
                    stream.last = msgspec.structs.replace(reading, value=alone)
            elif kind is list or kind is dict:
                size_bytes = weight_bytes(value)
            else:
                size_bytes = SMALL_BYTES
        if size_bytes != stream.held_bytes:
            self.held_bytes += size_bytes - stream.held_bytes
            stream.held_bytes = size_bytes
            self._holding[stream] = None
            if self.held_bytes > limits.MAX_CACHE_BYTES:
                self._shrink(stream)

    def forget(self, stream: Stream) -> None:
        """A stream is dropped, and its value with it."""
        stream.last = None
        self._holding.pop(stream, None)
        self.held_bytes -= stream.held_bytes

    def _shrink(self, keep: Stream) -> None:
        """Forget values, oldest stream first, and that of ``keep`` last, until the bound holds."""
        del self._holding[keep]
        while self.held_bytes > limits.MAX_CACHE_BYTES:
            stream = next(iter(self._holding), keep)
            self._holding.pop(stream, None)
            self.held_bytes -= stream.held_bytes
            stream.last, stream.held_bytes = None, 0
            if stream is keep:
                return
        self._holding[keep] = None
