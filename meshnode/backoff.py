"""Pauses between tries of something that the world may mend by itself: a file, a device, an address, a disk."""

from random import Random
from typing import Final

_SHORTENED_BY: Final = 0.25
"""The largest share by which a pause is shortened by chance, so that what failed together is not tried together."""


class Backoff:
    """Each pause is twice as long as the one before, up to a bound. Not thread-safe: its owner sees to that."""

    def __init__(self, first_s: float, longest_s: float, random: Random | None = None) -> None:
        """``random`` draws by how much a pause is shortened, a quarter at most."""
        self._first_s, self._longest_s = first_s, longest_s
        self._random = random or Random()
        self._pause_s = first_s

    def next_s(self) -> float:
        """How long to wait before the next try, in seconds."""
        pause_s, self._pause_s = self._pause_s, min(self._longest_s, 2 * self._pause_s)
        return pause_s * (1 - self._random.random() * _SHORTENED_BY)

    def reset(self) -> None:
        """It has worked: begin with the shortest pause again."""
        self._pause_s = self._first_s
