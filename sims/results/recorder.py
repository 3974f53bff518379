"""Takes notes while a run goes on, and makes a :class:`~sims.results.result.Result` of them. Simulator and emulator use
the same recorder.

Invariants: memory does not grow with the length of a run beyond the bounds below. ``Result.left_out`` says what a bound
cuts. Nothing depends on chance or on the wall clock, so equal histories give equal results.

Places are kept every second, or as often as ``MAX_PLACES`` allows. Some messages of ``TRACED_NODES`` nodes are followed
to everybody who gets them. When they are too many, every second one is forgotten, and from then on half as many are
followed, so that they always cover the whole run.
"""

from collections import deque
from collections.abc import Sequence
from math import ceil
from typing import Final

from protocols.inference.events import PartReport
from sims.results.goodput import Goodput
from sims.results.histogram import Histogram
from sims.results.parts import Parts
from sims.results.result import (
    RESULT_VERSION,
    CheckTally,
    Dissemination,
    Distances,
    Happening,
    Message,
    NodeInfo,
    Result,
)
from sims.scenario.file import Fault, Scenario

SECOND_NS: Final = 1_000_000_000
MAX_PLACES: Final = 120_000
"""The number of points that are kept in all: 200 nodes for ten minutes, 1.5 MB of result."""
MAX_FRAMES: Final = 1_800
LEAST_FRAMES: Final = 60
"""A map that is played needs at least this many frames. When these are too many points, fewer nodes are on it."""
MAX_HAPPENINGS_OF_KIND: Final = 1_000
"""The newest of each kind are kept, so that a thousand meetings don't push out the one crash."""
MAX_KINDS: Final = 64
MAX_DETAILS: Final = 10
MAX_DETAIL_CHARS: Final = 300
TRACED_NODES: Final = 12
MAX_MESSAGES: Final = 1_500
MAX_ARRIVALS: Final = 30_000
MAX_ENTRIES: Final = 96
"""The number of gossip entries that are followed: those that the scenario puts in, then the first others."""
RELEASE: Final = "release"
"""Stands for the author of what is followed of a release as entries are, as in ``release/fetched``."""
MAX_SAMPLES: Final = 1_200
"""The number of samples of the channel load, and of meetings, that cover a run."""
_FINEST_NS: Final = 100_000_000
DISTANCE_BINS: Final = 80
"""Bins of 25 m up to 2 km; the last one also holds everything beyond."""
_BIN_M: Final = 25.0


