"""The relay of a simulation. It takes batches as ``cloud_relay.ingest`` and ``cloud_relay.store`` do, on a disk that
never fails.

Each record is stored once by (origin, sequence), however often it comes. When the same sequence comes with another
content, that is a conflict, and the first content is kept. :meth:`Relay.holes` is the audit of
``cloud_relay.query.audit``: nodes send records in order and never before the fates of those that are missing before
them, so that a hole is a loss and not a delay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocols.base.errors import RemoteProtocolError
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.parcels import decode_untrusted_record
from protocols.wire.readings import Reading
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RefusedRecord, RelayRefusal

Content = tuple[str, int]
"""Key and sequence of a reading, which name it for ever within its origin."""


@dataclass(slots=True)
class _Origin:
    next_sequence: int = 0
    held: dict[int, Content] = field(default_factory=dict)
    stored: list[int] = field(default_factory=list)
    fates: dict[Fate, None] = field(default_factory=dict)
    conflicts: int = 0


class Relay:
    """One relay. Origins are names of nodes, as TLS proved them."""

    def __init__(self, on_stored: Callable[[str, str, Reading, int], None] = lambda *_: None) -> None:
        """``on_stored`` is called with each record that is stored for the first time: its origin, the name of its rule,
        the reading, and its bytes."""
        self.up = True
        self._on_stored = on_stored
        self.life = 0
        """How many processes there were before; connections to them are broken."""
        self._origins: dict[str, _Origin] = {}

    def stop(self) -> None:
        """The process ends. What it stored stays."""
        self.up = False

    def start(self) -> None:
        """The next process answers."""
        self.up = True
        self.life += 1

    # --- batches ---------------------------------------------------------------------------------------------------
    def answer(self, peer: str, data: bytes) -> bytes:
        """The answer to one request of ``peer``. What it acknowledges is on its disk."""
        try:
            batch = decode_untrusted_relay_frame(data)
        except RemoteProtocolError as error:
            return encode_frame(RelayRefusal("malformed", str(error)[:200]))
        if not isinstance(batch, Batch):
            return encode_frame(RelayRefusal("malformed", "a relay takes batches only"))
        if batch.node != peer:
            return encode_frame(RelayRefusal("identity", f"a batch of {batch.node} came from {peer}"))
        return encode_frame(self.take(batch))

    def take(self, batch: Batch) -> Acknowledgement | RelayRefusal:
        """Store a batch."""
        origin = self._origins.setdefault(batch.node, _Origin())
        if batch.next_sequence < origin.next_sequence:
            return RelayRefusal("sequence", str(origin.next_sequence))
        origin.next_sequence = batch.next_sequence
        stored, refused = [], []
        for record in batch.records:
            if self.store(batch.node, record):
                stored.append(record.sequence)
            else:
                refused.append(RefusedRecord(record.sequence, "conflict: another record has this sequence"))
        origin.fates.update(dict.fromkeys(batch.fates))
        return Acknowledgement(tuple(stored), tuple(refused))

    def store(self, node: str, record: Record) -> bool:
        """Have a record on disk. Returns False when another one has its sequence."""
        reading = decode_untrusted_record(record)
        origin, content = self._origins[node], (reading.key, reading.sequence)
        held = origin.held.setdefault(record.sequence, content)
        if held is content:
            origin.stored.append(record.sequence)
            self._on_stored(node, record.rule, reading, len(record.reading))
        elif held != content:
            origin.conflicts += 1
        return held == content

    # --- what is asked of it ---------------------------------------------------------------------------------------
    def stored(self, node: str) -> Sequence[int]:
        """Sequences on disk, each as often as it was stored, in the order in which they came. The caller must not
        change the list."""
        origin = self._origins.get(node)
        return () if origin is None else origin.stored

    def contents(self, node: str) -> dict[int, Content]:
        """What is stored, by sequence. The caller must not change it."""
        origin = self._origins.get(node)
        return {} if origin is None else origin.held

    def conflicts(self, node: str) -> int:
        """How many records came with the sequence of another one."""
        origin = self._origins.get(node)
        return 0 if origin is None else origin.conflicts

    def holes(self, node: str) -> list[int]:
        """Sequences below the highest one stored that are neither stored nor have a fate, in order."""
        origin = self._origins.get(node)
        if origin is None or not origin.held:
            return []
        told = {number for fate in origin.fates for number in range(fate.first, fate.last + 1)}
        return [number for number in range(1, max(origin.held)) if number not in origin.held and number not in told]
