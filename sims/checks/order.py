"""The order of readings: the part of the check ``readings_in_order_once`` that looks at every delivery."""

from collections.abc import Sequence

from sims.virtual.arrivals import Arrival, Issue, Series


class Newest:
    """The largest sequence of one series that has come."""

    __slots__ = ("sequence",)

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence


class Order:
    """The order in which one life of a node got its readings."""

    def __init__(self) -> None:
        self.newest: dict[Series, Newest] = {}

    def take(self, arrivals: Sequence[Arrival]) -> list[Issue]:
        """Look at what came, in this order. Returns the issues that are not newer than what came before; they are not
        taken."""
        late = []
        newest = self.newest
        for _, issue in arrivals:
            before = newest.get(issue.series)
            if before is None:
                newest[issue.series] = Newest(issue.sequence)
            elif issue.sequence > before.sequence:
                before.sequence = issue.sequence
            else:
                late.append(issue)
        return late