class Recording:
    """Implements :class:`~sims.results.result.Recorder`. ``now`` is nanoseconds since the start of the run."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._names = scenario.names
        self._group = {name: group.name for group in scenario.groups for name in scenario.members(group.name)}
        self._checks: dict[str, CheckTally] = {}
        self._sometimes: dict[str, int] = {}
        self._happenings: dict[str, deque[Happening]] = {}
        self._happened_times: dict[str, int] = {}
        self._latency, self._age, self._discovery, self._inference = (Histogram() for _ in range(4))
        self._inference_by: dict[str, int] = {}
        self._parts = Parts(scenario)
        self._published = 0
        self._distances = Distances(
            _BIN_M, [0] * DISTANCE_BINS, [0] * DISTANCE_BINS, [0] * DISTANCE_BINS, [0] * DISTANCE_BINS
        )
        self._sample_ns = max(1, ceil(scenario.duration_s / MAX_SAMPLES)) * SECOND_NS
        self._meetings_ns = min(self._sample_ns, max(_FINEST_NS, int(scenario.duration_s * SECOND_NS) // MAX_SAMPLES))
        self._load: list[tuple[float, int]] = []
        self._meetings: list[int] = []
        self._places = _Places(self._names, scenario.duration_s)
        self._traces = _Traces(self._names, scenario.duration_s)
        self._entries = _Entries({RELEASE, *(entry.author for entry in scenario.gossip)}, len(self._names))
        self._traced = self._traces.origins
        self.goodput = Goodput(scenario)
        """What is offered and useful; the harness tells it by itself."""
        self.places_every_s = self._places.every_ns / SECOND_NS
        """How often :meth:`placed` keeps a place. Calls in between are ignored."""

    # --- the protocol ----------------------------------------------------------------------------------------------
    def judge(self, check: str, kept: bool, detail: str, now: int, times: int = 1) -> None:
        """Count one judgement of a check, or several alike. The first failures are kept in words."""
        counted = self._checks.get(check)
        if counted is None:
            counted = self._checks[check] = CheckTally()
        if kept:
            counted.passed += times
            return
        counted.failed += times
        if len(counted.details) < MAX_DETAILS:
            counted.details.append(f"{now / SECOND_NS:.3f} s: {detail[:MAX_DETAIL_CHARS]}")
        self._happened("check-failed", now, "", "", f"{check}: {detail}")

    def occurred(self, what: str, now: int, node: str, other: str = "", detail: str = "") -> None:
        """Note something on the timeline."""
        self._sometimes[what] = self._sometimes.get(what, 0) + 1
        self._happened(what, now, node, other, detail)

    def _happened(self, kind: str, now: int, node: str, other: str, detail: str) -> None:
        kept = self._happenings.get(kind)
        if kept is None:
            if len(self._happenings) >= MAX_KINDS:
                return
            kept = self._happenings[kind] = deque(maxlen=MAX_HAPPENINGS_OF_KIND)
            self._happened_times[kind] = 0
        self._happened_times[kind] += 1
        kept.append(Happening(now / SECOND_NS, kind, node, other, detail[:MAX_DETAIL_CHARS]))

    def placed(self, now: int, node: str, x_m: float, y_m: float) -> None:
        """Note where a node is."""
        self._places.add(now, node, x_m, y_m)

    def published(self, now: int, origin: str, key: str, sequence: int) -> None:
        """A reading was published."""
        self._published += 1
        if origin in self._traced:
            self._traces.published(now, origin, key, sequence)

    def delivered(self, now: int, node: str, origin: str, key: str, sequence: int, published: int) -> None:
        """A reading reached a callback. This is hot: it takes less than a microsecond."""
        self._latency.add(now - published)
        if origin in self._traced:
            self._traces.delivered(now, node, origin, key, sequence)

    @property
    def traced(self) -> frozenset[str]:
        """The origins whose readings are followed. For readings of others :meth:`delivered_many` is enough."""
        return self._traced

    def delivered_many(self, latencies_ns: list[int]) -> None:
        """Readings of origins that are not traced reached callbacks."""
        self._latency.add_all(latencies_ns)

    def met(self, now: int, node: str, other: str, possible_since: int) -> None:
        """A node met another."""
        self._discovery.add(now - possible_since)
        self._happened("met", now, node, other, "")
        index = now // self._meetings_ns
        if index <= MAX_SAMPLES:
            while len(self._meetings) <= index:
                self._meetings.append(0)
            self._meetings[index] += 1

    def spread(self, now: int, node: str, author: str, version: int) -> None:
        """A node holds an entry now that it did not hold before."""
        if self._entries.held(now, node, author, version):
            self._happened("entry", now, node, "", f"{author}, version {version}")

    def answered(self, now: int, node: str, by: str, took_ns: int, failure: str = "") -> None:
        """An inference ended. ``by``: as in :class:`~sims.results.result.Recorder`."""
        if failure:
            where = f"failed: {failure[:60]}"
        else:
            self._inference.add(took_ns)
            where = "here" if by in {node, "here", ""} else self._group.get(by, by)
        if where not in self._inference_by and len(self._inference_by) >= MAX_KINDS:
            where = "others"
        self._inference_by[where] = self._inference_by.get(where, 0) + 1

    def divided(self, node: str, model: str, parts: Sequence[PartReport]) -> None:
        """An inference of ``node`` that was divided ended."""
        self._parts.add(node, model, parts)

    def busy(self, now: int, share: float) -> None:
        """Note the mean channel busy ratio."""
        index = now // self._sample_ns
        if index <= MAX_SAMPLES:
            while len(self._load) <= index:
                self._load.append((0.0, 0))
            total, number = self._load[index]
            self._load[index] = (total + share, number + 1)

    def aware(self, distance_m: float, known: bool) -> None:
        """Note of one pair in range whether one knows the other."""
        index = min(int(distance_m / _BIN_M), DISTANCE_BINS - 1)
        self._distances.in_range[index] += 1
        if known:
            self._distances.known[index] += 1

    def wanted(self, distance_m: float, came: bool) -> None:
        """Note of one reading and one subscriber whether it came."""
        index = min(int(distance_m / _BIN_M), DISTANCE_BINS - 1)
        self._distances.wanted[index] += 1
        if came:
            self._distances.delivered[index] += 1

    def aged(self, age_ns: int) -> None:
        """Note the age of the newest reading of one pair."""
        self._age.add(age_ns)

    # --- the result ------------------------------------------------------------------------------------------------
    def result(
        self, harness: str, seed: int, virtual_s: float, wall_s: float, digest: str = "", faults: Sequence[Fault] = ()
    ) -> Result:
        """The result of what was noted so far. The harness fills in the fields that only it knows (versions, figures,
        drops).

        ``faults``: the tape of the run, as :func:`sims.world.faults.plan` makes it.
        """
        latency = self._latency.spread("ms")
        happenings = [happening for kind in self._happenings.values() for happening in kind]
        happenings.sort(key=lambda happening: happening.at_s)  # stable: one instant stays grouped by kind
        result = Result(
            RESULT_VERSION, harness, self._scenario.name, seed, len(self._names), virtual_s, wall_s, digest,
            node_infos=[
                NodeInfo(name, group.role, group.name, group.device)
                for group in self._scenario.groups
                for name in self._scenario.members(group.name)
            ],
            checks=dict(sorted(self._checks.items())),
            sometimes=dict(sorted(self._sometimes.items())),
            counters={"published": self._published, "delivered": latency.count},
            latency=latency, age=self._age.spread("ms"), discovery=self._discovery.spread("s"),
            inference=self._inference.spread("ms"), inference_by=dict(sorted(self._inference_by.items())),
            parts=self._parts.runs(), distances=_trimmed(self._distances),
            dissemination=self._entries.disseminations(self._places),
            load_every_s=self._sample_ns / SECOND_NS,
            load=[total / number if number else -1.0 for total, number in self._load], meetings=list(self._meetings),
            meetings_every_s=self._meetings_ns / SECOND_NS,
            places_every_s=self.places_every_s, places=self._places.places,
            faults=list(faults), happenings=happenings, messages=self._traces.messages, left_out=self._left_out(),
        )  # fmt: skip
        self.goodput.fill(result, int(virtual_s * SECOND_NS))
        return result

    def _left_out(self) -> list[str]:
        notes = self._places.left_out()
        for kind, kept in self._happenings.items():
            number = self._happened_times[kind]
            if number > len(kept):
                notes.append(f"{kind}: the newest {len(kept)} of {number} are on the timeline")
        notes += self._traces.left_out(len(self._names)) + self._entries.left_out()
        return notes + self._parts.left_out() + self.goodput.left_out()


class _Places:
    """Where the nodes were, and which of them were there at all."""

    def __init__(self, names: Sequence[str], duration_s: float) -> None:
        chosen = min(len(names), MAX_PLACES // LEAST_FRAMES)
        self._shown = dict.fromkeys(_spread_over(names, chosen))
        self._nodes = len(names)
        frames = max(LEAST_FRAMES, min(MAX_FRAMES, MAX_PLACES // max(1, chosen)))
        self.every_ns = max(1, ceil(duration_s / frames)) * SECOND_NS
        self.places: dict[str, list[list[float] | None]] = {}
        self._first_ns: dict[str, int] = {}
        self._last_ns: dict[str, int] = {}
        self._newest_ns = 0

    def add(self, now: int, node: str, x_m: float, y_m: float) -> None:
        self._first_ns.setdefault(node, now)
        self._last_ns[node] = self._newest_ns = now
        index = now // self.every_ns
        if node not in self._shown or index > MAX_FRAMES:
            return
        track = self.places.setdefault(node, [])
        if len(track) <= index:
            while len(track) < index:
                track.append(None)
            track.append([round(x_m, 1), round(y_m, 1)])

    def there_since(self, instant_ns: int) -> set[str]:
        """The nodes that were there from an instant (or the first sample after it) until the last sample. It is empty
        when there was no sample."""
        last_ns = self._newest_ns - self.every_ns
        first_ns = instant_ns + self.every_ns
        return {
            node for node, last in self._last_ns.items() if last > last_ns and self._first_ns[node] <= first_ns
        }  # only its size and its members are used, never its order

    def left_out(self) -> list[str]:
        notes = []
        if self._nodes > len(self._shown):
            notes.append(f"map: {len(self._shown)} of {self._nodes} nodes, evenly chosen")
        if self.every_ns > SECOND_NS:
            notes.append(f"map: a place every {self.every_ns // SECOND_NS} s")
        return notes


class _Traces:
    """Messages that are followed to all nodes that get them."""

    def __init__(self, names: Sequence[str], duration_s: float) -> None:
        self.origins = frozenset(_spread_over(names, TRACED_NODES))
        self.messages: list[Message] = []
        self._every_ns = int(max(0.1, duration_s * len(self.origins) / MAX_MESSAGES) * SECOND_NS)
        self._first_ns = {
            name: self._every_ns * turn // len(self.origins)  # in turns, so that some message is always on its way
            for turn, name in enumerate(_spread_over(names, TRACED_NODES))
        }
        self._next_ns: dict[tuple[str, str], int] = {}
        self._under_way: dict[tuple[str, str, int], Message] = {}
        self._arrivals = 0

    def published(self, now: int, origin: str, key: str, sequence: int) -> None:
        if now < self._next_ns.get((origin, key), self._first_ns[origin]):
            return
        self._next_ns[origin, key] = now + self._every_ns
        message = Message(now / SECOND_NS, origin, key, sequence)
        self.messages.append(message)
        self._under_way[origin, key, sequence] = message
        if len(self.messages) > MAX_MESSAGES:
            self._thin()

    def delivered(self, now: int, node: str, origin: str, key: str, sequence: int) -> None:
        message = self._under_way.get((origin, key, sequence))
        if message is None:
            return
        message.arrivals.append((node, now / SECOND_NS))
        self._arrivals += 1
        if self._arrivals > MAX_ARRIVALS:
            self._thin()

    def _thin(self) -> None:
        """Forget every second message. The last one stays, whatever it reached: the number of nodes bounds it."""
        self.messages = self.messages[::2]
        self._under_way = {(m.origin, m.key, m.sequence): m for m in self.messages}
        self._arrivals = sum(len(message.arrivals) for message in self.messages)
        self._every_ns *= 2

    def left_out(self, nodes: int) -> list[str]:
        notes = []
        if nodes > len(self.origins):
            notes.append(f"messages: those of {len(self.origins)} of {nodes} nodes are followed")
        if self.messages and self._every_ns > SECOND_NS // 10:
            notes.append(f"messages: one of each key every {self._every_ns / SECOND_NS:.1f} s is followed")
        return notes


class _Entries:
    """How gossip entries spread: for each that is followed, when each node had it or a newer one."""

    def __init__(self, authors: set[str], nodes: int) -> None:
        self._authors = authors
        self._nodes = nodes
        self._held: dict[str, dict[int, dict[str, int]]] = {}
        self._followed = {True: 0, False: 0}
        """How many are followed, by whether the scenario asks for the entry."""
        self._unfollowed = 0

    def held(self, now: int, node: str, author: str, version: int) -> bool:
        """Note that a node holds an entry. Returns whether the entry is new and followed from now on. ``author``: a
        node, or ``<node>/<kind of entry>``."""
        owner, followed = author.partition("/")[0], False
        versions = self._held.setdefault(author, {})
        if version not in versions:
            asked = owner in self._authors
            if self._followed[asked] < MAX_ENTRIES // 2:
                self._followed[asked] += 1
                versions[version] = {}
                followed = True
            elif node == owner:
                self._unfollowed += 1
        for older, holders in versions.items():
            if older <= version:
                holders.setdefault(node, now)
        return followed

    def disseminations(self, places: _Places) -> list[Dissemination]:
        found = [
            (min(holders.values()), author, version, holders)
            for author, versions in self._held.items()
            for version, holders in versions.items()
        ]
        found.sort(key=lambda entry: entry[:3])
        return [self._of(*entry, places) for entry in found]

    def _of(self, made_ns: int, author: str, version: int, holders: dict[str, int], places: _Places) -> Dissemination:
        there = places.there_since(made_ns)
        total = len(there | holders.keys()) if there else max(self._nodes, len(holders))
        times = sorted((held - made_ns) / SECOND_NS for held in holders.values())

        def reached(share: float) -> float | None:
            needed = max(1, ceil(share * total))
            return times[needed - 1] if needed <= len(times) else None

        step = max(1, ceil(len(times) / 60))
        curve = [(round(times[index], 4), index + 1) for index in range(0, len(times), step)]
        if curve and curve[-1][1] != len(times):
            curve.append((round(times[-1], 4), len(times)))
        return Dissemination(
            author, version, reached(0.5), reached(0.9), reached(1.0), len(holders), made_ns / SECOND_NS, total, curve
        )

    def left_out(self) -> list[str]:
        if not self._unfollowed:
            return []
        return [f"dissemination: {self._unfollowed} entries beside those followed"]


def _spread_over(names: Sequence[str], number: int) -> list[str]:
    """Choose ``number`` of ``names``, evenly."""
    if number >= len(names):
        return list(names)
    return [names[index * len(names) // number] for index in range(number)]


def _trimmed(distances: Distances) -> Distances:
    """The same without the empty bins at the end."""
    used = 1 + max((index for index in range(DISTANCE_BINS) if distances.wanted[index] or distances.in_range[index]),
                   default=-1)  # fmt: skip
    return Distances(
        distances.width_m, distances.wanted[:used], distances.delivered[:used], distances.in_range[:used],
        distances.known[:used],
    )  # fmt: skip
