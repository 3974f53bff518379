"""Who is within range of whom: nodes by square cells as wide as the range, so that only nine cells are looked at.

Cells are made anew in one pass whenever nodes have moved; neighbours are found when they are asked for, and kept until
the next move.
"""

from sims.links import Places


class Cells:
    """See the module."""

    def __init__(self, places: Places, range_m: float) -> None:
        self._places, self._range_m = places, range_m
        self._cell_m = range_m * 1.000001
        """A little wider, for a distance that is rounded to the range may be longer than it."""
        self._members: dict[tuple[float, float], list[int]] = {}
        self._around: dict[tuple[float, float], list[int]] = {}
        """By cell: the members of it and of those that touch it, in order."""
        self._neighbours: dict[int, list[int]] = {}
        self.moved()

    def moved(self) -> None:
        """Everybody may be somewhere else."""
        self._neighbours.clear()
        self._around.clear()
        members: dict[tuple[float, float], list[int]] = {}
        places, cell_m = self._places, self._cell_m
        for node, (x_m, y_m, present) in enumerate(zip(places.xs_m, places.ys_m, places.present, strict=True)):
            if present:
                cell = x_m // cell_m, y_m // cell_m
                if cell in members:
                    members[cell].append(node)
                else:
                    members[cell] = [node]
        self._members = members

    def neighbours(self, node: int) -> list[int]:
        """Nodes within range of ``node``, in order; none when it is not on the map."""
        known = self._neighbours.get(node)
        if known is None:
            known = self._neighbours[node] = self._find(node) if self._places.present[node] else []
        return known

    def _find(self, node: int) -> list[int]:
        xs_m, ys_m, range_m, cell_m = self._places.xs_m, self._places.ys_m, self._range_m, self._cell_m
        x_m, y_m = xs_m[node], ys_m[node]
        cell = x_m // cell_m, y_m // cell_m
        around = self._around.get(cell)
        if around is None:
            around = self._around[cell] = self._touching(cell)
        squared = range_m * range_m
        return [
            other
            for other in around
            if (dx_m := xs_m[other] - x_m) * dx_m + (dy_m := ys_m[other] - y_m) * dy_m <= squared and other != node
        ]

    def _touching(self, cell: tuple[float, float]) -> list[int]:
        column, row = cell
        members = self._members
        cells = [(column + across, row + along) for across in (-1, 0, 1) for along in (-1, 0, 1)]
        return sorted(node for cell in cells for node in members.get(cell, ()))
