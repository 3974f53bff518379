"""Records of a simulation: which nodes make any, what becomes of each, and whether the account adds up.

Curator, ledger, uplink and frames are those of real nodes; the other modules of this folder stand for what is around
them. A node makes records of its own readings, at most one of a key in ``curation.interval_s``, and of what its rules
derive.

Beside the ledgers there is an account that covers all lives of a node: the records that were made, those that the relay
acknowledged to the node, and those that were lost with a disk. :meth:`Records.complaints` compares ledger, relay and
account. The account grows with the records of a run, by about 300 bytes each.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import assert_never

from protocols.base import limits
from protocols.base.errors import BoundExceeded, MeshError, StorageError
from protocols.base.ids import MonotonicNs, NodeId, UtcNs
from protocols.base.keys import matches
from protocols.base.time import NEVER
from protocols.readings.events import Put
from protocols.readings.publication import checked_publication
from protocols.records.curated import Curated
from protocols.records.curation import CurationOutput, Curator, Pattern, ReadingDerived, RecordChosen
from protocols.records.ledger import Ledger
from protocols.records.pending import OWN
from protocols.records.rules import CurationRule
from protocols.records.wanted import HistoryWanted, PredictionWanted
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import Reading
from sims.media.contract import RelayLinks
from sims.results.histogram import Histogram
from sims.results.result import Recorder, RuleOutcome
from sims.scenario.file import Scenario
from sims.virtual.arrivals import Arrival
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.records.disk import Disk
from sims.world.records.relay import Content, Relay
from sims.world.records.rules import OWN_RULE, NodeRules
from sims.world.records.uplink import SimUplink

_STATES = ("delivered", "expired", "evicted", "refused")
_LONG_NS = 10 * limits.SECOND
"""A record that waited longer than an exchange may take was made while the relay was out of reach."""


class _Host:
    """The records of one node over all its lives."""

    __slots__ = ("curator", "disk", "disk_lost", "ended", "expressions", "known", "ledger", "lost", "made", "patterns",
                 "reaches", "timer_ns", "told", "underived", "unwritten", "uplink", "wanted")  # fmt: skip

    def __init__(self, expressions: tuple[str, ...]) -> None:
        self.curator = Curator(())
        self.patterns: Sequence[Pattern] = ()
        """The rules of the present or last life."""
        self.expressions = expressions
        """Key expressions of the readings of neighbours that its rules want …"""
        self.wanted: dict[str, bool] = {}
        """… and whether they do, by key."""
        self.underived = 0
        """Readings that rules derived and that could not be published."""
        self.timer_ns = NEVER
        """When the curator is asked next, by the clock of its node."""
        self.disk = Disk()
        self.ledger: Ledger | None = None
        """The ledger of the present or last life."""
        self.uplink: SimUplink | None = None
        self.made = 0
        self.unwritten = 0
        """Readings that never became records, because the disk was full or they were too large."""
        self.told: dict[int, None] = {}
        """Sequences that the relay acknowledged, as far as the node learned."""
        self.ended = dict.fromkeys(_STATES, 0)
        """Records that had ended, by state, in ledgers that were lost with their disks."""
        self.disk_lost = 0
        """Records that waited on a disk that was lost."""
        self.lost: dict[int, None] = {}
        """Sequences of records that were on a lost disk, or whose fate was, and of which the relay may know."""
        self.known = 0
        """How many of its records the relay has."""
        self.reaches: bool | None = None


class Records:
    """The records of all nodes that send any."""

    def __init__(
        self, scenario: Scenario, driver: SimDriver, links: RelayLinks, recorder: Recorder, random: Random,
        plant: Callable[[Ledger | Relay | Curator], None],
        published: Callable[[SimNode, str, Put, int], None],
    ) -> None:  # fmt: skip
        """``plant`` plants bugs, see :mod:`sims.world.bugs`. ``published`` is called with each reading that
        rules derive and a node publishes.

        :raises ScenarioError: when its rules can't be used.
        """
        curation = scenario.curation
        own = CurationRule(
            OWN_RULE, "**", int(curation.interval_s * limits.SECOND), lifespan_ms=int(curation.lifespan_s * 1_000)
        )  # fmt: skip
        self._choosing = (own,) if curation.own_readings else ()
        self.rules = NodeRules(scenario)
        self._published = published
        self._driver, self._links, self._recorder, self._random = driver, links, recorder, random
        self._plant, self._max_records = plant, curation.max_records
        self._hosts = {
            name: _Host(self.rules.expressions(name))
            for group in scenario.groups if group.relay for name in scenario.members(group.name)
        }  # fmt: skip
        self._relay = Relay(self._stored)
        self._outcomes: dict[str, RuleOutcome] = {}
        """By rule: what the relay has of it, and what became of readings in lives that are over."""
        self._on_stored: Sequence[Callable[[str, str, Reading], None]] = ()
        plant(self._relay)
        self._took = Histogram()
        self._answered = self._unanswered = self._late = 0

    def __contains__(self, name: str) -> bool:
        """Whether a node makes records."""
        return name in self._hosts

    # --- at the node -----------------------------------------------------------------------------------------------
    def begin(self, node: SimNode) -> None:
        """A life begins with what is on its disk."""
        host = self._hosts.get(node.name)
        if host is None:
            return
        ledger = host.ledger = host.disk.read_ledger(self._max_records)
        self._plant(ledger)
        self._count_readings(host, self._outcomes)
        host.patterns = self.rules.of(NodeId(node.name))
        host.curator, host.timer_ns = Curator(self._choosing, host.patterns), NEVER
        self._plant(host.curator)
        host.uplink = SimUplink(self._driver, self._links, self._relay, self._random, node, host.disk, ledger, self)
        host.uplink.begin()

    def expressions(self, name: str) -> tuple[str, ...]:
        """Key expressions of the readings that the rules of a node want from its neighbours."""
        return self._hosts[name].expressions if name in self._hosts else ()

    def hear(self, node: SimNode, arrivals: Sequence[Arrival]) -> None:
        """Readings reached a node whose rules want some of neighbours."""
        host = self._hosts[node.name]
        heard = []
        for _, issue in arrivals:
            key = issue.series.key
            if key not in host.wanted:
                host.wanted[key] = any(matches(expression, key) for expression in host.expressions)
            if host.wanted[key] and issue.series.origin != node.name:
                heard.append(issue.reading)
        if heard:  # its engine is at work, and rules may publish
            self._driver.when_awake(node, self._driver.now, self._consider_all, (node, heard))

    def _consider_all(self, heard: tuple[SimNode, Sequence[Reading]]) -> None:
        node, readings = heard
        for reading in readings:
            self.consider(node, reading)

    def consider(self, node: SimNode, reading: Reading) -> None:
        """A node that makes records published a reading or got one from a neighbour."""
        host = self._hosts[node.name]
        if host.ledger is not None:
            now = MonotonicNs(node.local(self._driver.now))
            utc_now = UtcNs(now + node.utc_less_mono_ns)
            self._perform(node, host, host.curator.receive(reading, reading.origin == node.name, now, utc_now))

    def _handle_timer(self, node: SimNode) -> None:
        host = self._hosts[node.name]
        host.timer_ns = NEVER
        self._perform(node, host, host.curator.handle_timer(MonotonicNs(node.local(self._driver.now))))

    def _perform(self, node: SimNode, host: _Host, outputs: Sequence[CurationOutput]) -> None:
        for output in outputs:
            match output:
                case RecordChosen():
                    self._put(node, host, output)
                case ReadingDerived():
                    self._publish(node, host, output)
                case HistoryWanted():  # simulated nodes keep none
                    host.curator.recalled(output.number, (), True)
                case PredictionWanted():  # nor do rules of theirs reach a model
                    now = MonotonicNs(node.local(self._driver.now))
                    self._perform(node, host, host.curator.predicted(output, None, "not_predicted", now))
                case _:
                    assert_never(output)
        due_ns = host.curator.next_timer_at()
        if due_ns < host.timer_ns:
            host.timer_ns = due_ns
            self._driver.when_awake(
                node, max(node.virtual(due_ns), self._driver.now), self._handle_timer, node
            )  # fmt: skip

    def _put(self, node: SimNode, host: _Host, chosen: RecordChosen) -> None:
        assert host.ledger is not None, "its node lives"
        assert host.uplink is not None, "its node lives"
        now = self._driver.now
        utc_ns = UtcNs(node.local(now) + node.utc_less_mono_ns)
        try:
            origin = chosen.reading.origin
            record = Curated(
                chosen.rule, encode_reading(chosen.reading), chosen.priority, chosen.lifespan_ms,
                OWN if origin == node.name else origin,
            )  # fmt: skip
            sequence = host.disk.put(host.ledger, record, utc_ns, now)
        except (StorageError, BoundExceeded):
            host.unwritten += 1
            return
        host.made += 1
        self._driver.note((now, node.number, "record", sequence))
        host.uplink.wake()

    def _publish(self, node: SimNode, host: _Host, derived: ReadingDerived) -> None:
        now = self._driver.now
        try:
            publication = checked_publication(
                derived.key, derived.how, derived.where, derived.priority, derived.lifespan_ms
            )
            put = self._driver.publish_at(node, publication, derived.value, None)
        except MeshError:
            host.underived += 1
            return
        self._driver.note((now, node.number, "derived", derived.rule, derived.key, derived.value))
        self._published(node, derived.key, put, now)
        self.consider(node, Reading(
            derived.key, node.name, put.sequence, derived.value, derived.where, derived.when, derived.how,
            derived.priority, derived.lifespan_ms,
        ))  # fmt: skip

    # --- lives and faults ------------------------------------------------------------------------------------------
    def lose_disk(self, name: str) -> None:
        """The disk of a node is lost, so that its next life begins without records."""
        host = self._hosts.get(name)
        if host is None or host.ledger is None:
            return
        ledger = host.ledger
        statistics = ledger.statistics()
        for state in _STATES:
            host.ended[state] += statistics[state]
        host.disk_lost += statistics["pending"]
        if ledger.introduced:
            host.lost.update(dict.fromkeys(entry.sequence for entry in ledger.entries()))
            for fate in ledger.fates():
                host.lost.update(dict.fromkeys(range(fate.first, fate.last + 1)))
        was_full, host.disk = host.disk.full, Disk()
        host.disk.full = was_full

    def full_disk(self, name: str, full: bool) -> None:
        """Say whether nothing can be written to the disk of a node."""
        if name in self._hosts:
            self._hosts[name].disk.full = full

    def relay(self, up: bool) -> None:
        """Say whether the relay answers. It keeps what it has stored."""
        if up:
            self._relay.start()
        else:
            self._relay.stop()

    # --- what the relay and uplinks tell ---------------------------------------------------------------------------
    def hook(self, stored: Sequence[Callable[[str, str, Reading], None]]) -> None:
        """Each function is called with each record that the relay has for the first time: its node, the name of its
        rule, and the reading."""
        self._on_stored = stored

    def _stored(self, node: str, rule: str, reading: Reading, size_bytes: int) -> None:
        outcome = self._outcomes.setdefault(rule, RuleOutcome())
        outcome.records += 1
        outcome.size_bytes += size_bytes
        for told in self._on_stored:
            told(node, rule, reading)

    def taken(self, node: SimNode) -> None:
        """See :class:`sims.world.records.uplink.Watch`."""
        host, now = self._hosts[node.name], self._driver.now
        stored = self._relay.stored(node.name)
        for sequence in stored[host.known :]:
            waiting = host.disk.records.get(sequence)
            self._driver.note((now, node.number, "stored", sequence))
            if waiting is not None:
                self._took.add(now - waiting.made_ns)
                self._late += now - waiting.made_ns > _LONG_NS
        host.known = len(stored)

    def delivered(self, node: SimNode, sequences: Sequence[int]) -> None:
        """See :class:`sims.world.records.uplink.Watch`."""
        self._hosts[node.name].told.update(dict.fromkeys(sequences))

    def renumbered(self, node: SimNode, first_sequence: int) -> None:
        """See :class:`sims.world.records.uplink.Watch`."""
        host = self._hosts[node.name]
        host.lost = {sequence: None for sequence in host.lost if sequence < first_sequence}

    def reached(self, node: SimNode, answers: bool) -> None:
        """See :class:`sims.world.records.uplink.Watch`."""
        host = self._hosts[node.name]
        self._answered += answers
        self._unanswered += not answers
        if answers != host.reaches:
            if host.reaches is not None or not answers:
                waiting = 0 if host.ledger is None else host.ledger.pending
                what = "relay reached" if answers else "relay out of reach"
                self._recorder.occurred(what, self._driver.now, node.name, "", f"{waiting} records wait")
            host.reaches = answers

    # --- what is asked of it ---------------------------------------------------------------------------------------
    def ledger(self, name: str) -> Ledger | None:
        """The ledger of the present or last life. None: the node makes no records, or has not lived yet."""
        host = self._hosts.get(name)
        return None if host is None else host.ledger

    def stored(self, name: str) -> Sequence[int]:
        """Sequences at the relay, each as often as it was stored, in the order in which they came."""
        return self._relay.stored(name)

    def contents(self, name: str) -> dict[int, Content]:
        """What the relay has of a node, by sequence. The caller must not change it."""
        return self._relay.contents(name)

    def waiting_since_ns(self, name: str) -> int | None:
        """When the oldest record that waits was made; None when none waits."""
        host = self._hosts.get(name)
        if host is None or host.ledger is None:
            return None
        records = host.disk.records
        made = (records[entry.sequence].made_ns for entry in host.ledger.entries() if entry.sequence in records)
        return min(made, default=None)

    def complaints(self, name: str) -> list[str]:
        """What does not add up for a node, in words."""
        host = self._hosts[name]
        found = []
        if host.ledger is not None:
            statistics = host.ledger.statistics()
            accounted = statistics["pending"] + host.disk_lost
            accounted += sum(statistics[state] + host.ended[state] for state in _STATES)
            if accounted != host.made:
                found.append(f"of {host.made} records of {name} {accounted} are accounted for: {statistics}")
        stored = frozenset(self._relay.stored(name))
        missing = [sequence for sequence in host.told if sequence not in stored]
        if missing:
            found.append(f"the relay lacks {len(missing)} records of {name} that it acknowledged, first {missing[0]}")
        holes = [sequence for sequence in self._relay.holes(name) if sequence not in host.lost]
        if holes:
            found.append(f"nobody knows what became of {len(holes)} records of {name}, first {holes[0]}")
        contents = self._relay.contents(name).values()
        copies = len(contents) - len(dict.fromkeys(contents))
        if copies or self._relay.conflicts(name):
            found.append(
                f"the relay has {copies} records of {name} under two sequences, and {self._relay.conflicts(name)} came "
                "with the sequence of another"
            )
        return found

    @staticmethod
    def _count_readings(host: _Host, outcomes: dict[str, RuleOutcome]) -> None:
        """Add up what became of the readings that came to the rules of a node in its present or last life."""
        for pattern in host.patterns:
            readings = Counter(outcomes.setdefault(pattern.name, RuleOutcome()).readings)
            readings.update(pattern.counters())
            outcomes[pattern.name].readings = dict(sorted(readings.items()))

    def outcomes(self) -> dict[str, RuleOutcome]:
        """By the name of each rule: what the relay has of it, and what became of the readings that came to it."""
        found = {
            rule: RuleOutcome(outcome.records, outcome.size_bytes, dict(outcome.readings))
            for rule, outcome in self._outcomes.items()
        }
        for host in self._hosts.values():
            self._count_readings(host, found)
        return dict(sorted(found.items()))

    def counters(self) -> dict[str, int]:
        """Counters over all nodes and lives. Empty when nobody makes records."""
        if not self._hosts:
            return {}
        totals = dict.fromkeys(("made", "waiting", "lost_with_disk", "not_written", "at_relay", *_STATES), 0)
        for name, host in self._hosts.items():
            totals["made"] += host.made
            totals["lost_with_disk"] += host.disk_lost
            totals["not_written"] += host.unwritten
            totals["at_relay"] += len(self._relay.stored(name))
            for state in _STATES:
                totals[state] += host.ended[state]
            if host.ledger is not None:
                statistics = host.ledger.statistics()
                totals["waiting"] += statistics["pending"]
                for state in _STATES:
                    totals[state] += statistics[state]
        totals |= {"late": self._late, "exchanges": self._answered, "exchanges_failed": self._unanswered}
        if underived := sum(host.underived for host in self._hosts.values()):
            totals["not_derived"] = underived
        return {f"records_{what}": count for what, count in sorted(totals.items())}

    def figures(self) -> dict[str, float]:
        """How long records took from their making until the relay had them on disk."""
        quantiles = self._took.spread("s").quantiles
        return {f"record_took_{name}_s": value for name, value in quantiles.items()}
