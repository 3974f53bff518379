"""Whether readings came in order, each once: the part of that check that looks at every delivery."""

from collections.abc import Sequence

from protocols.messages import Reading
from sims.node import Arrival


class Order:
    """What one life of a node was given."""

    def __init__(self) -> None:
        self.newest: dict[str, dict[str, int]] = {}
        """Of each origin and key: the largest sequence that came."""

    def take(self, arrivals: Sequence[Arrival]) -> list[Reading]:
        """Look at what came, in this order. Returns what is not newer than what came before; it is not taken."""
        late = []
        for _, origin, sequence, reading in arrivals:
            newest = self.newest.get(origin)
            if newest is None:
                newest = self.newest[origin] = {}
            key = reading.key
            before = newest.get(key, -1)
            if sequence > before:
                newest[key] = sequence
            else:
                late.append(reading)
        return late
