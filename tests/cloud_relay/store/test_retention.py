"""Retention: what it deletes, what it leaves, and what is still known of what is gone."""

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cloud_relay.query.arrivals import arrivals_after
from cloud_relay.query.newest import newest_page
from cloud_relay.query.proofs import proof_of, proven
from cloud_relay.query.selection import Query
from cloud_relay.store.packs import retention
from cloud_relay.store.packs.packing import PackingPolicy
from cloud_relay.store.packs.retention import packing_for, removals, used_bytes
from cloud_relay.store.packs.tables import FIRST_BODY, newest_number, place_of
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.schema import open_for_reading
from meshnode.identity.signatures import read_authority
from protocols.base.errors import LocalProtocolError
from protocols.base.limits import SECOND
from protocols.wire.records import Acknowledgement
from tests.tools.receipt_fixture import ReceiptMesh
from tests.tools.relay_fixture import (
    BASE_NS,
    RelayInProcess,
    batch,
    copied_after_each_slice,
    given_relay,  # noqa: F401 -- a fixture
)
from tests.tools.stored_fixture import every_record

pytest.importorskip("zstandard")

ALL_FOR_A_DAY = RetentionPolicy((RetentionRule("**", 86_400.0),))
DEBUG_FOR_A_DAY = RetentionPolicy((RetentionRule("veh/*/debug/**", 86_400.0), RetentionRule("**", None)))
DAY_S = 86_400.0


def sequences(relay: RelayInProcess, **wanted: Any) -> list[int]:
    return [row["sequence"] for row in relay.records(newest_first=False, limit=10_000, **wanted)]


def mixed(relay: RelayInProcess) -> None:
    """Twenty records in two packs; even ones have a key for debugging."""
    for number in range(1, 21):
        relay.send(batch(number, key="veh/v-1/debug/x" if number % 2 == 0 else "veh/v-1/speed"))
    assert relay.pack(10) == 2


def test_old_packs_go_as_a_whole_and_count_as_deleted(relay: RelayInProcess) -> None:
    """Deleted by retention is not lost: the audit tells one from the other."""
    relay.send(batch(*range(1, 11)))
    relay.send(batch(12, 13, following=20))
    relay.pack(10)
    assert relay.retain(ALL_FOR_A_DAY, DAY_S - 1) == 0
    before = relay.account()
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 12
    account = relay.account()
    assert (account.stored, account.deleted, account.missing, account.gaps) == (0, 12, 1, ((11, 11),))
    assert (account.issued, account.outstanding) == (before.issued, before.outstanding)
    assert sequences(relay) == []
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT count(*) FROM pack_blocks").fetchone() == (0,)
        assert db.execute("SELECT origin, first, last, pack, deleted FROM pack_ranges").fetchall() == [
            ("v-1", 1, 10, 0, 10), ("v-1", 12, 13, 0, 2),
        ]  # fmt: skip
        assert db.execute("SELECT count(*) FROM streams").fetchone() == (0,)
        assert newest_page(db, Query()).records == []


def test_deleted_record_that_comes_again_is_acknowledged_and_not_stored(relay: RelayInProcess) -> None:
    """Its node has kept it for long, and would keep it for ever without an answer."""
    mixed(relay)
    relay.retain(DEBUG_FOR_A_DAY, DAY_S)
    assert sequences(relay) == list(range(1, 21, 2))
    assert relay.send(batch(2, 3, following=21)) == Acknowledgement((2, 3))
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 10
    assert relay.send(batch(2, 3, 21)) == Acknowledgement((2, 3, 21))
    assert sequences(relay) == [21]
    account = relay.account()
    assert (account.stored, account.deleted, account.missing, account.adds_up) == (1, 20, 0, True)


