"""Virtual time: what is due, and in which order.

Time never goes back, and what is due at one instant is called in the order in which it was scheduled. Nothing here
depends on the wall clock, on hash order or on threads, so that a seed names one history exactly.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Final

from protocols.base import limits

_Due = tuple[int, int, Callable[[Any], None], Any]
"""The instant, the position among all calls, the handler, and its argument."""
_SLICE_NS: Final = limits.MS


class Timeline:
    """The agenda of a simulation. Calls that are due within the present slice of time are on a heap. Later calls are in
    lists, one for each slice, because one heap of all calls would be spread all over memory."""

    def __init__(self) -> None:
        self.now = 0
        """Virtual nanoseconds since the start."""
        self._soon: list[_Due] = []
        self._slice = -1
        self._later: dict[int, list[_Due]] = {}
        self._slices: list[int] = []
        self._scheduled = 0

    def push(self, due_ns: int, handler: Callable[[Any], None], argument: Any) -> None:
        """Call ``handler(argument)`` at ``due_ns``."""
        self._scheduled += 1
        due = due_ns, self._scheduled, handler, argument
        number = due_ns // _SLICE_NS
        if number <= self._slice:
            heappush(self._soon, due)
            return
        later = self._later.get(number)
        if later is not None:
            later.append(due)
        else:
            self._later[number] = [due]
            heappush(self._slices, number)

    def at(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Call ``action()`` after a delay."""
        self.push(self.now + delay_ns, _call, action)

    def _next_slice(self) -> None:
        self._slice = heappop(self._slices)
        self._soon.extend(self._later.pop(self._slice))
        heapify(self._soon)


def _call(action: Callable[[], None]) -> None:
    action()
