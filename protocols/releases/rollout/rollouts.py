"""The rollouts of one node: which releases it fetches, tries and serves, and what it says of them.

An order travels in the metadata and what canaries say travels by gossip, so a rollout goes on, is halted and is taken
back without the relay. Each path is followed by itself (:mod:`protocols.releases.rollout.following`), so a release that
is stuck holds up no other. What decides about an order is in :mod:`protocols.releases.rollout.tally`.

What authors other than the canaries of an order say is kept for people to look at and never counted.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from msgspec import Struct

from protocols.base import limits
from protocols.base.ids import NodeId, Role
from protocols.base.time import NEVER
from protocols.machine import HeardEntry
from protocols.releases.catalogue import MAX_ORDERS, Listed, Order
from protocols.releases.events import Measures, ReleaseState, RolloutState
from protocols.releases.rollout.cohorts import follows_path, is_in_cohort
from protocols.releases.rollout.following import Following, PathState, RolloutEffect
from protocols.releases.rollout.health import readable_health
from protocols.releases.rollout.reporting import Progress, Reporting
from protocols.releases.rollout.tally import CountState, Decision, Tally
from protocols.wire.releases import ReportedRelease

MAX_PATHS: Final = 64
"""Paths that a node keeps in mind."""


class RolloutsState(Struct, frozen=True, kw_only=True):
    """What a node must keep over a restart."""

    format: int = 1
    is_clean: bool = False
    """Whether the node stopped in an orderly way after this was written. Otherwise what it tried may have ended it."""
    paths: tuple[PathState, ...] = ()
    counts: tuple[CountState, ...] = ()


class FollowedPath(Struct, frozen=True):
    """One path at this node, for people."""

    path: str
    current: int
    """The release that is served; 0: the model of the node's own file, or none."""
    before: int
    """The release to which the node would go back."""
    pinned: int | None
    orders: tuple[tuple[int, int, str, str, str], ...]
    """Serial, release, decision and count of each order for this node, and how far the node has got with it."""


def _everywhere(path: str) -> bool:
    return True


def _shown(decision: Decision) -> str:
    """A decision as people are told it: an order that silence stops is halted too, and its count says why."""
    return str(Decision.HALTED if decision is Decision.SILENT else decision)


