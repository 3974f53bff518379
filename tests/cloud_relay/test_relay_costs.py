"""The longest that one batch keeps the writer of the relay. The worst batch is searched for and not chosen by hand."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from msgspec import Raw

from cloud_relay.ingest.access import PublishAccess
from cloud_relay.ingest.batches import decode_untrusted_batch, storable
from cloud_relay.store.sqlite import Store
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.base.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_FATES_PER_BATCH
from protocols.wire.codec import encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RelayRefusal
from tests.tools.quiet import bound_ms
from tests.tools.relay_fixture import EVERYTHING, reading

MAX_HOLD_MS: Final = bound_ms(100)
TRIALS: Final = 40
_VALUES: Final[tuple[Any, ...]] = ("\0", "x", "é", 0.1, {}, [], {"a": 1}, 2**63 - 1, None)


@dataclass(frozen=True)
class Shape:
    """What a batch consists of, and what its origin told before."""

    told: int = 20_000
    """Ranges that the relay holds of the origin, alternating in state."""
    gap: int = 1
    fates: int = 512
    width: int = 8
    """Told ranges that each fate spans."""
    offset: int = 0
    overlaps: int = 0
    """1: each fate reaches to the end of the told ranges."""
    records: int = 16
    value: int = 0
    """Index of what fills the values of records."""
    again: int = 0
    """0: records that are new; 1: that are stored; 2: that are stored with another content."""

    def mutated(self, random: Random) -> "Shape":
        ranges = {
            "told": (0, 40_000), "gap": (0, 3), "fates": (0, MAX_FATES_PER_BATCH), "width": (0, 200), "offset": (0, 3),
            "overlaps": (0, 1), "records": (0, MAX_BATCH_RECORDS), "value": (0, len(_VALUES) - 1), "again": (0, 2),
        }  # fmt: skip
        changed = random.sample(sorted(ranges), random.randint(1, 3))
        return replace(
            self, **{name: random.choice((*ranges[name], random.randint(*ranges[name]))) for name in changed}
        )


class Relay:
    """A store whose writer is called on this thread, so that its processor time can be read."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self._trials = 0
        self._peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId("v-1"))

    def hold_ms(self, shape: Shape) -> float:
        """The processor time that the writer needs for a batch of this shape."""
        self._trials += 1
        origin, step = f"v-{self._trials}", shape.gap + 1
        self.store._db.execute("BEGIN")
        self.store._db.executemany(
            "INSERT INTO fates VALUES (?, ?, ?, ?)",
            [(origin, 1 + n * step, 1 + n * step, ("expired", "evicted")[n % 2]) for n in range(shape.told)],
        )
        self.store._db.execute("COMMIT")
        fates, first, end = [], 1 + shape.offset, (shape.told + shape.fates * (shape.offset + 1)) * step
        for number in range(shape.fates):
            last = end if shape.overlaps else first + shape.width * step
            fates.append(Fate(first, last, ("expired", "evicted")[number % 2]))  # type: ignore[arg-type]
            first = (first if shape.overlaps else last) + 1 + shape.offset
        first = max(first, end) + 1
        if shape.again:
            self._commit(self._batch(origin, shape, (), first, "before"))
        name = "before" if shape.again == 1 else "after"
        return self._commit(self._batch(origin, shape, tuple(fates), first, name))

    def _batch(self, origin: str, shape: Shape, fates: tuple[Fate, ...], first: int, name: str) -> bytes:
        records: tuple[Record, ...] = ()
        if shape.records:
            filling = _VALUES[shape.value]
            size = MAX_BATCH_BYTES // shape.records - 400
            value = filling * size if isinstance(filling, str) else [filling] * (size // 9)
            records = tuple(
                Record(first + n, name, Raw(encode_reading(reading(first + n, f"veh/{origin}/{n}", value))))
                for n in range(shape.records)
            )
        return encode_frame(Batch(MAJOR, MINOR, origin, 1, first + shape.records + 1, records, fates))

    def _commit(self, data: bytes) -> float:
        try:
            taken = storable(decode_untrusted_batch(data), self._peer, PublishAccess(EVERYTHING))
        except RemoteProtocolError:
            return 0.0  # it never reaches the writer
        done: Future[Acknowledgement | RelayRefusal] = Future()
        began = time.thread_time()
        self.store._commit([(taken, done)])
        spent_ms = (time.thread_time() - began) * 1_000
        assert isinstance(done.result(0), Acknowledgement)
        return spent_ms


def test_worst_batch_that_a_search_finds_keeps_the_writer_for_less_than_its_bound(tmp_path: Path) -> None:
    """1,024 overlapping fates in one batch of 20 kB kept it for 253 s, in which nobody else was served."""
    random = Random(20)
    relay = Relay(tmp_path / "relay.sqlite")
    try:
        worst, hold_ms = Shape(), 0.0
        for _ in range(TRIALS):
            shape = worst.mutated(random)
            if (spent_ms := relay.hold_ms(shape)) > hold_ms:
                worst, hold_ms = shape, spent_ms
        # other programs share the caches, so the least of three counts
        hold_ms = min(relay.hold_ms(worst) for _ in range(3))
        assert hold_ms < MAX_HOLD_MS, f"{hold_ms:.0f} ms for {worst}"
        print(f"the worst batch found keeps the writer for {hold_ms:.0f} ms: {worst}")
    finally:
        relay.store.close()
