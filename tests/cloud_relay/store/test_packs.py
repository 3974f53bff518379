"""Packed records: they are what they were as rows, whatever is asked, and none is lost or doubled on the way."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from cloud_relay.query.arrivals import arrivals_after
from cloud_relay.query.newest import newest_page
from cloud_relay.query.proofs import proof_of, proven
from cloud_relay.query.searching import find_page
from cloud_relay.query.selection import Query
from cloud_relay.store.packs import bodies, known, packing
from cloud_relay.store.packs.bodies import PackableRecord, PackBody
from cloud_relay.store.packs.keeper import StoreKeeper
from cloud_relay.store.packs.making import PackMaker
from cloud_relay.store.packs.packing import Job, Packer, PackingPolicy
from cloud_relay.store.packs.reading import PackDamaged, PackReader
from cloud_relay.store.packs.tables import FIRST_BODY, HEAD, TIME, newest_number, place_of
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.schema import open_for_reading
from meshnode.identity.signatures import read_authority
from protocols.base.errors import StorageError
from protocols.base.limits import SECOND
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RefusedRecord, RelayRefusal
from protocols.wire.tensors import Tensor
from tests.tools.receipt_fixture import ReceiptMesh
from tests.tools.relay_fixture import (
    BASE_NS,
    RelayInProcess,
    batch,
    copied_after_each_slice,
    given_relay,  # noqa: F401 -- a fixture
)
from tests.tools.stored_fixture import every_record

np = pytest.importorskip("numpy")
pytest.importorskip("zstandard")


def everything(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    with closing(open_for_reading(path)) as db:
        return [(record.fields, record.encoded) for record in every_record(db, Query(limit=10**6))]


def arrivals(path: Path, query: Query) -> list[tuple[int, int]]:
    """Number and sequence of all that a stream would send."""
    found, at = [], 0
    with closing(open_for_reading(path)) as db:
        while at < newest_number(db):
            look = arrivals_after(db, query, at)
            found += [(number, record.fields["sequence"]) for number, record in look.records]
            at = look.reached
    return found


# --- records as they were --------------------------------------------------------------------------------------------
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63 - 1, 0.1, -0.0, float("nan"), float("inf"), "text", "\0", b"\x00\xff", [], {},
    [1, {"a": [b"x"]}], {"deep": [[[[1.5]]]]}, Tensor("f4", (2, 2), memoryview(b"\x00" * 16)), "ü" * 300,
    list(range(50)),
)  # fmt: skip


def odd_records(random: Random) -> Iterator[Record]:
    """Records with every kind of value, some in bytes that our own encoder would not make."""
    for number, value in enumerate(VALUES * 3, 1):
        where = Position(
            random.choice((-90.0, -0.0, 48.7)), random.choice((-180.0, 11.4, 180.0)), random.choice((0.0, 3.5)),
            random.choice((None, -12.5, 0.0)), random.choice((None, 0.0, 359.9)),
        )  # fmt: skip
        reading = Reading(
            f"veh/v-{number % 3}/x", f"v-{number % 2}", number * 7, value, where,
            EventTime(BASE_NS - number % 5, random.choice((0, 2**62))),
            Provenance("s", random.choice(("1", "m/s")), random.choice((0.0, 0.5, 1.0)), "cal" * (number % 2),
                       ("raw",) * (number % 3)), number % 8, number % 4 * 1_000, number % 2,
        )  # fmt: skip
        encoded = encode_reading(reading)
        if number % 7 == 0 and type(value) is int:  # the same reading with the value as an integer of nine bytes
            encoded = encoded.replace(msgspec.msgpack.encode(value), b"\xd3" + value.to_bytes(8, "big", signed=True), 1)
        yield Record(number, f"rule-{number % 2}", Raw(encoded))


def test_records_in_packs_are_the_very_same(relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, columns, numbers and order: an export of a packed store has to be equal to one of rows."""
    monkeypatch.setattr(bodies, "MAX_BODY_RECORDS", 5)
    made = tuple(odd_records(Random(3)))
    answer = relay.send(Batch(1, 7, "v-1", 1, len(made) + 1, made))
    assert isinstance(answer, Acknowledgement)
    assert len(answer.stored) == len(made)
    before, order = everything(relay.path), arrivals(relay.path, Query())
    assert relay.pack(20) == 3
    assert repr(everything(relay.path)) == repr(before)  # NaN differs from itself
    assert arrivals(relay.path, Query()) == order
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT count(*) FROM records").fetchone() == (0,)
        bodies_ = [
            PackBody(
                db.execute("SELECT data FROM pack_blocks WHERE place = ?", (place_of(content, FIRST_BODY),)).fetchone()[
                    0
                ]
            )
            for content in (1, 2, 3)
        ]
        assert any(body._odd for body in bodies_), "a record that encodes otherwise is kept whole"


