"""The lanes at which the I/O thread looks every few milliseconds: those that are full, and those that are measured."""

from meshnode.links.express.lane import LOOK_NS, ExpressLane


class Lookout:
    """A lane stays until there is news of it, or until it is closed. I/O thread only."""

    def __init__(self) -> None:
        self.lanes: list[ExpressLane] = []
        self._look_ns = 0

    def add(self, lane: ExpressLane) -> None:
        """Look at a lane from now on."""
        self.lanes.append(lane)

    def news(self, now: int) -> list[ExpressLane]:
        """Look, if it is time. Returns the lanes of which there is news."""
        if now < self._look_ns:
            return []
        self._look_ns = now + LOOK_NS
        lanes, self.lanes = self.lanes, []
        told = []
        for lane in lanes:
            if lane.closed or lane.finished:
                continue
            if lane.is_news(now):
                lane.waits = lane.watched = False
                told.append(lane)
            else:
                self.lanes.append(lane)
        return told