def test_keys_go_by_their_own_rule_and_the_first_one_decides(relay: RelayInProcess) -> None:
    """Debugging data is kept for days and accidents for years, in one store."""
    mixed(relay)
    with closing(open_for_reading(relay.path)) as db:
        before = {record.fields["sequence"]: record for record in every_record(db, Query(limit=100))}
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 10
    account = relay.account()
    assert (account.stored, account.deleted, account.missing) == (10, 10, 0)
    with closing(open_for_reading(relay.path)) as db:
        left = list(every_record(db, Query(limit=100, newest_first=False)))
        assert left == [before[number] for number in range(1, 21, 2)]
        assert db.execute("SELECT key, records FROM streams").fetchall() == [("veh/v-1/speed", 10)]
        assert [record.fields["sequence"] for record in newest_page(db, Query()).records] == [19]
        assert newest_number(db) == 20
        assert [number for number, _ in arrivals_after(db, Query(), 4).records] == list(range(5, 21, 2))
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S * 1000) == 0, "nothing is rewritten again"


def test_newest_of_a_stream_is_right_after_its_newest_was_deleted(relay: RelayInProcess) -> None:
    """A late record may be all that is left of a stream."""
    relay.send(batch(9))
    relay.pack(1)
    relay.send(batch(3, following=10))
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 1
    with closing(open_for_reading(relay.path)) as db:
        assert [record.fields["sequence"] for record in newest_page(db, Query()).records] == [3]
        assert db.execute("SELECT records, newest_utc_ns FROM streams").fetchall() == [(1, BASE_NS + 3 * SECOND)]


def test_store_beyond_its_size_loses_its_oldest_packs_and_gives_space_back(relay: RelayInProcess) -> None:
    """A disk has an end, and the newest records are worth most."""
    random = Random(1)
    for begin in range(1, 201, 5):
        relay.send(batch(*range(begin, begin + 5), value=random.randbytes(5_000)))
    assert relay.pack(20) == 10
    with closing(open_for_reading(relay.path)) as db:
        used = used_bytes(db)
    gone = relay.retain(RetentionPolicy(max_bytes=used - 30_000), 0.0)
    assert gone == 40
    assert sequences(relay) == list(range(41, 201))
    with closing(open_for_reading(relay.path)) as db:
        assert used_bytes(db) <= used - 30_000
        assert db.execute("PRAGMA freelist_count").fetchone()[0] <= 2_048


def test_receipts_go_with_their_records_and_no_sooner(tmp_path: Path) -> None:
    """A proof needs the hashes of all records that were signed together, also of those that are gone."""
    mesh = ReceiptMesh(tmp_path)
    relay, anchor = mesh.relay, read_authority(mesh.anchor)
    key = mesh.key()
    relay.send(mesh.sealed(*range(1, 16), key=key))
    relay.send(mesh.sealed(*range(16, 21), key=key))
    relay.pack(10)
    keeping_second = RetentionPolicy(max_bytes=1)
    with closing(open_for_reading(relay.path)) as db:
        (first, _) = removals(db, keeping_second, BASE_NS)
        limit = used_bytes(db) - first.size_bytes // 2
    assert relay.retain(RetentionPolicy(max_bytes=limit), 0.0) == 10
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT count(*) FROM receipts").fetchone() == (2,)
        for sequence in range(11, 21):
            assert proven(proof_of(db, "v-1", sequence), anchor).record.sequence == sequence
        with pytest.raises(LocalProtocolError, match="no record 3"):
            proof_of(db, "v-1", 3)
    assert relay.account().with_receipt == 10
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 10
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT count(*) FROM receipts").fetchone() == (0,)
    assert relay.account().with_receipt == 0
    relay.store.close()


def test_receipts_are_looked_through_once_however_many_packs_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a receipt for each record that is in no pack yet."""
    said: list[str] = []

    def traced(path: Path) -> sqlite3.Connection:
        db = open_for_reading(path)
        db.set_trace_callback(said.append)
        return db

    mesh = ReceiptMesh(tmp_path)
    relay, key = mesh.relay, mesh.key()
    for first in range(1, 41, 10):
        relay.send(mesh.sealed(*range(first, first + 10), key=key))
    assert relay.pack(10) == 4
    monkeypatch.setattr("tests.tools.relay_fixture.open_for_reading", traced)
    assert relay.retain(ALL_FOR_A_DAY, 2 * DAY_S) == 40
    assert len([statement for statement in said if "FROM receipted WHERE receipt BETWEEN" in statement]) == 1
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT count(*) FROM receipts").fetchone() == (0,)
    relay.store.close()


def test_numbers_are_not_given_again_after_everything_was_deleted(tmp_path: Path) -> None:
    """``Last-Event-ID`` of a client of yesterday must not name a record of today."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    relay.send(batch(1, 2, 3))
    relay.pack()
    relay.retain(ALL_FOR_A_DAY, DAY_S)
    relay.store.close()
    with closing(sqlite3.connect(relay.path)) as db:
        db.execute("VACUUM")
    later = RelayInProcess(relay.path)
    later.send(batch(4))
    with closing(open_for_reading(relay.path)) as db:
        assert [number for number, _ in arrivals_after(db, Query(), 2).records] == [4]
    later.store.close()