ROW = st.tuples(
    st.integers(0, 3), st.integers(1, 2**62), st.integers(0, 6), st.sampled_from(VALUES), st.floats(-90, 90),
    st.floats(-180, 180), st.sampled_from((0.2, 0.9)),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=30, unique_by=lambda row: (row[0], row[1])), st.randoms())
def test_pack_of_any_records_gives_each_again(rows: list[Any], random: Random) -> None:
    """Packing takes readings apart; whatever they are, they come together again."""
    from cloud_relay.store.rows import Cost, row_of

    records = []
    for number, (origin, sequence, second, value, latitude_deg, longitude_deg, quality) in enumerate(rows, 1):
        reading = Reading("k", "v", sequence, value, Position(latitude_deg, longitude_deg, 1.0),
                          EventTime(BASE_NS + second, 0), Provenance("s", "1", quality))  # fmt: skip
        encoded = encode_reading(reading)
        row = row_of(reading, encoded, Cost())
        receipt = random.choice((0, 5))
        records.append(
            PackableRecord(number, f"v-{origin}", sequence, "r", row, BASE_NS, encoded, receipt, number % 256)
        )
    records.sort(key=lambda record: (record.row[9], record.origin, record.sequence))
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE pack_blocks (place INTEGER PRIMARY KEY, data BLOB)")
        maker = PackMaker()
        blocks = [(place_of(1, part), data) for part, data in maker.blocks(iter(records))]
        db.executemany("INSERT INTO pack_blocks VALUES (?, ?)", blocks)
        entry = maker.entry(1, 1, 1, len(records))
        assert repr(list(PackReader(db).every(entry))) == repr(records)
    names = sorted((record.origin, record.sequence) for record in records)
    told = [(part.origin, n) for part in maker.ranges() for n in range(part.first, part.last + 1)]
    assert told == names


# --- what comes again ------------------------------------------------------------------------------------------------
def test_record_that_comes_again_is_known_in_its_pack(relay: RelayInProcess) -> None:
    """A node that lost an acknowledgement sends a batch again, perhaps long after its records were packed."""
    relay.send(batch(1, 2, 3, 5))
    assert relay.pack(2) == 2
    assert relay.send(batch(1, 2, 3, 5)) == Acknowledgement((1, 2, 3, 5))
    assert relay.store.statistics()["repeated"] == 4
    answer = relay.send(batch(2, 5, 6, value="another"))
    assert isinstance(answer, Acknowledgement)
    assert answer.stored == (6,)
    assert [refused.sequence for refused in answer.refused] == [2, 5]
    assert [row["sequence"] for row in relay.records(newest_first=False)] == [1, 2, 3, 5, 6]
    account = relay.account()
    assert (account.stored, account.missing, account.gaps, account.conflicts) == (5, 1, ((4, 4),), 2)
    assert relay.send(batch(4, following=7)) == Acknowledgement((4,))
    assert relay.account().adds_up is False  # two conflicts
    assert relay.account().missing == 0


