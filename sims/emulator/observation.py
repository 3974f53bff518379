"""Makes a result of the journals of real nodes: it replays all lines to a recorder, in order of time.

The instants of all journals are of one monotonic clock, so latencies between processes are exact to the microsecond.
Where the nodes were is worked out anew, because mobility follows from the scenario and the seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from protocols.base import limits
from sims.emulator.air.disturbances import Disturbances
from sims.emulator.promises import Promises, passed_over
from sims.media.contract import Places
from sims.media.media import Media
from sims.results.goodput import Heard, sample_ns
from sims.results.recorder import Recording
from sims.scenario.file import Fault, Scenario

Line = tuple[int, str, list[Any]]
"""Nanoseconds since the start of the run, the node, and a line of its journal."""
GOOD_SHARE = 0.9
_LOOK_EVERY_NS = 100 * limits.MS
_SAMPLE_EVERY_NS = limits.SECOND
_SECOND = limits.SECOND
_COUNTED_AS_WANTED_NS = 2 * _SECOND
"""Readings published later than this before the end do not count as wanted, because they may still be under way."""


class Found(Struct):
    """Figures from the journals that the recorder does not keep."""

    drops: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    node_cpu_s: float = 0.0
    """CPU seconds of all nodes that ended in order, from their starts."""
    last_start_s: float = 0.0
    found_all_s: float | None = None
    """Seconds from the last start until every node had an advert of every other; None when not all had."""
    linked_all_s: float | None = None
    """Seconds from the last start until all links were authenticated, both ways; None when not all were."""
    found_pairs: int = 0
    linked_pairs: int = 0
    cpu_at: list[tuple[float, float]] = field(default_factory=list)
    """Pairs of the second of the run and the CPU seconds of all nodes so far, about twice a second."""


def read_journals(journals: Mapping[str, Path], zero_ns: int, until_ns: int) -> list[Line]:
    """All lines up to ``until_ns`` (and the accounts at the end), in order of time. A line that a killed process left
    unfinished is skipped."""
    lines: list[Line] = []
    decoder = msgspec.json.Decoder(list[Any])
    for node, path in journals.items():
        if not path.exists():
            continue
        for raw in path.read_bytes().splitlines():
            try:
                line = decoder.decode(raw)
            except msgspec.DecodeError:
                continue
            at_ns = line[1] - zero_ns
            if at_ns <= until_ns or line[0] == "ended":
                lines.append((at_ns, node, line))
    lines.sort(key=lambda line: line[0])
    return lines


class Observation:
    """Replays the journals of one run."""

    def __init__(
        self, scenario: Scenario, tape: Sequence[Fault], recorder: Recording, places: Places, media: Media,
    ) -> None:  # fmt: skip
        """``places`` and ``media``: as the wire has them, but fresh ones."""
        self.found = Found()
        self._recorder, self._places, self._media = recorder, places, media
        self._goodput = recorder.goodput
        self._disturbances = Disturbances(scenario.names, tape, media)
        self._crashes = sorted(
            ((round(fault.at_s * _SECOND), name) for fault in tape if fault.kind == "crash" for name in fault.nodes),
            reverse=True,
        )
        """When which nodes are killed, the next one last."""
        self._promises = Promises(scenario.names, tape, recorder)
        self._attempts = scenario.radio.retries + 1
        self._backbones = [
            frozenset(number for number, backbone in enumerate(scenario.backbone) if group.name in backbone.groups)
            for group in scenario.groups
            for _ in range(group.count)
        ]
        self._names = scenario.names
        self._number = {name: number for number, name in enumerate(self._names)}
        self._started: dict[str, int] = {}
        """The nodes that run, and since when."""
        self._in_range: dict[tuple[int, int], int] = {}
        self._near_of: dict[int, list[int]] = {}
        self._known: dict[str, dict[str, None]] = {name: {} for name in self._names}
        self._adverts: dict[tuple[str, str], int] = {}
        self._links_open: dict[tuple[str, str], int] = {}
        self._published: dict[tuple[str, str, int], int] = {}
        self._wanted: dict[tuple[str, str, int], dict[str, float]] = {}
        self._wanted_from: dict[str, frozenset[str]] = {}
        self._heard: dict[str, dict[tuple[str, str], Heard]] = {name: {} for name in self._names}
        """By node: what it has heard of each origin and key."""
        self._streams: dict[tuple[str, str, str], int] = {}
        self._cpu: dict[str, float] = {}
        self._cpu_began: dict[str, float] = {}
        self._looked_ns = -_LOOK_EVERY_NS
        self._sampled_ns = -_SAMPLE_EVERY_NS
        self._age_samples = 1

    def replay(self, lines: Sequence[Line], end_ns: int) -> Found:
        """Tell the recorder everything. It is called once."""
        for at_ns, node, line in lines:
            self._look(min(at_ns, end_ns))
            self._tell(max(at_ns, 0), node, line, end_ns)
            self._promises.tell(max(at_ns, 0), node, line)
        self._look(end_ns)
        self._promises.end(end_ns)
        for wanted in self._wanted.values():
            for distance_m in wanted.values():
                self._recorder.wanted(distance_m, False)
        self._judge_pairs(end_ns)
        return self.found

    # --- places ----------------------------------------------------------------------------------------------------
    def _look(self, now_ns: int) -> None:
        while True:
            ages_ns = sample_ns(self._age_samples)
            if min(self._looked_ns + _LOOK_EVERY_NS, ages_ns) > now_ns:
                break
            if ages_ns < self._looked_ns + _LOOK_EVERY_NS:
                self._see_crashes(ages_ns)
                self._sample_ages(ages_ns)
                self._age_samples += 1
            else:
                self._looked_ns += _LOOK_EVERY_NS
                self._look_around(max(self._looked_ns, 0))
        self._see_crashes(now_ns)

    def _look_around(self, now_ns: int) -> None:
        self._see_crashes(now_ns)
        self._places.advance(now_ns)
        self._media.moved(now_ns)
        self._disturbances.advance(now_ns)
        self._see_ranges(now_ns)
        if self._looked_ns - self._sampled_ns >= _SAMPLE_EVERY_NS:
            self._sampled_ns = self._looked_ns
            self._sample(now_ns)

    def _see_crashes(self, now_ns: int) -> None:
        while self._crashes and self._crashes[-1][0] <= now_ns:
            self._started.pop(self._crashes.pop()[1], None)

    def _see_ranges(self, now_ns: int) -> None:
        seen: dict[tuple[int, int], int] = {}
        for node in range(len(self._names)):
            for other in self._near(node):
                seen[node, other] = self._in_range.get((node, other), now_ns)
        self._in_range = seen
        self._near_of = {node: [] for node in range(len(self._names))}
        for node, other in seen:
            self._near_of[node].append(other)

    def _near(self, node: int) -> list[int]:
        """The nodes in good reach of one node. As in the simulator, nine of ten frames arrive, retries included, and no
        fault cuts or loses anything between the two."""
        bad = self._disturbances.bad
        return [
            other
            for other in self._media.neighbours(node)
            if not ((node, other) in bad or (other, node) in bad)
            and (
                self._backbones[node] & self._backbones[other]
                or (self._reaches(node, other) and self._reaches(other, node))
            )
        ]

    def _reaches(self, sender: int, receiver: int) -> bool:
        return 1 - (1 - self._media.radio.delivery_share(sender, receiver)) ** self._attempts >= GOOD_SHARE

    def _sample(self, now_ns: int) -> None:
        places, recorder = self._places, self._recorder
        for number, name in enumerate(self._names):
            if places.present[number]:
                recorder.placed(now_ns, name, places.xs_m[number], places.ys_m[number])
        for number, other in self._in_range:
            node, neighbour = self._names[number], self._names[other]
            if node in self._started and neighbour in self._started:
                recorder.aware(self._distance_m(number, other), neighbour in self._known[node])

    def _sample_ages(self, now_ns: int) -> None:
        for number, node in enumerate(self._names):
            if node not in self._started:
                continue
            newest_ns: dict[str, int] = {}
            for (origin, _), heard in self._heard[node].items():
                newest_ns[origin] = max(newest_ns.get(origin, 0), heard.newest_ns)
            for other in self._near_of.get(number, ()):
                neighbour = self._names[other]
                if neighbour in self._started and self._goodput.expects(number, other):
                    since_ns = max(newest_ns.get(neighbour, 0), self._there_since_ns(node, neighbour, now_ns))
                    self._recorder.aged(max(now_ns - since_ns, 0))

    def _there_since_ns(self, one: str, other: str, now_ns: int) -> int:
        """Since when two nodes have both been running, and in good reach of one another."""
        reach_ns = self._in_range.get((self._number[one], self._number[other]), now_ns)
        return min(max(self._started.get(one, 0), self._started.get(other, 0), reach_ns), now_ns)

    def _distance_m(self, one: int, other: int) -> float:
        places = self._places
        return hypot(places.xs_m[one] - places.xs_m[other], places.ys_m[one] - places.ys_m[other])

    # --- lines -----------------------------------------------------------------------------------------------------
    def _tell(self, now_ns: int, node: str, line: list[Any], end_ns: int) -> None:
        recorder = self._recorder
        match line:
            case ["published", _, str(key), int(sequence), *_]:
                self._publish(now_ns, node, key, sequence, end_ns)
            case ["delivered", _, str(origin), str(key), int(sequence)]:
                self._deliver(now_ns, node, origin, key, sequence)
            case ["found", _, str(other)]:
                self._adverts.setdefault((node, other), now_ns)
            case ["met", _, str(other), *_] if other in self._number:
                self._meet(now_ns, node, other)
            case ["dead" | "left" | "refuted", _, str(other), *_]:
                self._part(now_ns, node, other, line[0])
            case ["refused", _, str(who), str(code), str(_)]:
                recorder.occurred("refusal", now_ns, node, who, code)
            case ["entry_refused", _, str(who), *what]:
                recorder.occurred("entry-refused", now_ns, node, who, ", ".join(map(str, what)))
            case ["entry", _, str(author), str(kind), int(version), *_]:
                recorder.spread(now_ns, node, f"{author}/{kind}", version)
            case ["result" | "answered", *_]:
                self._tell_inference(now_ns, node, line)
            case ["started", _, _, int(cpu_ns)]:
                self._start(now_ns, node, cpu_ns / _SECOND)
            case ["cpu", _, int(cpu_ns)]:
                self._cpu[node] = cpu_ns / _SECOND - self._cpu_began.get(node, 0.0)
                self.found.cpu_at.append((now_ns / _SECOND, sum(self._cpu.values())))
            case ["ended", _, _, int(cpu_ns), dict(statistics), list(drops), _]:
                self._end(node, cpu_ns / _SECOND, statistics, drops)
            case _:
                pass

    def _tell_inference(self, now_ns: int, node: str, line: list[Any]) -> None:
        match line:
            case ["result", _, int(_), str(by), int(took_ns), str(failure), _]:
                self._recorder.answered(now_ns, node, by, took_ns, failure)
            case ["answered", _, str(by), int(_), "", list(runs)]:
                passed = passed_over(runs, by)
                if passed is not None:
                    what = "fallback" if by == node else "failover"
                    self._recorder.occurred(what, now_ns, node, by, ": ".join(passed))
            case _:
                pass

    def _start(self, now_ns: int, node: str, cpu_s: float) -> None:
        self._started[node] = now_ns
        self._known[node].clear()
        self._cpu_began[node] = cpu_s
        self.found.last_start_s = now_ns / _SECOND
        for pair in [pair for pair in self._adverts if node in pair]:
            del self._adverts[pair]
        for pair in [pair for pair in self._links_open if node in pair]:
            del self._links_open[pair]
        for stream in [stream for stream in self._streams if node in stream[:2]]:
            del self._streams[stream]

    def _meet(self, now_ns: int, node: str, other: str) -> None:
        self._known[node][other] = None
        self._links_open[node, other] = now_ns
        self._recorder.met(now_ns, node, other, self._there_since_ns(node, other, now_ns))

    def _part(self, now_ns: int, node: str, other: str, how: str) -> None:
        if how != "refuted":
            self._known[node].pop(other, None)
            self._links_open.pop((node, other), None)
        self._recorder.occurred({"dead": "death", "left": "goodbye"}.get(how, "refutation"), now_ns, node, other)

    def _publish(self, now_ns: int, node: str, key: str, sequence: int, end_ns: int) -> None:
        self._published[node, key, sequence] = now_ns
        self._recorder.published(now_ns, node, key, sequence)
        number = self._number[node]
        near = [other for other in self._near_of[number] if self._names[other] in self._started]
        self._goodput.published(now_ns, key, sequence, near)
        if now_ns < end_ns - _COUNTED_AS_WANTED_NS:
            reached = {
                self._names[other]: self._distance_m(number, other)
                for other in near
                if self._wants(self._names[other], key)
            }
            if reached:
                self._wanted[node, key, sequence] = reached

    def subscribed(self, node: str, keys: frozenset[str]) -> None:
        """``keys``: the expressions ``<kind>/*/<topic>`` that a node subscribes to."""
        self._wanted_from[node] = keys

    def _wants(self, node: str, key: str) -> bool:
        kind, _, topic = key.split("/", 2)
        return f"{kind}/*/{topic}" in self._wanted_from.get(node, frozenset())

    def _deliver(self, now_ns: int, node: str, origin: str, key: str, sequence: int) -> None:
        published_ns = self._published.get((origin, key, sequence))
        if published_ns is None:  # its publisher was killed before it could write it down
            return
        stream = node, origin, key
        newest = self._streams.get(stream, -1)
        self._recorder.judge(
            "readings_once_and_in_order", sequence > newest, f"{node} got {key} {sequence} after {newest}", now_ns
        )
        self._streams[stream] = sequence
        self._recorder.delivered(now_ns, node, origin, key, sequence, published_ns)
        heard = self._heard[node].get((origin, key))
        if heard is None:
            heard = self._heard[node][origin, key] = self._goodput.heard(self._number[node], key)
        heard.came(now_ns, sequence, published_ns)
        wanted = self._wanted.get((origin, key, sequence))
        if wanted is not None:
            distance_m = wanted.pop(node, None)
            if distance_m is not None:
                self._recorder.wanted(distance_m, True)
            if not wanted:
                del self._wanted[origin, key, sequence]

    def _end(self, node: str, cpu_s: float, statistics: Mapping[str, int], drops: Sequence[Sequence[Any]]) -> None:
        found = self.found
        found.node_cpu_s += cpu_s - self._cpu_began.get(node, 0.0)
        for name, value in statistics.items():
            found.counters[name] = found.counters.get(name, 0) + value
        for _, _, reason, count in drops:
            found.drops[reason] = found.drops.get(reason, 0) + count

    # --- at the end ------------------------------------------------------------------------------------------------
    def _judge_pairs(self, end_ns: int) -> None:
        """Judge whether all nodes that could know one another did, and since when."""
        found = self.found
        pairs = list(self._pairs_in_range())
        adverts = [self._adverts[pair] for pair in pairs if pair in self._adverts]
        linked = [self._links_open[pair] for pair in pairs if pair in self._links_open]
        found.found_pairs, found.linked_pairs = len(adverts), len(linked)
        last_ns = max(self._started.values(), default=0)
        if pairs and len(adverts) == len(pairs):
            found.found_all_s = max(0, max(adverts) - last_ns) / _SECOND
        if pairs and len(linked) == len(pairs):
            found.linked_all_s = max(0, max(linked) - last_ns) / _SECOND

    def _pairs_in_range(self) -> Iterator[tuple[str, str]]:
        for number, other in self._in_range:
            node, neighbour = self._names[number], self._names[other]
            if node in self._started and neighbour in self._started:
                yield node, neighbour