def test_relay_that_is_killed_while_it_deletes_goes_on_with_it(relay: RelayInProcess, tmp_path: Path) -> None:
    """After each slice the store is one that adds up, and the next relay takes away what is left."""
    mixed(relay)
    images = copied_after_each_slice(relay, tmp_path)
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 10
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 10
    assert len(images) > 8
    for image in images:
        later = RelayInProcess(image)
        account = later.account()
        assert (account.stored + account.deleted, account.missing) == (20, 0)
        assert len(sequences(later)) == account.stored
        later.retain(ALL_FOR_A_DAY, DAY_S)
        account = later.account()
        assert (account.stored, account.deleted, account.adds_up) == (0, 20, True)
        with closing(open_for_reading(image)) as db:
            for table in ("pack_blocks", "pack_streams", "streams"):
                assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
            assert db.execute("SELECT first, last, pack FROM pack_ranges").fetchall() == [(1, 20, 0)]
        later.store.close()


def test_pack_with_very_many_keys_is_deleted_in_short_slices(
    relay: RelayInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may invent a key for each record, and leave out each second sequence; batches of others must not wait for
    more than a slice. After each of them the store adds up, and a relay that was killed there goes on."""
    monkeypatch.setattr(retention, "_SLICE_ROWS", 8)
    monkeypatch.setattr(retention, "_SLICE_CHANGES", 20)
    relay.send(batch(*range(1, 101, 2), key="veh/v-1/speed"))
    for number in range(101, 201, 2):
        relay.send(batch(number, key=f"veh/v-1/debug/{number}"))
    assert relay.pack(100) == 1
    changes: list[int] = []
    images = copied_after_each_slice(relay, tmp_path, changes)
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 50
    assert len(images) > 10
    assert max(changes) <= 8 * 4 + 20
    for image in (*images, relay.path):
        later = relay if image == relay.path else RelayInProcess(image)
        account = later.account()
        assert (account.stored + account.deleted, len(sequences(later))) == (100, account.stored)
        later.retain(DEBUG_FOR_A_DAY, DAY_S)
        assert sequences(later) == list(range(1, 101, 2))
        with closing(open_for_reading(image)) as db:
            assert db.execute("SELECT key, records FROM streams").fetchall() == [("veh/v-1/speed", 50)]
            assert db.execute("SELECT sum(deleted) FROM pack_ranges").fetchone() == (50,)
        if later is not relay:
            later.store.close()


def test_damaged_pack_holds_up_no_other_one_and_goes_as_a_whole(relay: RelayInProcess) -> None:
    """What can't be read can't be written again, but it can be deleted."""
    mixed(relay)
    with closing(sqlite3.connect(relay.path)) as db:
        db.execute("UPDATE pack_blocks SET data = x'00' WHERE place = ?", (place_of(1, FIRST_BODY),))
        db.commit()
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 5
    assert sequences(relay, since_utc_ns=BASE_NS + 11 * SECOND) == list(range(11, 21, 2))
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 15
    assert relay.account().deleted == 20


def test_rules_are_kept_to_within_an_eighth() -> None:
    """Packs are made early enough, and short enough, for a rule to be kept."""
    policy = RetentionPolicy((RetentionRule("a", None), RetentionRule("b", 800.0), RetentionRule("c", 8_000.0)))
    packing = packing_for(policy, PackingPolicy())
    assert (packing.after_s, packing.span_s) == (400.0, 100.0)
    assert packing_for(policy, PackingPolicy(after_s=10.0, span_s=5.0)).after_s == 10.0
