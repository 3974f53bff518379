"""What the faults of a tape do to the air, in real time: partitions, losses one way and clogs, set on the medium.

As in the simulator, the strongest of a kind holds at a place while faults overlap. The other faults of an emulation
happen to processes, see :mod:`sims.emulator.hosts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.base.limits import MS, SECOND
from sims.media.contract import Overlay
from sims.scenario.file import Fault

ON_THE_AIR: Final = frozenset({"partition", "one-way-loss", "clog"})
_FOR_EVER_NS: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class _Disturbance:
    fault: Fault
    pairs: tuple[tuple[int, int], ...]
    from_ns: int
    until_ns: int


class Disturbances:
    """Plays a tape on an overlay. :meth:`advance` costs one comparison while nothing changes."""

    def __init__(self, names: Sequence[str], tape: Sequence[Fault], overlay: Overlay) -> None:
        """``tape``: as :func:`sims.world.faults.plan` makes it, with every victim by its own name. Faults that don't
        happen to the air are skipped."""
        numbers = {name: number for number, name in enumerate(names)}
        self._overlay = overlay
        self._all = [_disturbance(fault, numbers) for fault in tape if fault.kind in ON_THE_AIR]
        edges = {edge for each in self._all for edge in (each.from_ns, each.until_ns)}
        self._edges_ns = sorted(edges, reverse=True)
        self.bad: frozenset[tuple[int, int]] = frozenset()
        """Pairs of a sender and a receiver between which frames are lost now because of a fault."""

    def advance(self, now_ns: int) -> None:
        """Begin and end the faults that have come due."""
        if not self._edges_ns or self._edges_ns[-1] > now_ns:
            return
        while self._edges_ns and self._edges_ns[-1] <= now_ns:
            self._edges_ns.pop()
        overlay = self._overlay
        overlay.clear()
        cuts: set[tuple[int, int]] = set()
        losses: dict[tuple[int, int], float] = {}
        delays_ns: dict[tuple[int, int], int] = {}
        for each in self._all:
            if not each.from_ns <= now_ns < each.until_ns:
                continue
            for pair in each.pairs:
                match each.fault.kind:
                    case "partition":
                        overlay.cut(*pair)
                        cuts.add(pair)
                    case "one-way-loss":
                        losses[pair] = max(losses.get(pair, 0.0), each.fault.share)
                    case _:
                        delays_ns[pair] = max(delays_ns.get(pair, 0), round(each.fault.delay_ms * MS))
        for pair, share in losses.items():
            overlay.lose(*pair, share)
        for pair, delay_ns in delays_ns.items():
            overlay.clog(*pair, delay_ns)
        self.bad = frozenset(cuts | losses.keys())


def _disturbance(fault: Fault, numbers: Mapping[str, int]) -> _Disturbance:
    pairs = [(numbers[near], numbers[far]) for near in fault.nodes for far in fault.others if near != far]
    if fault.kind == "partition":
        pairs += [(far, near) for near, far in pairs]
    from_ns = round(fault.at_s * SECOND)
    until_ns = from_ns + round(fault.for_s * SECOND) if fault.for_s else _FOR_EVER_NS
    return _Disturbance(fault, tuple(dict.fromkeys(pairs)), from_ns, until_ns)