def test_node_with_too_many_gaps_may_only_fill_them_and_go_on(
    relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that leaves out each second sequence would have a row for each record that stays when it is deleted."""
    monkeypatch.setattr(known, "MAX_RANGES_PER_ORIGIN", 5)
    relay.send(batch(*range(1, 11, 2)))
    relay.send(batch(1, node="v-2"), "v-2")
    assert relay.pack(6) == 1
    why = RefusedRecord(20, "too many gaps between records of this node")
    assert relay.send(batch(4, 9, 10, 11, 20, 21)) == Acknowledgement(
        (4, 9, 10, 11), (why, RefusedRecord(21, why.reason))
    )
    assert relay.send(batch(9, 11, following=22)) == Acknowledgement((9, 11))
    assert relay.send(batch(3, 5, node="v-2"), "v-2") == Acknowledgement((3, 5))
    account = relay.accounts()[0]
    assert (account.stored, account.refused) == (8, 2)
    assert relay.pack(5) == 1
    assert relay.retain(RetentionPolicy((RetentionRule("**", 86_400.0),)), 2 * 86_400.0) == 11
    assert relay.send(batch(14, following=22)) == Acknowledgement((14,)), "what is gone was joined: there is room"


def test_batch_that_would_open_many_packs_is_answered_in_parts(relay: RelayInProcess) -> None:
    """An insider who repeats one old record of each pack must not keep the writer busy; an honest node comes again."""
    relay.send(batch(*range(1, 41)))
    assert relay.pack(2) == 20
    answer = relay.send(batch(*range(1, 41)))
    assert answer == Acknowledgement(tuple(range(1, 5)))
    assert relay.send(batch(*range(9, 41), following=41)) == Acknowledgement(tuple(range(9, 13)))


def test_batches_over_far_apart_sequences_are_known_too(relay: RelayInProcess) -> None:
    """Between the first and the last sequence of a batch may be more ranges than are looked at together."""
    for begin in range(1, 2_400, 400):
        relay.send(batch(*range(begin, begin + 400, 2)))
    relay.pack()
    answer = relay.send(batch(1, 1_001, 1_002, 2_399, following=2_401))
    assert answer == Acknowledgement((1, 1_001, 1_002, 2_399))
    assert relay.store.statistics()["repeated"] == 3
    assert len(relay.records(limit=10_000)) == 1_201


def test_fates_and_records_of_a_packed_store_add_up(relay: RelayInProcess) -> None:
    """The audit counts ranges of packs as it counts rows."""
    relay.send(batch(2, 3, 4, 7, fates=(Fate(1, 1, "expired"), Fate(5, 5, "evicted")), following=9))
    before = relay.account()
    relay.pack(2)
    assert relay.account() == before
    assert (before.stored, before.missing, before.outstanding) == (4, 1, 1)


# --- at any moment ---------------------------------------------------------------------------------------------------
def test_question_during_packing_sees_each_record_once(relay: RelayInProcess) -> None:
    """Rows become remains at the moment when their pack counts: whoever asks in between must not see both."""
    relay.send(batch(*range(1, 101)))
    before, account = everything(relay.path), relay.account()
    maintain, seen = relay.store.maintain, 0

    def looked(job: Any) -> Any:
        nonlocal seen
        done = maintain(job)
        done.result()
        seen += 1
        assert everything(relay.path) == before
        assert relay.account() == account
        assert [number for number, _ in arrivals(relay.path, Query())] == list(range(1, 101))
        with closing(open_for_reading(relay.path)) as db:
            assert [record.fields["sequence"] for record in newest_page(db, Query()).records] == [100]
        return done

    relay.store.maintain = looked  # type: ignore[method-assign]
    assert relay.pack(64) == 2
    assert seen > 8


def test_page_begun_before_packing_is_gone_on_with_after_it(relay: RelayInProcess) -> None:
    """A cursor is a place and no row."""
    relay.send(batch(*range(1, 31)))
    with closing(open_for_reading(relay.path)) as db:
        first = find_page(db, Query(limit=10))
        relay.pack(8)
        rest = list(every_record(db, Query(limit=100, after=(BASE_NS + 21 * SECOND, "v-1", 21))))
    assert [record.fields["sequence"] for record in first.records + rest] == list(range(30, 0, -1))


def test_store_after_any_slice_has_each_record_once(relay: RelayInProcess, tmp_path: Path) -> None:
    """What is on the disk after a slice is what a killed relay leaves. The next one goes on from there."""
    relay.send(batch(*range(1, 129)))
    before, images = everything(relay.path), copied_after_each_slice(relay, tmp_path)
    assert relay.pack(64) == 2
    assert len(images) > 8
    for image in images:
        whole_after(image, before)


def whole_after(path: Path, before: list[tuple[dict[str, Any], bytes]]) -> None:
    """A relay that was killed: the next one has each of 128 records, and packs them to the end."""
    later = RelayInProcess(path)
    assert everything(path) == before
    assert later.account().adds_up
    assert later.send(batch(*range(1, 129))) == Acknowledgement(tuple(range(1, 129)))
    later.pack(64)
    assert everything(path) == before
    assert later.store.statistics()["stored"] == 0
    later.store.close()
    with closing(open_for_reading(path)) as db:
        assert db.execute("SELECT count(*), (SELECT sum(records) FROM packs) FROM records").fetchone() == (0, 128)
        assert db.execute("SELECT count(DISTINCT place >> 16) FROM pack_blocks").fetchone() == (2,), (
            "blocks are left over"
        )


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.tools.relay_fixture import RelayInProcess
relay, left = RelayInProcess(Path(sys.argv[1])), int(sys.argv[2])
maintain = relay.store.maintain
def counted(job):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return maintain(job)
relay.store.maintain = counted
relay.pack(64)
"""


@pytest.mark.processes
@pytest.mark.parametrize("left", [2, 5])
def test_relay_that_is_killed_while_it_packs_has_each_record_once(tmp_path: Path, left: int) -> None:
    """A real process and a real kill: before a pack counts, and while its rows are deleted."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    relay.send(batch(*range(1, 129)))
    before = everything(relay.path)
    relay.store.close()
    ran = subprocess.run([sys.executable, "-c", _KILLED, str(relay.path), str(left)], check=False,
                         env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, timeout=60)  # fmt: skip
    assert ran.returncode == -signal.SIGKILL
    whole_after(relay.path, before)


# --- damage ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", [HEAD, TIME, FIRST_BODY])
@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
def test_damaged_block_is_named_and_all_else_is_served(relay: RelayInProcess, part: int, how: str) -> None:
    """A disk that gives wrong bytes must not make wrong records, nor hide those of other packs."""
    relay.send(batch(*range(1, 21)))
    relay.pack(10)
    with closing(sqlite3.connect(relay.path)) as db:
        place = place_of(1, part)
        (data,) = db.execute("SELECT data FROM pack_blocks WHERE place = ?", (place,)).fetchone()
        middle = len(data) // 2
        changed = data[:middle] + bytes((data[middle] ^ 1,)) + data[middle + 1 :]
        if how == "missing":
            db.execute("DELETE FROM pack_blocks WHERE place = ?", (place,))
        else:
            db.execute(
                "UPDATE pack_blocks SET data = ? WHERE place = ?", (changed if how == "changed" else data[:-3], place)
            )
        db.commit()
    with closing(open_for_reading(relay.path)) as db:
        with pytest.raises(PackDamaged, match=r"of pack 1 of the store is damaged .* restore a copy"):
            list(every_record(db, Query(limit=100)))
        rest = list(every_record(db, Query(since_utc_ns=BASE_NS + 11 * SECOND, limit=100)))
        assert [record.fields["sequence"] for record in rest] == list(range(20, 10, -1))
    answer = relay.send(batch(3, 21, following=22))
    assert answer == RelayRefusal("storage", "the relay can't read what it has of these records")
    assert relay.send(batch(13, 21, following=22)) == Acknowledgement((13, 21))


def test_proofs_of_packed_records_hold(tmp_path: Path) -> None:
    """Receipts stay beside the packs, and name records by their place. One that comes late finds its record there."""
    mesh = ReceiptMesh(tmp_path)
    relay, anchor = mesh.relay, read_authority(mesh.anchor)
    key = mesh.key()
    relay.send(mesh.sealed(1, 2, 3, key=key))
    relay.send(batch(4, 5))
    with closing(open_for_reading(relay.path)) as db:
        before = proof_of(db, "v-1", 2)
    account = relay.account()
    relay.pack(2)
    assert relay.account() == account
    relay.send(mesh.sealed(3, 4, 5, key=key))
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT origin, sequence FROM receipted").fetchall() == [("v-1", 4), ("v-1", 5)]
        assert proof_of(db, "v-1", 2) == before
        for sequence in range(1, 6):
            assert proven(proof_of(db, "v-1", sequence), anchor).record.sequence == sequence
    assert all(record["has_receipt"] for record in relay.records())
    assert relay.account().with_receipt == 5
    relay.store.close()


def test_full_disk_stops_packing_and_loses_nothing(relay: RelayInProcess) -> None:
    """Packing needs room before it gives room back. Rows stay rows until there is some."""
    random = Random(2)
    for begin in range(1, 101, 5):
        relay.send(batch(*range(begin, begin + 5), value=random.randbytes(4_000)))
    before = everything(relay.path)
    (pages,) = relay.store._db.execute("PRAGMA page_count").fetchone()
    relay.store._db.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(StorageError, match="free space"):
        relay.pack(50)
    assert everything(relay.path) == before
    relay.store._db.execute("PRAGMA max_page_count = 1000000")
    assert relay.send(batch(101)) == Acknowledgement((101,))
    assert relay.pack(50) == 3
    assert everything(relay.path)[1:] == before


def test_space_of_rows_is_given_back(relay: RelayInProcess) -> None:
    """A store that packs a large backlog must not keep its size for ever."""
    for begin in range(1, 4_001, 250):
        relay.send(batch(*range(begin, begin + 250), value="x" * 3_000))
    with closing(open_for_reading(relay.path)) as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    relay.pack(1_000)
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("PRAGMA page_count").fetchone()[0] < pages * 0.8


@pytest.mark.parametrize(("slice_s", "most_rows", "most_pages"), [(0.0, 64, 32), (3_600.0, 256, 128)])
def test_slices_become_small_where_they_take_long(
    relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch, slice_s: float, most_rows: int, most_pages: int
) -> None:
    """A slice holds up whoever sends. One beside other programs, or on a slow disk, has to do less."""
    monkeypatch.setattr(packing, "SLICE_S", slice_s)
    for begin in range(1, 4_001, 250):
        relay.send(batch(*range(begin, begin + 250), value="x" * 3_000))
    deleted, freed = list[int](), list[int]()

    def noted(job: Job) -> "Future[Any]":
        def slice_(db: sqlite3.Connection) -> None:
            rows, pages = rows_and_pages(db)
            job(db)
            rows_left, pages_left = rows_and_pages(db)
            deleted.append(rows - rows_left)
            freed.append(pages - pages_left)

        return relay.store.maintain(slice_)  # type: ignore[no-any-return]

    policy = PackingPolicy(0.0, 0, pack_records=2_000, clock=lambda: BASE_NS + SECOND)
    packer = Packer(lambda: open_for_reading(relay.path), noted, policy)
    while packer.pack_once():
        pass
    assert sum(deleted) == 4_000
    assert most_rows / 2 < max(deleted) <= most_rows
    assert sum(freed) > 500
    assert most_pages / 2 < max(freed) <= most_pages + 1, "with a page that told where others are"


def rows_and_pages(db: sqlite3.Connection) -> tuple[int, int]:
    """How many rows of records and how many pages there are."""
    rows, pages = (db.execute(text).fetchone()[0] for text in ("SELECT count(*) FROM records", "PRAGMA page_count"))
    return rows, pages


def test_look_goes_on_where_the_one_before_it_ended(relay: RelayInProcess) -> None:
    """A pack fills for hours, and there is a look each second."""
    said: list[str] = []

    def traced() -> sqlite3.Connection:
        db = open_for_reading(relay.path)
        db.set_trace_callback(said.append)
        return db

    policy = PackingPolicy(after_s=10.0, pack_records=100, clock=lambda: BASE_NS + 15 * SECOND)
    packer = Packer(traced, relay.store.maintain, policy)
    for last, made in ((60, False), (90, False), (101, True), (103, False)):
        relay.send(batch(*range(1 + (last > 60) * 60, last + 1)))
        assert packer.pack_once() is made
    looks = [statement.split("number > ")[1].split()[0] for statement in said if "length(encoded) FROM" in statement]
    assert looks == ["0", "60", "90", "100"]
    assert relay.account().stored == 103


def test_keeper_packs_in_the_background_while_batches_come(relay: RelayInProcess) -> None:
    """The whole arrangement of a relay: its thread packs, its writer takes batches, and who asks sees all of them."""
    policy = PackingPolicy(0.0, 0, pack_records=32)
    keeper = StoreKeeper(lambda: open_for_reading(relay.path), relay.store.maintain, policy, RetentionPolicy())
    keeper.start()
    try:
        for number in range(1, 301, 3):
            assert relay.send(batch(number, number + 1, number + 2)) == Acknowledgement(
                (number, number + 1, number + 2)
            )
        deadline_s = time.monotonic() + 60
        while keeper.statistics()["packed"] < 288 and time.monotonic() < deadline_s:
            assert len(relay.records(limit=1_000)) == 300
    finally:
        keeper.close()
    assert keeper.statistics()["packed"] >= 288
    assert [row["sequence"] for row in relay.records(limit=1_000)] == list(range(300, 0, -1))
    assert relay.account().adds_up
