"""What the faults of a tape do to frames: partitions, losses one way and clogs, laid over the model of the air.

As in the simulator the strongest of a kind holds while faults overlap. The other faults of an emulation happen to
processes, see :mod:`sims.emulator.run`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from sims.scenario import Fault

ON_THE_AIR = frozenset({"partition", "one-way-loss", "clog"})
_MS = 1_000_000
_SECOND = 1_000_000_000
_FOR_EVER_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class _Disturbance:
    from_ns: int
    until_ns: int
    pairs: frozenset[tuple[int, int]]
    loss: float
    delay_ns: int


class Disturbances:
    """Asked for every frame: costs one comparison while nothing is disturbed."""

    def __init__(self, names: Sequence[str], tape: Sequence[Fault], random: Random) -> None:
        """``tape``: as :func:`sims.faults.plan` makes it, victims by their own names. Faults that are not on the air
        are passed over."""
        self._random = random
        numbers = {name: number for number, name in enumerate(names)}
        self._all = [_disturbance(numbers, fault) for fault in tape if fault.kind in ON_THE_AIR]
        self._now: dict[tuple[int, int], tuple[float, int]] = {}
        self._next_change_ns = 0

    def delay_ns(self, sender: int, receiver: int, now_ns: int) -> int | None:
        """On top of what the air takes; None: the frame is lost."""
        if now_ns >= self._next_change_ns:
            self._change(now_ns)
        if not self._now:
            return 0
        loss, delay_ns = self._now.get((sender, receiver), (0.0, 0))
        return None if loss and self._random.random() < loss else delay_ns

    def _change(self, now_ns: int) -> None:
        self._now = {}
        for disturbance in self._all:
            if disturbance.from_ns <= now_ns < disturbance.until_ns:
                for pair in disturbance.pairs:
                    loss, delay_ns = self._now.get(pair, (0.0, 0))
                    self._now[pair] = max(loss, disturbance.loss), max(delay_ns, disturbance.delay_ns)
        edges = [edge for d in self._all for edge in (d.from_ns, d.until_ns) if edge > now_ns]
        self._next_change_ns = min(edges, default=_FOR_EVER_NS)


def _disturbance(numbers: Mapping[str, int], fault: Fault) -> _Disturbance:
    pairs = {(numbers[near], numbers[far]) for near in fault.nodes for far in fault.others if near != far}
    if fault.kind == "partition":
        pairs |= {(far, near) for near, far in pairs}
    from_ns = int(fault.at_s * _SECOND)
    until_ns = from_ns + int(fault.for_s * _SECOND) if fault.for_s else _FOR_EVER_NS
    loss = {"partition": 1.0, "one-way-loss": fault.share}.get(fault.kind, 0.0)
    delay_ns = int(fault.delay_ms * _MS) if fault.kind == "clog" else 0
    return _Disturbance(from_ns, until_ns, frozenset(pairs), loss, delay_ns)
