"""Where each node counts as being, and who is within range of whom.

A node counts as being where it was when it last *moved*: when it came, vanished, or got further than a step from where
it counted as being before. Everything that follows from distances is made of these places and of no others. It is
therefore the same both ways and whenever it is asked for, and need not be made anew five times a second for a node that
has gone two metres.

Nodes are kept by square cells as wide as the range, so that only nine cells are looked at. Neighbours are found when
they are asked for. While few nodes move, only what they come to and what they leave is corrected. When many move,
everything is found anew. A list of neighbours that stays equal stays the same object.
"""

from bisect import insort
from typing import Final

from sims.media.contract import Places

_FEW: Final = 0.25
"""When more than this share of all nodes moves, everything is found anew. Correcting what one node touches costs two
looks at nine cells; finding anew costs one look for each node that is asked for."""

_Cell = tuple[float, float]


class Cells:
    """The places of all nodes, by cells."""

    def __init__(self, places: Places, range_m: float, step_m: float = 0.0) -> None:
        self._places, self._range_m = places, range_m
        self._step_m = step_m
        self._cell_m = range_m * 1.000001
        """A little wider than the range, because a distance that is rounded to the range may be longer than it."""
        self.xs_m, self.ys_m, self.present = places.xs_m[:], places.ys_m[:], places.present[:]
        """Where each node counts as being, and whether it is on the map."""
        self.movers: list[int] = []
        """The nodes that moved by the last call of :meth:`moved`, in order."""
        self._members: dict[_Cell, list[int]] = {}
        self._around: dict[_Cell, list[int]] = {}
        """By cell: the members of it and of the cells that touch it, in order."""
        self._neighbours: dict[int, list[int]] = {}
        self._find_all()

    def moved(self) -> list[int]:
        """Take in that the places may have changed. Returns the nodes that moved and all nodes in whose range they were
        or are, in order."""
        movers = self.movers = self._look()
        nodes = len(self.xs_m)
        if len(movers) > _FEW * nodes:
            for node in movers:
                self._follow(node)
            self._find_all()
            return list(range(nodes))
        touched = set(movers)
        for node in movers:
            self._shift(node, touched)
        return sorted(touched)

    def neighbours(self, node: int) -> list[int]:
        """The nodes within range of ``node``, in order; none when it is not on the map. The caller must not change the
        list."""
        known = self._neighbours.get(node)
        if known is None:
            known = self._neighbours[node] = self._find(node)
        return known

    def _look(self) -> list[int]:
        places, squared = self._places, self._step_m * self._step_m
        now_xs_m, now_ys_m, now_present = places.xs_m, places.ys_m, places.present
        xs_m, ys_m, present = self.xs_m, self.ys_m, self.present
        movers = []
        for node in range(len(xs_m)):
            dx_m, dy_m = now_xs_m[node] - xs_m[node], now_ys_m[node] - ys_m[node]
            if dx_m * dx_m + dy_m * dy_m > squared or now_present[node] != present[node]:
                movers.append(node)
        return movers

    def _follow(self, node: int) -> None:
        places = self._places
        self.xs_m[node], self.ys_m[node] = places.xs_m[node], places.ys_m[node]
        self.present[node] = places.present[node]

    def _find_all(self) -> None:
        cell_m = self._cell_m
        self._neighbours.clear()
        self._around.clear()
        members: dict[_Cell, list[int]] = {}
        for node, (x_m, y_m, present) in enumerate(zip(self.xs_m, self.ys_m, self.present, strict=True)):
            if present:
                members.setdefault((x_m // cell_m, y_m // cell_m), []).append(node)
        self._members = members

    def _shift(self, node: int, touched: set[int]) -> None:
        before = self.neighbours(node)
        was = self._cell(node) if self.present[node] else None
        self._follow(node)
        now = self._cell(node) if self.present[node] else None
        if was != now:
            if was is not None:
                self._members[was].remove(node)
                if not self._members[was]:  # or there would be one for each place that anybody has ever been at
                    del self._members[was]
                self._forget_around(was)
            if now is not None:
                self._members.setdefault(now, []).append(node)
                self._forget_around(now)
        after = self._find(node)
        touched.update(before)
        if before == after:
            return
        touched.update(after)
        self._neighbours[node] = after
        gone, come = set(before), set(after)
        for other in before:
            known = self._neighbours.get(other)
            if other not in come and known is not None:
                self._neighbours[other] = [near for near in known if near != node]
        for other in after:
            known = self._neighbours.get(other)
            if other not in gone and known is not None:
                known = known[:]
                insort(known, node)
                self._neighbours[other] = known

    def _cell(self, node: int) -> _Cell:
        return self.xs_m[node] // self._cell_m, self.ys_m[node] // self._cell_m

    def _forget_around(self, cell: _Cell) -> None:
        for touching in _touching(cell):
            self._around.pop(touching, None)

    def _find(self, node: int) -> list[int]:
        if not self.present[node]:
            return []
        xs_m, ys_m, range_m = self.xs_m, self.ys_m, self._range_m
        x_m, y_m = xs_m[node], ys_m[node]
        cell = self._cell(node)
        around = self._around.get(cell)
        if around is None:
            members = self._members
            around = sorted([member for touching in _touching(cell) for member in members.get(touching, ())])
            self._around[cell] = around
        squared = range_m * range_m
        return [
            other
            for other in around
            if (dx_m := xs_m[other] - x_m) * dx_m + (dy_m := ys_m[other] - y_m) * dy_m <= squared and other != node
        ]


def _touching(cell: _Cell) -> list[_Cell]:
    """A cell and the eight cells around it."""
    column, row = cell
    return [(column + across, row + along) for across in (-1.0, 0.0, 1.0) for along in (-1.0, 0.0, 1.0)]
