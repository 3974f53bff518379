"""The simplest plan: the newest release of each path that the node follows is staged, and then served at once."""

from collections.abc import Collection, Sequence

from protocols.base.effects import Effect, Event
from protocols.base.keys import matches
from protocols.base.time import NEVER
from protocols.machine import HeardEntry
from protocols.releases.catalogue import Listed, Order
from protocols.releases.events import Measures, ReleaseState, ServeRelease, StageRelease


class Newest:
    """A :class:`protocols.releases.machine.ReleasePlan` that looks at no orders."""

    def __init__(self, follow: Sequence[str]) -> None:
        self._follow = tuple(follow)
        self._newest: dict[str, int] = {}
        self._effects: list[Effect] = []
        self._events: list[Event] = []

    def releases(self, releases: Collection[Listed], now: int) -> None:
        """Take in what the metadata lists."""
        self._newest = {}
        for listed in releases:
            if any(matches(expression, listed.path) for expression in self._follow):
                self._newest[listed.path] = max(listed.counter, self._newest.get(listed.path, 0))

    def orders(self, orders: Collection[Order], now: int) -> None:
        """Ignore orders."""

    def expired(self, is_expired: bool, now: int) -> None:
        """Ignore it: what is fetched already may be served."""

    def heard(self, entry: HeardEntry, now: int) -> None:
        """Ignore what others say."""

    def complete(self, path: str, counter: int, now: int) -> None:
        """Stage what is complete."""
        self._effects.append(StageRelease(path, counter))

    def staged(self, path: str, counter: int, failure: str, now: int) -> None:
        """Serve what was staged."""
        self._events.append(ReleaseState(path, counter, "failed" if failure else "staged", failure))
        if not failure:
            self._effects.append(ServeRelease(path, counter))

    def serving(self, path: str, counter: int, failure: str, now: int) -> None:
        """Say that it is served."""
        self._events.append(ReleaseState(path, counter, "failed" if failure else "serving", failure))

    def measured(self, path: str, counter: int, measures: Measures, now: int) -> None:
        """Ignore what was measured."""

    def wanted(self) -> Collection[tuple[str, int]]:
        """The newest release of each path."""
        return list(self._newest.items())

    def handle_timer(self, now: int) -> None:
        """Do nothing."""

    def next_timer_at(self) -> int:
        """Nothing is ever due."""
        return NEVER

    def outgoing(self) -> Sequence[Effect]:
        """Effects decided since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def events(self) -> Sequence[Event]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def health_body(self) -> bytes | None:
        """It says nothing."""
        return None
