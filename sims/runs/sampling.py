"""Takes samples of a run, because looking at everything would cost more than running it.

Once a virtual second it looks at the checks' samples, places, the channel, and ``WATCHED`` nodes, evenly spread over
the names: whom of those in range they know, and how old the newest reading is that they have of each. It follows one
reading a second of these nodes to every subscriber in range.
"""

import math
from collections.abc import Sequence
from typing import Final

from protocols.base import limits
from sims.checks.contract import SAMPLE_INTERVAL_NS, overridden
from sims.media.airtime import WINDOW_NS
from sims.results.goodput import Heard, sample_ns
from sims.results.recorder import Recording
from sims.scenario.file import Fixed, Lattice
from sims.virtual.arrivals import Arrival, Series
from sims.virtual.node import SimNode
from sims.world.world import World

WATCHED: Final = 64
"""As many as an emulation can have, so that both harnesses look at the same pairs."""
_LOOKS_PER_S: Final = 300
"""The number of looks in a virtual second at who has come into range, at most five for each node. In a large mesh it is
therefore known less precisely since when two nodes could have met."""
_GRACE_NS: Final = limits.SECOND
"""A reading that has not come by then, or within its lifespan, counts as not delivered."""


class _Probe:
    __slots__ = ("came", "sequence", "subscribers", "until_ns")

    def __init__(self, sequence: int, subscribers: dict[int, float], until_ns: int) -> None:
        self.sequence, self.subscribers, self.until_ns = sequence, subscribers, until_ns
        self.came: dict[int, None] = {}


class _Origin:
    """What has to be known of a node that publishes readings."""

    __slots__ = ("last", "newest", "traced")

    def __init__(self, traced: bool) -> None:
        self.traced = traced
        self.newest: _Probe | None = None
        """The reading that is followed in this second …"""
        self.last: _Probe | None = None
        """… and the one of the second before."""


