"""What neighbours are told that this node fetches: when that changes, and now and then in case one has forgotten it."""

from typing import Final

from protocols.base.limits import SECOND
from protocols.base.time import NEVER
from protocols.releases.events import Decisions
from protocols.wire.releases import ContentWanted

_AGAIN_NS: Final = 30 * SECOND


class Naming:
    """What one node has said that it fetches."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._names: tuple[bytes, ...] = ()
        self._due_ns = NEVER

    def greeting(self) -> ContentWanted | None:
        """What a new neighbour is told."""
        return ContentWanted(self._names) if self._names else None

    def tell(self, names: tuple[bytes, ...], now: int) -> None:
        """Tell all neighbours what is fetched, if that has changed."""
        if names != self._names:
            self._tell(names, now)

    def _tell(self, names: tuple[bytes, ...], now: int) -> None:
        self._names, self._due_ns = names, now + _AGAIN_NS if names else NEVER
        self._decisions.messages.append((None, ContentWanted(names)))

    def handle_timer(self, now: int) -> None:
        """Say it again."""
        if now >= self._due_ns:
            self._tell(self._names, now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has something to do."""
        return self._due_ns
