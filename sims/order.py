"""Whether readings came in order, each once: the part of that check that looks at every delivery."""

from collections.abc import Sequence

from sims.node import Arrival, Issue, Series


class Order:
    """What one life of a node was given."""

    def __init__(self) -> None:
        self.newest: dict[Series, int] = {}
        """The largest sequence that came of each."""

    def take(self, arrivals: Sequence[Arrival]) -> list[Issue]:
        """Look at what came, in this order. Returns what is not newer than what came before; it is not taken."""
        late = []
        newest = self.newest
        for _, issue in arrivals:
            if issue.sequence > newest.get(issue.series, -1):
                newest[issue.series] = issue.sequence
            else:
                late.append(issue)
        return late
