"""Records on their way to the relay: a ledger at each node that sends any, its disk, its uplink, and the relay's store.

The ledger is the one of real nodes; what surrounds it (``meshnode.outbox``, ``meshnode.uplink``, the relay's store) is
played: one batch at a time, an empty one to introduce a new ledger, back-off when no answer comes, refusal ``sequence``
when the relay knows more of a node than its ledger. A disk keeps what was saved; a full one takes nothing, so that a
record is not issued and what was acknowledged is sent again after a crash.

Left out: curation. Every node has a record a few times a second, each third one with a lifespan, and room for few.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from protocols import limits
from protocols.ids import UtcNs
from protocols.ledger import BatchPlan, Counters, Entry, Ledger
from protocols.messages import Acknowledgement, Fate, RefusedRecord
from sims import bugs
from sims.driver import SimDriver
from sims.links import Uplink
from sims.node import SimNode

RECORD_INTERVAL_NS: Final = 250 * limits.MS
MAX_RECORDS: Final = 16
"""Four seconds without a relay, and the first are evicted."""
_MAX_BYTES: Final = 16 * 1024
_RECORD_BYTES: Final = 200
_LIFESPAN_NS: Final = 2 * limits.SECOND
_HEAD_BYTES: Final = 60
_ANSWER_TIMEOUT_NS: Final = 5 * limits.SECOND
_FIRST_RETRY_NS: Final = 500 * limits.MS
_LONGEST_RETRY_NS: Final = 8 * limits.SECOND

Content = tuple[str, int]
"""(node, number of the record among all that it ever made): tells records of one sequence apart."""


@dataclass(slots=True)
class _Disk:
    """What a node finds when it starts."""

    counters: Counters | None = None
    entries: list[Entry] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    contents: dict[int, Content] = field(default_factory=dict)


class _Relay:
    """Takes each record once."""

    def __init__(self) -> None:
        self.up = True
        self.stored: dict[str, list[int]] = {}
        self._contents: dict[tuple[str, int], Content] = {}
        self._next: dict[str, int] = {}

    def take(self, node: str, next_sequence: int, records: dict[int, Content]) -> Acknowledgement | int:
        """The acknowledgement, or the sequence at which the relay stands when the node stands before it."""
        stands = self._next.get(node, 0)
        if next_sequence < stands:
            return stands
        self._next[node] = next_sequence
        stored, refused = [], []
        for sequence, content in records.items():
            held = self._contents.get((node, sequence))
            if held is None:
                self._contents[node, sequence] = held = content
                self.stored.setdefault(node, []).append(sequence)
            if held == content:
                stored.append(sequence)
            else:
                refused.append(RefusedRecord(sequence, "conflict: another record has this sequence"))
        return Acknowledgement(tuple(stored), tuple(refused))


class _Sender:
    """One life of a node, as far as its records go."""

    __slots__ = ("busy", "contents", "failures", "ledger", "life", "node")

    def __init__(self, node: SimNode, ledger: Ledger, contents: dict[int, Content]) -> None:
        self.node, self.life, self.ledger, self.contents = node, node.lives, ledger, contents
        self.busy = False
        self.failures = 0

    @property
    def gone(self) -> bool:
        return not self.node.running or self.node.lives != self.life

    def utc_ns(self, now: int) -> UtcNs:
        return UtcNs(self.node.local(now) + self.node.utc_less_mono_ns)


class _Exchange:
    """One batch and its answer."""

    __slots__ = ("answer", "next_sequence", "over", "plan", "records", "sender")

    def __init__(self, sender: _Sender, plan: BatchPlan | None) -> None:
        self.sender, self.plan = sender, plan
        self.next_sequence = (
            sender.ledger.next_sequence if plan is not None else sender.ledger.counters().first_sequence
        )
        self.records = {sequence: sender.contents[sequence] for sequence in plan.sequences} if plan is not None else {}
        self.answer: Acknowledgement | int | None = None
        self.over = False


class Records:
    """Of all nodes that send any."""

    def __init__(self, driver: SimDriver, uplink: Uplink, names: Iterable[str], planted: frozenset[str]) -> None:
        """``names`` of the nodes that do. ``planted``: bugs, see :mod:`sims.bugs`."""
        self._driver, self._uplink, self._planted = driver, uplink, planted
        self._relay = _Relay()
        self._disks = {name: _Disk() for name in names}
        self._made = dict.fromkeys(self._disks, 0)
        self._senders: dict[str, _Sender] = {}
        self._full: set[str] = set()
        self.unwritten = 0
        """Records that were not even issued, because the disk was full."""

    def ledger(self, name: str) -> Ledger | None:
        """Of the present or last life."""
        sender = self._senders.get(name)
        return None if sender is None else sender.ledger

    def stored(self, name: str) -> list[int]:
        """Sequences at the relay, in the order they came."""
        return self._relay.stored.get(name, [])

    def statistics(self) -> dict[str, int]:
        """Over all nodes: records issued, and how many are in each state, by the present ledgers."""
        totals: dict[str, int] = {"unwritten": self.unwritten}
        for sender in self._senders.values():
            for state, count in sender.ledger.statistics().items():
                totals[state] = totals.get(state, 0) + count
        return {f"records_{state}": count for state, count in sorted(totals.items())}

    # --- lives and faults ------------------------------------------------------------------------------------------
    def begin(self, node: SimNode) -> None:
        """A life begins with what is on the disk."""
        disk = self._disks.get(node.name)
        if disk is None:
            return
        ledger = Ledger(MAX_RECORDS, _MAX_BYTES, disk.counters, disk.entries, disk.fates)
        bugs.plant(ledger, self._planted)
        sender = self._senders[node.name] = _Sender(node, ledger, dict(disk.contents))
        now = self._driver.now
        self._driver.when_awake(node, now + RECORD_INTERVAL_NS, self._record, sender)
        self._driver.when_awake(node, now, self._step, sender)

    def lose_disk(self, name: str) -> None:
        """The next life begins with nothing."""
        if name in self._disks:
            self._disks[name] = _Disk()

    def full_disk(self, name: str, full: bool) -> None:
        """Whether nothing can be written."""
        if full:
            self._full.add(name)
        else:
            self._full.discard(name)

    def relay(self, up: bool) -> None:
        """Whether the relay answers. What it stored it keeps."""
        self._relay.up = up

    # --- at the node -----------------------------------------------------------------------------------------------
    def _record(self, sender: _Sender) -> None:
        if sender.gone:
            return
        now, name = self._driver.now, str(sender.node.name)
        if name in self._full:
            self.unwritten += 1
        else:
            number = self._made[name] = self._made[name] + 1
            utc_ns = sender.utc_ns(now)
            expires_utc_ns = utc_ns + _LIFESPAN_NS if number % 3 == 0 else 0
            sequence = sender.ledger.issue(_RECORD_BYTES, number % 8, expires_utc_ns, utc_ns)
            sender.contents[sequence] = (name, number)
            self._save(sender)
            if not sender.busy:
                self._step(sender)
        self._driver.when_awake(sender.node, now + RECORD_INTERVAL_NS, self._record, sender)

    def _save(self, sender: _Sender) -> None:
        name, ledger = str(sender.node.name), sender.ledger
        if name in self._full:
            return
        ledger.changes_saved()
        entries = ledger.entries()
        sender.contents = {entry.sequence: sender.contents[entry.sequence] for entry in entries}
        self._disks[name] = _Disk(ledger.counters(), entries, ledger.fates(), dict(sender.contents))

    def _step(self, sender: _Sender) -> None:
        """Send the next batch, if there is one."""
        if sender.gone or sender.busy:
            return
        now, ledger = self._driver.now, sender.ledger
        plan = None
        if ledger.counters().introduced:
            ledger.expire(sender.utc_ns(now))
            plan = ledger.next_batch(sender.utc_ns(now))
            if plan is None:
                self._save(sender)
                return
        sender.busy = True
        exchange = _Exchange(sender, plan)
        self._driver.when_awake(sender.node, now + _ANSWER_TIMEOUT_NS, self._give_up, exchange)
        size_bytes = _HEAD_BYTES + len(exchange.records) * _RECORD_BYTES
        there_ns = self._uplink.uplink_ns(sender.node.number, size_bytes, now)
        if there_ns is not None:
            self._driver.push(there_ns, self._at_relay, exchange)

    def _give_up(self, exchange: _Exchange) -> None:
        if not exchange.over:
            exchange.over = True
            exchange.sender.ledger.abandoned()
            self._pause(exchange.sender)

    def _pause(self, sender: _Sender) -> None:
        pause_ns = min(_FIRST_RETRY_NS << min(sender.failures, 8), _LONGEST_RETRY_NS)
        sender.failures += 1
        self._save(sender)
        self._driver.when_awake(sender.node, self._driver.now + pause_ns, self._again, sender)

    def _again(self, sender: _Sender) -> None:
        sender.busy = False
        self._step(sender)

    def _answered(self, exchange: _Exchange) -> None:
        sender, answer = exchange.sender, exchange.answer
        if exchange.over or sender.gone:
            return
        exchange.over = True
        ledger = sender.ledger
        if isinstance(answer, Acknowledgement):
            if exchange.plan is None:
                ledger.introduce()
            else:
                ledger.acknowledged(exchange.plan, answer)
        else:
            ledger.abandoned()
            before = ledger.counters().first_sequence
            if exchange.plan is not None or answer is None or not ledger.renumber(answer):
                self._pause(sender)
                return
            shift = ledger.counters().first_sequence - before
            sender.contents = {sequence + shift: content for sequence, content in sender.contents.items()}
        sender.failures = 0
        self._save(sender)
        self._again(sender)

    # --- at the relay ----------------------------------------------------------------------------------------------
    def _at_relay(self, exchange: _Exchange) -> None:
        if not self._relay.up:
            return
        node = exchange.sender.node
        exchange.answer = self._relay.take(str(node.name), exchange.next_sequence, exchange.records)
        back_ns = self._uplink.uplink_ns(node.number, _HEAD_BYTES, self._driver.now, upward=False)
        if back_ns is not None:
            self._driver.when_awake(node, back_ns, self._answered, exchange)
