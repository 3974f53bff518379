"""The last value of each stream, and what all of them hold in memory.

Together they stay within ``MAX_CACHE_BYTES``. What a value holds is counted whole: the value, its key, its context and
the objects around them. Who pays for a stream pays for its value. When the bound is reached, the largest holder gives
way: of its streams, the one whose size changed longest ago gives its value up first. A value that is above the bound by
itself is not kept at all.
"""

from typing import Final

import msgspec

from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.base.shares import SharedRows
from protocols.readings.streams import Stream
from protocols.wire.encoding.values import TENSOR_BYTES, kept_alive, object_bytes, weight_bytes
from protocols.wire.readings import Reading
from protocols.wire.tensors import Tensor

SMALL: Final = frozenset((type(None), bool, int, float))
"""Types of values whose size does not matter."""
SMALL_SIZE: Final = 64
"""The size of values of these types, as :attr:`Stream.size`. Bytes of this length hold not much more."""
_SMALL_BYTES: Final = 112
_READING_BYTES: Final = 704
"""What the objects of a reading hold without its texts and its value: the reading, place, time, provenance, and their
numbers."""


class LastValues:
    """The values that one router keeps in ``Stream.last``; ``Stream.held_bytes`` says what each of them holds."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: SharedRows[NodeId, Stream] = SharedRows()

    @property
    def held_bytes(self) -> int:
        """What all values together hold."""
        return self._rows.shares.total

    def keep(self, stream: Stream, reading: Reading, size: int) -> None:
        """Keep ``reading`` as the last of its stream. ``size``: of the encoded reading; 0: it is not known."""
        stream.last, stream.how = reading, reading.how
        value = reading.value
        kind = type(value)
        if not size:
            size = SMALL_SIZE if kind in SMALL else len(value) if kind is bytes else -1
        stream.size, stream.kind = size, kind
        if kind in SMALL:
            held_bytes = _SMALL_BYTES
        elif kind is bytes or kind is str:
            held_bytes = object_bytes(value)
        elif kind is Tensor:
            held_bytes = len(kept_alive(value))
            if held_bytes > 2 * len(value.data) + 4_096:  # a small part of a large frame
                alone = Tensor(value.dtype, value.shape, memoryview(bytes(value.data)))
                stream.last = msgspec.structs.replace(reading, value=alone)
                held_bytes = len(value.data)
            held_bytes += TENSOR_BYTES
        else:
            held_bytes = weight_bytes(value)
        held_bytes += _context_bytes(reading)
        if held_bytes != stream.held_bytes:
            stream.held_bytes = held_bytes
            self._rows.add(stream.payer, stream, held_bytes)
            while self._rows.shares.total > limits.MAX_CACHE_BYTES:
                self.forget(self._rows.next_to_go())

    def forget(self, stream: Stream) -> None:
        """Give up the value of a stream."""
        self._rows.remove(stream)
        stream.last, stream.how, stream.held_bytes, stream.size = None, None, 0, -1

    def charge(self, stream: Stream) -> None:
        """Note that ``stream.payer`` has changed."""
        self._rows.move(stream, stream.payer)


def _context_bytes(reading: Reading) -> int:
    """What key and context of a reading hold."""
    how = reading.how
    size_bytes = _READING_BYTES + object_bytes(reading.key) + object_bytes(reading.origin)
    size_bytes += object_bytes(how.sensor) + object_bytes(how.unit) + object_bytes(how.calibration)
    if how.lineage:
        size_bytes += object_bytes(how.lineage) + sum(map(object_bytes, how.lineage))
    return size_bytes
