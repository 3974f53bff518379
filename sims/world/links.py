"""The links between the nodes of a world: who is in good range of whom, and what faults do to them.

Two nodes are in good range of one another when both share a backbone, or when at least nine of ten frames get through
by air with their retries, and no fault cuts or loses anything between them.
"""

from collections.abc import Sequence
from typing import Final

from sims.media.media import Media
from sims.scenario.file import Scenario
from sims.virtual.pipes import Pipes

_GOOD_SHARE: Final = 0.9


class WorldLinks:
    """All links of one world, by numbers of nodes."""

    def __init__(self, scenario: Scenario, media: Media, pipes: Pipes) -> None:
        self._media, self._radio, self._pipes = media, media.radio, pipes
        self._names: Sequence[str] = scenario.names
        self._cut: dict[tuple[int, int], int] = {}
        """How many faults cut a pair."""
        self._lossy: set[tuple[int, int]] = set()
        self._clogged: set[tuple[int, int]] = set()
        self._near: list[list[int]] = [[] for _ in self._names]
        self._near_names: list[list[str]] = [[] for _ in self._names]
        self._known = [False] * len(self._names)
        """By node: whether the last result of :meth:`near` is still right."""
        self._least_share: float = 1 - (1 - _GOOD_SHARE) ** (1 / (scenario.radio.retries + 1))
        self._wires = bool(scenario.backbone)
        self._wired = [
            frozenset(number for number, backbone in enumerate(scenario.backbone) if group.name in backbone.groups)
            for group in scenario.groups
            for _ in range(group.count)
        ]
        self._choose_way()

    def near(self, number: int) -> list[int]:
        """The nodes in good range of one node, in order. It is the same list as long as they stay the same. The caller
        must not change it."""
        if not self._known[number]:
            self._known[number] = True
            near = [other for other in self._media.neighbours(number) if self._good(number, other)]
            if near != self._near[number]:
                self._near[number] = near
                self._near_names[number] = [self._names[other] for other in near]
        return self._near[number]

    def near_names(self, number: int) -> list[str]:
        """As :meth:`near`, by names."""
        self.near(number)
        return self._near_names[number]

    def moved(self, touched: list[int]) -> None:
        """The places have changed. ``touched``: nodes that may be near others than before."""
        for number in touched:
            self._known[number] = False

    def _good(self, one: int, other: int) -> bool:
        if self._cut or self._lossy:
            for pair in ((one, other), (other, one)):
                if pair in self._cut or pair in self._lossy:
                    return False
        if self._wires and self._wired[one] & self._wired[other]:
            return True
        return self._radio.delivery_share(one, other) >= self._least_share  # the same both ways

    # --- faults ----------------------------------------------------------------------------------------------------
    def cut(self, sender: int, receiver: int) -> None:
        """Nothing passes from one to the other until :meth:`uncut` was called as often as this."""
        pair = sender, receiver
        self._cut[pair] = self._cut.get(pair, 0) + 1
        self._media.cut(sender, receiver)
        self._changed()

    def uncut(self, sender: int, receiver: int) -> None:
        """Takes back one :meth:`cut`."""
        pair = sender, receiver
        if self._cut.get(pair, 0) > 1:
            self._cut[pair] -= 1
        else:
            self._cut.pop(pair, None)
        self._media.uncut(sender, receiver)
        self._changed()

    def lose(self, sender: int, receiver: int, share: float) -> None:
        """A share of the frames one way is lost, in addition to what the air loses; 0 ends it."""
        if share:
            self._lossy.add((sender, receiver))
        else:
            self._lossy.discard((sender, receiver))
        self._media.lose(sender, receiver, share)
        self._changed()

    def clog(self, sender: int, receiver: int, delay_ns: int) -> None:
        """Everything one way takes this much longer; 0 ends it."""
        if delay_ns:
            self._clogged.add((sender, receiver))
        else:
            self._clogged.discard((sender, receiver))
        self._media.clog(sender, receiver, delay_ns)
        self._choose_way()

    def _changed(self) -> None:
        self._known = [False] * len(self._near)
        self._choose_way()

    def _choose_way(self) -> None:
        """Let pipes use the radio directly while there are no wires and no faults, so that they need not look at each
        frame which medium it takes."""
        plain = not (self._wires or self._cut or self._lossy or self._clogged)
        self._pipes.radio = self._radio if plain else None
