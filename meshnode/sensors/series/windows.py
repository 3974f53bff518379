"""Windows of a series: the last rows without a gap, each time that a number of them has come."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_LENGTH: Final = 65_536
"""Rows of a window: a minute at 1 kHz."""
MAX_CHANNELS: Final = 256
MAX_VALUES: Final = 4_000_000
"""Of one window: 16 MB as float32."""


@dataclass(frozen=True, slots=True)
class SeriesWindow:
    """Rows without a gap between them. ``values float32[length, channels]``, oldest first."""

    from_s: float
    to_s: float
    values: "NDArray[Any]"


class Windows:
    """Gathers rows. ``length`` and ``hop`` are rows; a row that comes more than ``gap_s`` after the one before, or
    before it, begins anew, because a model was not trained on seams."""

    def __init__(self, length: int, hop: int, gap_s: float) -> None:
        self._length, self._hop, self._gap_s = length, hop, gap_s
        self._rows: deque[tuple[float, Sequence[float]]] = deque(maxlen=length)
        self._since = 0

    def add(self, time_s: float, row: Sequence[float]) -> SeriesWindow | None:
        """The next row; the window that it completes, if it does."""
        import numpy as np

        if self._rows and not 0 < time_s - self._rows[-1][0] <= self._gap_s:
            self._rows.clear()
            self._since = 0
        self._rows.append((time_s, row))
        if len(self._rows) < self._length:
            return None
        self._since = (self._since + 1) % self._hop
        if self._since != 1 % self._hop:
            return None
        values = np.array([each for _, each in self._rows], np.float32)
        return SeriesWindow(self._rows[0][0], time_s, values)


def shaped(values: "NDArray[Any]", layout: str) -> "NDArray[Any]":
    """A window as a model takes it: ``channels`` is ``[1, channels, length]``, ``times`` is ``[1, length, channels]``,
    ``flat`` is ``[1, channels * length]``, channel by channel."""
    import numpy as np

    if layout == "times":
        return values[None]
    by_channel = np.ascontiguousarray(values.T)
    return by_channel.reshape(1, -1) if layout == "flat" else by_channel[None]