class Rollouts:
    """All rollouts at one node. ``now`` is always in monotonic nanoseconds, and does not go back.

    ``follows`` has key expressions of paths, as in ``models/plate`` or ``models/*``. ``share_hash`` returns 8 bytes or
    more. ``may_install`` says whether the table of access lets this node have the releases of a path.
    """

    def __init__(
        self,
        node: NodeId,
        role: Role,
        labels: Collection[str],
        follows: Collection[str],
        share_hash: Callable[[bytes], bytes],
        may_install: Callable[[str], bool] = _everywhere,
    ) -> None:
        self._node, self._role, self._labels, self._follows = node, role, frozenset(labels), frozenset(follows)
        self._share_hash, self._may_install = share_hash, may_install
        self._paths: dict[str, Following] = {}
        self._orders: dict[int, Order] = {}
        self._tallies: dict[int, Tally] = {}
        self._kept_counts: dict[tuple[int, int], CountState] = {}
        self._decisions: dict[int, Decision] = {}
        self._listed: dict[str, frozenset[int]] = {}
        self._is_expired = self._is_informed = False
        self._bodies: dict[NodeId, bytes] = {}
        self._events: list[ReleaseState | RolloutState] = []
        self._reporting = Reporting()
        self._due_ns = NEVER
        self._health_malformed = 0
        self.revision = 0
        """It grows whenever :meth:`state` has something new to keep."""

    # --- over a restart ----------------------------------------------------------------------------------------------
    def restored(self, state: RolloutsState, now: int) -> None:
        """Take what a former life of the node kept, before anything else."""
        for kept in state.paths[:MAX_PATHS]:
            self._following(kept.path).restore(kept, state.is_clean, now)
        self._kept_counts = {(kept.serial, kept.counter): kept for kept in state.counts[:MAX_ORDERS]}

    def state(self, now: int, is_clean: bool = False) -> RolloutsState:
        """What to keep over a restart."""
        counts = {(kept.serial, kept.counter): kept for kept in (tally.state(now) for tally in self._tallies.values())}
        counts = {**self._kept_counts, **counts}
        return RolloutsState(
            is_clean=is_clean,
            paths=tuple(following.state(now) for following in self._paths.values()),
            counts=tuple(counts.values()),
        )

    # --- what metadata says ------------------------------------------------------------------------------------------
    def orders(self, orders: Collection[Order], now: int, listed: Collection[int] | None = None) -> None:
        """Take the orders of the newest verified metadata that were read. ``listed`` has the serials of all that it
        lists; None: all of them were read.

        An order that is listed no longer is over. While one can't be read, its former version counts. After a restart
        there is none, and then its path waits, so that an order below it does not take over for a moment.
        """
        read = {order.serial: order for order in orders}
        serials = sorted(read if listed is None else listed, reverse=True)[:MAX_ORDERS]
        known = {serial: read.get(serial) or self._orders.get(serial) for serial in serials}
        self._orders = {serial: order for serial, order in known.items() if order is not None}
        unread = frozenset(serial for serial, order in known.items() if order is None)
        mine = [order for order in self._orders.values() if self._is_for_me(order)]
        self._tallies = {order.serial: self._tally(order, now) for order in mine}
        self._kept_counts = {key: kept for key, kept in self._kept_counts.items() if kept.serial in unread}
        waiting = {
            path
            for path, following in self._paths.items()
            if any(adoption.serial in unread for adoption in following.adoptions())
        }
        self._is_informed = not waiting
        for path in sorted(({order.path for order in mine} | self._paths.keys()) - waiting):
            self._follow(path, now)
        self._conclude(now)

    def _is_for_me(self, order: Order) -> bool:
        return follows_path(order.path, self._follows) and is_in_cohort(
            order, self._node, self._role, self._labels, self._share_hash
        )

    def _tally(self, order: Order, now: int) -> Tally:
        tally = self._tallies.get(order.serial)
        if tally is not None and tally.is_about(order):
            tally.renew(order, now)
        else:
            tally = Tally(order, now, self._kept_counts.get((order.serial, order.counter)))
            for author, body in self._bodies.items():
                self._count(tally, order, author, body)
        return tally

    def _count(self, tally: Tally, order: Order, author: NodeId, body: bytes) -> bool:
        if author not in order.canaries or (health := readable_health(body)) is None:
            return False
        verdicts = 0
        for said in health.releases:
            if (said.serial, said.counter) == (order.serial, order.counter):
                verdicts |= said.verdicts
        return tally.say(author, verdicts)

    def _follow(self, path: str, now: int) -> None:
        following = self._following(path)
        orders = [order for serial, order in self._orders.items() if order.path == path and serial in self._tallies]
        if orders and not self._may_install(path):
            self._events.append(ReleaseState(path, orders[0].counter, "refused", "forbidden"))
            orders = []
        following.follow(tuple((order, self._tallies[order.serial]) for order in orders), now)

    def _following(self, path: str) -> Following:
        following = self._paths.get(path)
        if following is None:
            following = self._paths[path] = Following(path, self._node)
            following.prepared.is_expired = self._is_expired
            following.prepared.listed = self._listed.get(path, frozenset())
        return following

    def releases(self, releases: Collection[Listed], now: int) -> None:
        """Take all releases of the newest verified metadata. One that it lists no longer is not begun any more; who
        serves it goes on until an order says otherwise."""
        listed: dict[str, set[int]] = {}
        for release in releases:
            listed.setdefault(release.path, set()).add(release.counter)
        self._listed = {path: frozenset(counters) for path, counters in listed.items()}
        for path, following in self._paths.items():
            following.prepared.listed = self._listed.get(path, frozenset())
        self._advance_all(now)

    def expired(self, is_expired: bool, now: int) -> None:
        """Whether the metadata has expired: then nothing new is begun, and what is served goes on."""
        if is_expired != self._is_expired:
            self._is_expired = is_expired
            for following in self._paths.values():
                following.prepared.is_expired = is_expired
            self._advance_all(now)

    # --- what others say ---------------------------------------------------------------------------------------------
    def heard(self, entry: HeardEntry, now: int) -> None:
        """Take an entry of kind ``rollout``."""
        if readable_health(entry.body) is None:
            self._health_malformed += 1
            return
        self._bodies.pop(entry.author, None)
        if len(self._bodies) >= limits.MAX_ENTRIES:
            del self._bodies[next(iter(self._bodies))]
        self._bodies[entry.author] = entry.body
        for serial, tally in self._tallies.items():
            order = self._orders[serial]
            if self._count(tally, order, entry.author, entry.body):
                self._advance(self._paths[order.path], now)

    # --- what the driver says ----------------------------------------------------------------------------------------
    def complete(self, path: str, counter: int, now: int) -> None:
        """All chunks of one of :meth:`wanted` are held."""
        if (following := self._paths.get(path)) is not None:
            following.completed(counter, now)
            self._advance(following, now)

    def incomplete(self, path: str, counter: int, now: int) -> None:
        """The other answer to ``StageRelease``: chunks are missing after all. The release is fetched further, and
        :meth:`complete` is to be told again."""
        if (following := self._paths.get(path)) is not None:
            following.incomplete(counter, now)
            self._advance(following, now)

    def unfit(self, path: str, counter: int, failure: str, now: int) -> None:
        """One of :meth:`wanted` can't be fetched here. ``failure`` begins with its reason, as for :meth:`staged`."""
        if (following := self._paths.get(path)) is not None:
            following.prepared.refused(counter, failure, now)
            self._advance(following, now)

    def staging(self, path: str, counter: int, now: int) -> None:
        """The driver begins with ``StageRelease``. The time in which that waited for others was no fault of it."""
        if (following := self._paths.get(path)) is not None:
            following.prepared.begun(counter, now)
            self._advance(following, now)

    def staged(self, path: str, counter: int, failure: str, now: int) -> None:
        """The answer to ``StageRelease``. A failure begins with its reason, as in ``no_room: 12 MB are free``."""
        following = self._following(path)
        following.staged(counter, failure, now)
        self._advance(following, now)

    def serving(self, path: str, counter: int, failure: str, now: int) -> None:
        """The answer to ``ServeRelease``. It may also come unasked: at the start, with the release that is served (0 is
        the model of the node's own file, or none), and with a failure when that can't be served any more."""
        following = self._following(path)
        following.serving(counter, failure, now)
        self._advance(following, now)

    def not_shadowed(self, path: str, counter: int, failure: str, now: int) -> None:
        """The answer to ``ShadowRelease`` when the release can't be shadowed."""
        if (following := self._paths.get(path)) is not None:
            following.not_shadowed(counter, failure, now)
            self._advance(following, now)

    def installed(self, path: str, counters: Collection[int], now: int) -> None:
        """These releases are on the disk, at the start. Those that nothing needs are dropped: a former life may have
        ended between that decision and the drop."""
        following = self._following(path)
        following.prepared.found(counters, now)
        self._advance(following, now)

    def measured(self, path: str, counter: int, measures: Measures, now: int) -> None:
        """What was measured since ``ShadowRelease`` or ``ServeRelease``. It comes every few seconds, with zeros too."""
        if (following := self._paths.get(path)) is not None:
            following.measured(counter, measures, now)
            self._advance(following, now)

    def pin(self, path: str, counter: int | None, now: int) -> None:
        """The operator of the node wants this release served whatever the orders say; None: no more."""
        following = self._following(path)
        following.pin(counter, now)
        self._advance(following, now)

    # --- time --------------------------------------------------------------------------------------------------------
    def handle_timer(self, now: int) -> None:
        """Do what is due."""
        if now < self._due_ns:
            return
        for following in self._paths.values():
            if now >= following.due_ns():
                following.advance(now)
        self._conclude(now)

    def next_timer_at(self) -> int:
        """When :meth:`handle_timer` has to be called at the latest."""
        return self._due_ns

    def _advance_all(self, now: int) -> None:
        for following in self._paths.values():
            following.advance(now)
        self._conclude(now)

    def _advance(self, following: Following, now: int) -> None:
        following.advance(now)
        self._conclude(now)

    def _conclude(self, now: int) -> None:
        """Note what has changed. A halt that began with silence is told once, also when verdicts bear it out later."""
        self.revision += 1
        decisions = {serial: tally.decide(now) for serial, tally in self._tallies.items()}
        for serial, tally in self._tallies.items():
            before, state = self._decisions.get(serial), _shown(decisions[serial])
            if before is None or _shown(before) != state:
                order = self._orders[serial]
                self._events.append(RolloutState(serial, order.path, order.counter, state, str(tally)))
        self._decisions = decisions
        self._due_ns = min((following.due_ns() for following in self._paths.values()), default=NEVER)
        if self._is_informed:  # after a restart the orders come a moment later
            self._due_ns = min(self._due_ns, self._reporting.take(self._progress(), now))

    # --- results -----------------------------------------------------------------------------------------------------
    def wanted(self) -> frozenset[tuple[str, int]]:
        """The releases whose chunks are to be fetched. Tell :meth:`complete` of each whose chunks are all held."""
        return frozenset(
            (path, counter) for path, following in self._paths.items() for counter in following.prepared.wanted()
        )

    def kept(self) -> frozenset[tuple[str, int]]:
        """The releases whose chunks and files must stay."""
        return frozenset((path, counter) for path, following in self._paths.items() for counter in following.kept())

    def outgoing(self) -> list[RolloutEffect]:
        """Effects decided since the last call."""
        effects: list[RolloutEffect] = []
        for following in self._paths.values():
            if following.effects:
                effects += following.effects
                following.effects = []
        return effects

    def events(self) -> list[ReleaseState | RolloutState]:
        """Events since the last call."""
        events, self._events = self._events, []
        for following in self._paths.values():
            if following.events:
                events += following.events
                following.events = []
        return events

    def serves(self, path: str) -> int:
        """The release that is served; 0: the model of the node's own file, or none."""
        return self._paths[path].current if path in self._paths else 0

    def is_judging(self, path: str, counter: int) -> bool:
        """Whether measures of a release are of any use now. Drivers need not take others."""
        return path in self._paths and self._paths[path].is_judging(counter)

    def decision(self, serial: int) -> Decision | None:
        """What this node concludes about an order; None: it is not for this node."""
        return self._decisions.get(serial)

    def followed(self, now: int) -> tuple[FollowedPath, ...]:
        """All paths, for people."""
        return tuple(self._view(following, now) for _, following in sorted(self._paths.items()))

    def _view(self, following: Following, now: int) -> FollowedPath:
        steps = {adoption.serial: following.step_of(adoption) for adoption in following.adoptions()}
        orders = tuple(
            (serial, self._orders[serial].counter, _shown(tally.decide(now)), str(tally), steps.get(serial, ""))
            for serial, tally in self._tallies.items()
            if self._orders[serial].path == following.path
        )
        return FollowedPath(following.path, following.current, following.before, following.pinned, orders)

    def reports(self, serial: int) -> dict[NodeId, ReportedRelease]:
        """The newest that each node said of an order, canaries or not. Nobody needs to believe it."""
        found = {}
        for author, body in self._bodies.items():
            health = readable_health(body)
            for said in health.releases if health is not None else ():
                if said.serial == serial:
                    found[author] = said
        return found

    def counters(self) -> dict[str, int]:
        """Counters by name."""
        return {"health_malformed": self._health_malformed}

    # --- what this node says -----------------------------------------------------------------------------------------
    def health_body(self) -> bytes | None:
        """The body of the entry of kind ``rollout`` to sign, once for each change; None: the last one still holds."""
        return self._reporting.body()

    def _progress(self) -> Iterator[Progress]:
        for following in self._paths.values():
            for adoption in following.adoptions():
                order = self._orders.get(adoption.serial)
                is_canary = order is not None and self._node in order.canaries
                is_open = order is not None and order.state in ("running", "paused")
                yield Progress(adoption, following.step_of(adoption), is_canary, is_open)