class Sampler:
    """Looks at a world while it runs."""

    def __init__(self, world: World, recording: Recording) -> None:
        self._world, self._driver, self._recording = world, world.driver, recording
        self._radio = world.media.radio
        self._xs_m, self._ys_m = world.places.xs_m, world.places.ys_m
        step = max(len(world.names) / WATCHED, 1.0)
        chosen = [int(number * step) for number in range(min(len(world.names), WATCHED))]
        self._watched = {world.names[number]: number for number in chosen}
        self._goodput = recording.goodput
        self._heard: list[dict[Series, Heard]] = [{} for _ in world.names]
        """By node: what it has heard of each series."""
        self._origins = [_Origin(name in recording.traced) for name in world.names]
        """What is known of each node as an origin, by number."""
        for number, name in enumerate(world.names):
            world.driver.numbered[number].followed = name in self._watched or name in recording.traced
        self._near: list[list[int]] = [[] for _ in world.names]
        """By node: who was near it at the last look."""
        self._samples = 0
        self._shares: list[float] = []
        """Shares of the channel's time that was busy, as watched nodes heard it since the last sample."""
        scenario = world.scenario
        self._pairs_change = (
            any(not isinstance(group.mobility, Fixed | Lattice) for group in scenario.groups)
            or bool(scenario.faults)
            or scenario.random_faults is not None
        )
        self._pairs_interval_ns = max(len(world.names) * limits.SECOND // _LOOKS_PER_S, 200 * limits.MS)
        self._on_sampled = overridden(world.checks, "sampled")
        self._places_ns = int(recording.places_every_s * limits.SECOND)

    def begin(self) -> None:
        """Schedule the samples. To be called once, at the start of the run."""
        self._look_at_pairs(None)
        self._driver.push(0, self._listen, None)
        self._driver.push(0, self._sample, None)

    # --- readings --------------------------------------------------------------------------------------------------
    def published(self, node: SimNode, key: str, sequence: int) -> None:
        """Count to whom a reading is offered, and follow the first one of a watched node in each second."""
        world, numbered = self._world, self._driver.numbered
        near = [other for other in world.near(node.number) if numbered[other].running]
        self._goodput.published(self._driver.now, key, sequence, near)
        origin = self._origins[node.number]
        if origin.newest is not None or node.name not in self._watched:
            return
        subscribers = {other: self._distance_m(node.number, other) for other in near if world.wants(other, key)}
        origin.newest = _Probe(sequence, subscribers, self._driver.now + _GRACE_NS)

    def _judge(self) -> None:
        """Judge what was published in the second before the last: whether it came in time."""
        for number in self._watched.values():
            origin = self._origins[number]
            probe = origin.last
            if probe is not None:
                for other, distance_m in probe.subscribers.items():
                    self._recording.wanted(distance_m, other in probe.came)
            origin.last, origin.newest = origin.newest, None

    def delivered(self, node: SimNode, arrivals: Sequence[Arrival]) -> None:
        """Arrivals at a node. This is hot."""
        origins, heard_of, latencies_ns = self._origins, self._heard[node.number], []
        for at_ns, issue in arrivals:
            published_ns = issue.published_ns
            if published_ns < 0:
                published_ns = at_ns
            else:
                heard = heard_of.get(issue.series)
                if heard is None:
                    heard = heard_of[issue.series] = self._goodput.heard(node.number, issue.series.key)
                heard.came(at_ns, issue.sequence, published_ns)
            if not issue.followed:
                latencies_ns.append(at_ns - published_ns)
                continue
            origin = origins[issue.number]
            if origin.traced:
                series = issue.series
                self._recording.delivered(at_ns, node.name, series.origin, series.key, issue.sequence, published_ns)
            else:
                latencies_ns.append(at_ns - published_ns)
            probe = origin.newest
            if probe is None or probe.sequence != issue.sequence:
                probe = origin.last
            if probe is not None and probe.sequence == issue.sequence and at_ns <= probe.until_ns:
                probe.came[node.number] = None
        self._recording.delivered_many(latencies_ns)

    def _distance_m(self, one: int, other: int) -> float:
        dx_m, dy_m = self._xs_m[one] - self._xs_m[other], self._ys_m[one] - self._ys_m[other]
        return math.sqrt(dx_m * dx_m + dy_m * dy_m)  # compiled, hypot() is far slower

    # --- once a second ---------------------------------------------------------------------------------------------
    def _sample(self, _: None) -> None:
        now = self._driver.now
        self._driver.settle()
        self._driver.push(now + SAMPLE_INTERVAL_NS, self._sample, None)
        self._judge()
        for hook in self._on_sampled:
            hook(now)
        if now % self._places_ns == 0:
            self._note_places(now)
        if self._shares:
            self._recording.busy(now, sum(self._shares) / len(self._shares))
            self._shares.clear()
        self._samples += 1
        self._driver.push(now + sample_ns(self._samples) % limits.SECOND, self._look_at_neighbours, None)

    def _listen(self, _: None) -> None:
        """Look at the channel once in each window in which airtimes are added up. Sources keep their periods, so one
        look a second would always see the same of them."""
        now = self._driver.now
        self._driver.push(now + WINDOW_NS, self._listen, None)
        for number in self._watched.values():
            self._shares.append(self._radio.busy_share(number, now))

    def _note_places(self, now: int) -> None:
        places = self._world.places
        for number, name in enumerate(self._world.names):
            if places.present[number] and self._driver.numbered[number].running:
                self._recording.placed(now, name, places.xs_m[number], places.ys_m[number])

    def _look_at_neighbours(self, _: None) -> None:
        """Look at neighbours once in each second, at another part of it each time: see :meth:`_listen`."""
        world, now = self._world, self._driver.now
        for name, number in self._watched.items():
            if not world.running(name):
                continue
            node = self._driver.numbered[number]
            self._driver.look(node)
            newest_ns = self._newest_of(number)
            for other in world.near(number):
                neighbour = self._driver.numbered[other]
                if not neighbour.running:
                    continue
                self._recording.aware(self._distance_m(number, other), node.engine.membership.is_alive(neighbour.name))
                if self._goodput.expects(number, other):
                    since_ns = max(newest_ns.get(neighbour.name, 0), world.there_since_ns(node, neighbour))
                    self._recording.aged(max(now - since_ns, 0))

    def _newest_of(self, number: int) -> dict[str, int]:
        """By origin: when the newest of its readings that came to a node was published."""
        newest_ns: dict[str, int] = {}
        for series, heard in self._heard[number].items():
            if heard.newest_ns > newest_ns.get(series.origin, -1):
                newest_ns[series.origin] = heard.newest_ns
        return newest_ns

    def _look_at_pairs(self, _: None) -> None:
        """Note since when nodes are in good range of one another. When no node moves and nothing goes wrong, one call
        is enough."""
        world, now = self._world, self._driver.now
        since_ns = world.near_since_ns
        for number, before in enumerate(self._near):
            near = world.near(number)
            if near is not before:
                for other in near:
                    if other > number and other not in before:
                        since_ns[number, other] = now
                for other in before:
                    if other > number and other not in near:
                        since_ns.pop((number, other), None)
                self._near[number] = near
        if self._pairs_change:
            self._driver.push(now + self._pairs_interval_ns, self._look_at_pairs, None)
