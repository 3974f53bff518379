"""When to repeat what others probably know: the Trickle timer of RFC 6206.

The interval doubles from the smallest to the largest as long as everything is consistent, and is the smallest again
after a reset. In each interval there is one time to speak, drawn from its second half. Suppression (section 4.2,
rule 4) is left to the caller. Ours speaks over links, to one neighbour at a time, so it counts what it heard from each
neighbour separately.
"""

from random import Random

from protocols.base.time import NEVER


class Trickle:
    """One timer. It does not run until :meth:`start`."""

    def __init__(self, min_ns: int, max_ns: int, random: Random) -> None:
        self._min_ns, self._max_ns, self._random = min_ns, max_ns, random
        self._length_ns = min_ns
        self._speak_ns = self._end_ns = NEVER
        self.interval = 0
        """The number of the current interval."""

    @property
    def due_ns(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return min(self._speak_ns, self._end_ns)

    def start(self, now: int) -> None:
        """Begin the smallest interval."""
        self._begin(self._min_ns, now)

    def stop(self) -> None:
        """Stop the timer, because there is nobody to speak to."""
        self._speak_ns = self._end_ns = NEVER

    def reset(self, now: int) -> None:
        """Begin the smallest interval again, because something is inconsistent. This does nothing when the interval is
        the smallest already, or when the timer is stopped."""
        if self._length_ns > self._min_ns and self._end_ns != NEVER:
            self._begin(self._min_ns, now)

    def handle_timer(self, now: int) -> bool:
        """Advance the timer to ``now``, and return whether it is time to speak."""
        speak = now >= self._speak_ns
        if speak:
            self._speak_ns = NEVER
        if now >= self._end_ns:
            self._begin(min(2 * self._length_ns, self._max_ns), now)
        return speak

    def _begin(self, length_ns: int, now: int) -> None:
        self._length_ns = length_ns
        self._speak_ns = now + int(length_ns * self._random.uniform(0.5, 1.0))
        self._end_ns = now + length_ns
        self.interval += 1
