"""Retention in PostgreSQL: what it deletes, what it leaves, what is still known of what is gone, and several relays."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import Raw

from cloud_relay.query.proofs import proven
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.selection import Query
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres import group, keeper, removing, schema
from cloud_relay.store.postgres.group import ORIGIN_LOCKS, origin_lock
from cloud_relay.store.postgres.keeper import PostgresKeeper
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.sizes import SIZE
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from meshnode.identity.signatures import read_authority
from protocols.base.errors import LocalProtocolError, StorageError
from protocols.base.limits import SECOND
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RefusedRecord
from tests.tools.eventually import eventually
from tests.tools.postgres_fixture import (  # noqa: F401 -- fixtures
    fresh_place,
    given_empty_place,
    given_postgres,
    given_session,
)
from tests.tools.receipt_fixture import ReceiptMesh
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, reading

pytestmark = pytest.mark.processes

DAY_S = 86_400.0
ALL_FOR_A_DAY = RetentionPolicy((RetentionRule("**", DAY_S),))
DEBUG_FOR_A_DAY = RetentionPolicy((RetentionRule("veh/*/debug/**", DAY_S), RetentionRule("**", None)))


@pytest.fixture(name="relay")
def given_relay(place: PostgresPlace) -> Iterator[RelayInProcess]:
    relay = RelayInProcess(place)
    yield relay
    relay.store.close()


def check_consistent(session: PostgresSession) -> None:
    """What is counted is what is there, and each range has only what was stored."""
    with session.transaction("BEGIN ISOLATION LEVEL REPEATABLE READ"):
        counted = (
            f"SELECT key, origin, rule, count(*), sum({SIZE})::bigint, max(event_utc_ns) FROM records GROUP BY 1, 2, 3"
        )
        assert sorted(map(tuple, session.rows(counted))) == sorted(
            map(tuple, session.rows("SELECT key, origin, rule, records, size_bytes, newest_utc_ns FROM streams"))
        )
        receipts = session.rows("SELECT number, records FROM receipts ORDER BY number")
        assert receipts == session.rows(
            "SELECT receipt, count(*) FROM records WHERE receipt IS NOT NULL GROUP BY receipt ORDER BY receipt"
        )
        ranges = session.rows("SELECT origin, first, last FROM known_ranges ORDER BY origin, first")
        for one, other in pairwise(ranges):
            assert one[0] != other[0] or one[2] + 1 < other[1], "ranges are apart"
        for origin, deleted, count_of_ranges, next_sequence in session.rows(
            "SELECT origin, deleted, known_ranges, next_sequence FROM origins"
        ):
            own = [one for one in ranges if one[0] == origin]
            assert len(own) == count_of_ranges
            within = sum(last - first + 1 for _, first, last in own)
            assert within < next_sequence
            left = session.row(
                "SELECT count(*) FROM records JOIN known_ranges USING (origin) WHERE origin = $1"
                " AND sequence BETWEEN first AND last", origin,
            )[0]  # fmt: skip
            assert within - left == deleted


def sequences(relay: RelayInProcess, **wanted: Any) -> list[int]:
    return [row["sequence"] for row in relay.records(newest_first=False, limit=10_000, **wanted)]


def mixed(relay: RelayInProcess) -> None:
    """Twenty records; even ones have a key for debugging."""
    for number in range(1, 21):
        relay.send(batch(number, key="veh/v-1/debug/x" if number % 2 == 0 else "veh/v-1/speed"))


# --- age and key ----------------------------------------------------------------------------------------------------
def test_old_records_go_and_count_as_deleted(relay: RelayInProcess, session: PostgresSession) -> None:
    """Deleted by retention is not lost: the audit tells one from the other."""
    relay.send(batch(*range(1, 11)))
    relay.send(batch(12, 13, following=20))
    assert relay.retain(ALL_FOR_A_DAY, DAY_S - 1) == 0
    before = relay.account()
    with open_reader(relay.path) as reader:
        state, number = reader.state(), reader.newest_number()
        assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 12
        assert reader.state() != state, "clients that ask whether something changed are told"
        assert reader.newest_number() == number
        assert reader.newest(Query()).records == []
        assert reader.figures().records == 0
    account = relay.account()
    assert (account.stored, account.deleted, account.missing, account.gaps) == (0, 12, 1, ((11, 11),))
    assert (account.issued, account.outstanding) == (before.issued, before.outstanding)
    ranges = session.rows("SELECT first, last FROM known_ranges ORDER BY first")
    assert list(map(tuple, ranges)) == [(1, 10), (12, 13)]
    check_consistent(session)


def test_deleted_record_that_comes_again_is_acknowledged_and_not_stored(
    place: PostgresPlace, relay: RelayInProcess, session: PostgresSession
) -> None:
    """Its node has kept it for long, and would keep it for ever without an answer. Any relay knows it, for ever."""
    mixed(relay)
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 10
    assert sequences(relay) == list(range(1, 21, 2))
    assert relay.send(batch(2, 3, following=21)) == Acknowledgement((2, 3))
    other = RelayInProcess(place)
    assert other.retain(ALL_FOR_A_DAY, DAY_S) == 10
    assert other.send(batch(2, 3, 21)) == Acknowledgement((2, 3, 21))
    assert other.store.statistics()["repeated"] == 2
    other.store.close()
    assert sequences(relay) == [21]
    account = relay.account()
    assert (account.stored, account.deleted, account.missing, account.adds_up) == (1, 20, 0, True)
    check_consistent(session)


def test_keys_go_by_their_own_rule_and_the_first_one_decides(relay: RelayInProcess, session: PostgresSession) -> None:
    """Debugging data is kept for days and accidents for years, in one store."""
    mixed(relay)
    with open_reader(relay.path) as reader:
        before = {record.fields["sequence"]: record for record in reader.page(Query(limit=100)).records}
        assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 10
        left = reader.page(Query(limit=100, newest_first=False)).records
        assert left == [before[number] for number in range(1, 21, 2)]
        assert [record.fields["sequence"] for record in reader.newest(Query()).records] == [19]
        assert [one.fields["sequence"] for _, one in reader.arrivals(Query(), 0).records] == list(range(1, 21, 2))
    account = relay.account()
    assert (account.stored, account.deleted, account.missing) == (10, 10, 0)
    assert session.row("SELECT first, last FROM known_ranges") == (2, 20), "one range, whatever was kept between"
    check_consistent(session)


def test_newest_of_a_stream_is_right_after_its_newest_was_deleted(
    relay: RelayInProcess, session: PostgresSession
) -> None:
    """A late record may be all that is left of a stream, beside another rule's."""
    relay.send(batch(9))
    session.execute("UPDATE records SET received_utc_ns = received_utc_ns - $1", int(DAY_S * SECOND))
    relay.send(batch(3, 5, following=10))
    session.execute("UPDATE records SET rule = 's' WHERE sequence = 5; UPDATE streams SET records = 2, size_bytes ="
                    " size_bytes / 3 * 2; INSERT INTO streams SELECT key, origin, 's', 1, newest_utc_ns, size_bytes / 2"
                    " FROM streams")  # fmt: skip
    session.execute("UPDATE streams SET newest_utc_ns = $1 WHERE rule = 's'", BASE_NS + 5 * SECOND)
    check_consistent(session)
    assert relay.retain(ALL_FOR_A_DAY, DAY_S / 2) == 1
    with open_reader(relay.path) as reader:
        assert [record.fields["sequence"] for record in reader.newest(Query()).records] == [5]
        assert [record.fields["sequence"] for record in reader.newest(Query(rule="r")).records] == [3]
    check_consistent(session)


def test_streams_of_a_slice_share_what_it_looks_through_for_their_newest(
    relay: RelayInProcess, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may invent hundreds of rules and send very many newer records of their key."""
    monkeypatch.setattr(removing, "MAX_SAME_KEY", 8)
    sent = [("a", 5), ("b", 5), ("a", 1), ("b", 2), *(("z", 10 + number) for number in range(6))]
    records = [Record(at, rule, Raw(encode_reading(reading(second)))) for at, (rule, second) in enumerate(sent, 1)]
    relay.send(Batch(MAJOR, MINOR, "v-1", 1, 11, tuple(records), ()))

    def retained(*going: int) -> dict[str, int]:
        session.execute("UPDATE records SET received_utc_ns = 0 WHERE sequence = ANY ($1::int[])", list(going))
        assert relay.retain(ALL_FOR_A_DAY, DAY_S / 2) == len(going)
        rows = session.rows("SELECT rule, newest_utc_ns FROM streams")
        return {rule: (newest_utc_ns - BASE_NS) // SECOND for rule, newest_utc_ns in rows}

    assert retained(1, 2) == {"a": 12, "b": 12, "z": 15}, "four newer records for each: it is no later than that"
    relay.send(Batch(MAJOR, MINOR, "v-1", 1, 12, (Record(11, "b", Raw(encode_reading(reading(16)))),), ()))
    assert retained(11) == {"a": 12, "b": 2, "z": 15}, "a slice with one stream looks further"


def test_each_look_goes_on_where_the_one_before_came_and_none_is_forgotten(
    place: PostgresPlace, relay: RelayInProcess, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten million records that stay are not gone through every five minutes; one of a clock that was wrong stays no
    longer than until the next day."""
    monkeypatch.setattr(keeper, "PAGE_ROWS", 3)
    now_ns = [BASE_NS]
    policy = RetentionPolicy((RetentionRule("**/debug/**", 100.0), RetentionRule("**/speed", 200.0)))
    looked: list[int] = []
    with closing(PostgresKeeper(place, policy, lambda: now_ns[0])) as ours:

        def retained(after_s: float) -> list[int]:
            now_ns[0] = BASE_NS + int(after_s * SECOND)
            rows = ours._session.rows
            looked.append(0)

            def counted(statement: str, *values: object) -> list[Any]:
                looked[-1] += statement.startswith("SELECT number, origin, key")
                return rows(statement, *values)

            monkeypatch.setattr(ours._session, "rows", counted)
            ours.retain_once()
            monkeypatch.undo()
            monkeypatch.setattr(keeper, "PAGE_ROWS", 3)
            return sequences(relay)

        for number, key in enumerate(("x", "debug/x", "speed", "x", "debug/x", "speed", "debug/x", "speed", "x"), 1):
            relay.send(batch(number, key=f"veh/v-1/{key}"))
            session.execute(
                "UPDATE records SET received_utc_ns = $1 WHERE sequence = $2", BASE_NS + 10 * number * SECOND, number
            )
        session.execute("UPDATE records SET received_utc_ns = $1 WHERE sequence = 5", BASE_NS + 10_000 * SECOND)
        assert retained(0) == [*range(1, 10)], "nothing is that old, by a clock that says so"
        assert retained(121) == [1, 3, 4, 5, 6, 7, 8, 9]
        assert retained(171) == [1, 3, 4, 5, 6, 8, 9], "the record from the future holds up nothing"
        assert retained(261) == [1, 4, 5, 8, 9]
        assert retained(1_000) == [1, 4, 5, 9]
        assert retained(1_001) == [1, 4, 5, 9]
        assert looked[-1] <= 2, "a page for each age"
        assert retained(11_000) == [1, 4, 5, 9]
        monkeypatch.setattr(keeper, "SWEEP_S", 0.0)
        now_ns[0] = BASE_NS + 11_000 * SECOND
        assert ours.retain_once() == 1
        assert sequences(relay) == [1, 4, 9]
    check_consistent(session)


def test_records_of_an_origin_that_is_busy_stay_until_it_is_not(
    place: PostgresPlace, relay: RelayInProcess, session: PostgresSession
) -> None:
    """Retention waits for no batch, and one that hangs holds up its own node only."""
    relay.send(batch(1, 2))
    relay.send(batch(1, 2, node="v-2"), "v-2")
    with closing(PostgresKeeper(place, ALL_FOR_A_DAY, lambda: BASE_NS + int(DAY_S * SECOND))) as ours:
        session.execute("BEGIN")
        session.rows("SELECT pg_advisory_xact_lock($1, $2)", ORIGIN_LOCKS, origin_lock("v-1"))
        assert ours.retain_once() == 2
        session.execute("COMMIT")
        assert [one.stored for one in relay.accounts()] == [2, 0]
        assert ours.retain_once() == 2
        assert ours.statistics() == {"deleted": 4, "failures": 0}


# --- size -----------------------------------------------------------------------------------------------------------
def test_store_beyond_its_size_loses_its_oldest_records(relay: RelayInProcess, session: PostgresSession) -> None:
    """A disk has an end, and the newest records are worth most."""
    random = Random(1)
    for begin in range(1, 201, 5):
        relay.send(batch(*range(begin, begin + 5), key="veh/v-1/é", value=random.randbytes(5_000)))
    check_consistent(session)
    used = session.row("SELECT sum(size_bytes)::bigint FROM streams")[0]
    one = used // 200
    policy = RetentionPolicy((RetentionRule("**", None),), max_bytes=used - 40 * one + one // 2)
    assert relay.retain(policy, 0.0) == 40
    assert sequences(relay) == list(range(41, 201))
    assert relay.retain(policy, 0.0) == 0
    assert relay.account().deleted == 40
    check_consistent(session)


def test_size_that_is_counted_is_about_what_the_disk_has(relay: RelayInProcess, session: PostgresSession) -> None:
    """Otherwise nobody could say what to write into a configuration."""
    for begin in range(1, 5_001, 250):
        relay.send(batch(*range(begin, begin + 250)))
    counted = session.row("SELECT sum(size_bytes)::bigint FROM streams")[0]
    disk = session.row("SELECT pg_total_relation_size('records') + pg_total_relation_size('receipts')")[0]
    assert 0.7 < counted / disk < 1.4


# --- what belongs to records ----------------------------------------------------------------------------------------
def test_receipts_go_with_their_records_and_no_sooner(place: PostgresPlace, tmp_path: Path) -> None:
    """A proof needs the hashes of all records that were signed together, also of those that are gone."""
    mesh = ReceiptMesh(tmp_path, place=place)
    relay, anchor, key = mesh.relay, read_authority(mesh.anchor), mesh.key()
    with closing(PostgresSession(place, 60, {})) as session, open_reader(place) as reader:
        session.connect()
        relay.send(batch(1, 2, following=3))
        relay.send(mesh.sealed(*range(1, 11), key=key))
        relay.send(mesh.sealed(*range(11, 16), key=key))
        session.execute("UPDATE records SET received_utc_ns = received_utc_ns - 60000000000 WHERE sequence <= 5")
        check_consistent(session)
        assert relay.retain(ALL_FOR_A_DAY, DAY_S - 30) == 5
        check_consistent(session)
        assert session.row("SELECT count(*) FROM receipts")[0] == 2
        for sequence in range(6, 16):
            assert proven(reader.proof("v-1", sequence), anchor).record.sequence == sequence
        with pytest.raises(LocalProtocolError, match="no record 3"):
            reader.proof("v-1", 3)
        assert relay.account().with_receipt == 10
        assert relay.send(mesh.sealed(*range(1, 11), key=key, following=16)) == Acknowledgement(tuple(range(1, 11)))
        session.execute("UPDATE records SET received_utc_ns = received_utc_ns - 60000000000 WHERE sequence <= 10")
        assert relay.retain(ALL_FOR_A_DAY, DAY_S - 30) == 5
        assert session.row("SELECT count(*) FROM receipts")[0] == 1
        check_consistent(session)
        assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 5
        assert session.row("SELECT count(*) FROM receipts")[0] == 0
    assert relay.account().with_receipt == 0
    relay.store.close()


def test_numbers_are_not_given_again_after_everything_was_deleted(
    place: PostgresPlace, session: PostgresSession
) -> None:
    """``Last-Event-ID`` of a client of yesterday must not name a record of today, also where the database was restored
    from a dump and transactions are counted anew."""
    relay = RelayInProcess(place)
    relay.send(batch(1, 2, 3))
    session.execute(f"UPDATE records SET number = number + (1000000::bigint << {schema.NUMBER_BITS})")
    session.execute("UPDATE store SET number_base = number_base + 1000000")
    relay.retain(ALL_FOR_A_DAY, DAY_S)
    relay.store.close()
    session.execute("UPDATE store SET number_base = 0")
    later = RelayInProcess(place)
    with open_reader(place) as reader:
        before = reader.newest_number()
        later.send(batch(4))
        assert [one.fields["sequence"] for _, one in reader.arrivals(Query(), before).records] == [4]
    later.store.close()


def test_node_with_very_many_gaps_is_refused_more_of_them(
    relay: RelayInProcess, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges stay for ever, so a node that leaves out each second sequence could fill the disk with them."""
    monkeypatch.setattr(group, "MAX_RANGES_PER_ORIGIN", 3)
    relay.send(batch(1, 3, 5))
    relay.retain(ALL_FOR_A_DAY, DAY_S)
    why = "too many gaps between records of this node"
    assert relay.send(batch(4, 6, 7, 9, 10, following=11)) == Acknowledgement(
        (4, 6, 7), (RefusedRecord(9, why), RefusedRecord(10, why))
    )
    assert relay.send(batch(5, 8, following=11)) == Acknowledgement((5, 8))
    account = relay.account()
    assert (account.stored, account.deleted, account.refused, account.missing) == (4, 3, 2, 1)
    assert isinstance(relay.send(batch(1, 5, node="v-2"), "v-2"), Acknowledgement)
    relay.retain(ALL_FOR_A_DAY, DAY_S)
    check_consistent(session)


def test_gaps_too_long_to_look_into_are_left_as_they_are(
    relay: RelayInProcess, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice holds up batches, so what it looks at is bounded; a range more is no fault."""
    monkeypatch.setattr(removing, "MAX_COUNTED", 4)
    relay.send(batch(*range(1, 21)))
    session.execute("UPDATE records SET received_utc_ns = 0 WHERE sequence IN (1, 4, 15, 16, 20)")
    assert relay.retain(ALL_FOR_A_DAY, 0.0) == 5
    ranges = session.rows("SELECT first, last FROM known_ranges ORDER BY first")
    assert list(map(tuple, ranges)) == [(1, 4), (15, 16), (20, 20)]
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 15
    check_consistent(session)
    assert relay.account().deleted == 20


# --- several relays -------------------------------------------------------------------------------------------------
def test_two_relays_delete_at_once_while_batches_come_and_come_again(
    place: PostgresPlace, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None leads: whatever they find together, each record is stored once and deleted once."""
    monkeypatch.setattr(keeper, "SLICE_RECORDS", 7)
    monkeypatch.setattr(keeper, "RETAIN_S", 0.0)
    monkeypatch.setattr(keeper, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(keeper, "SWEEP_S", 0.0)
    relays = [RelayInProcess(place), RelayInProcess(place)]
    policy = RetentionPolicy((RetentionRule("**/debug", 1.0),))
    keepers = [PostgresKeeper(place, policy, lambda: BASE_NS + 2 * SECOND) for _ in relays]
    keeping = ExitStack()
    for one in keepers:
        keeping.callback(one.close)
        one.start()

    def send(node: str) -> None:
        for number in range(1, 200, 5):
            key = f"veh/{node}/{'debug' if number % 2 else 'speed'}"
            part = batch(*range(number, number + 5), node=node, key=key, following=number + 5)
            for relay in relays:
                assert relay.send(part, node) == Acknowledgement(tuple(range(number, number + 5)))

    with keeping, ThreadPoolExecutor(3) as threads:
        list(threads.map(send, ("v-1", "v-2", "v-3")))
        eventually(lambda: sum(one.deleted for one in relays[0].accounts()) == 300, "all for debugging are deleted")
    accounts = relays[0].accounts()
    assert [(one.stored + one.deleted, one.missing, one.adds_up) for one in accounts] == [(200, 0, True)] * 3
    assert sum(one.deleted for one in accounts) == sum(one.statistics()["deleted"] for one in keepers)
    assert not sequences(relays[0], key="**/debug")
    assert all(one.statistics()["failures"] == 0 for one in keepers)
    assert sum(relay.store.statistics()["stored"] for relay in relays) == 600
    check_consistent(session)
    for relay in relays:
        relay.store.close()


def test_two_relays_delete_no_more_together_than_the_size_is_exceeded_by(
    place: PostgresPlace, relay: RelayInProcess, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sees the same excess at first."""
    monkeypatch.setattr(keeper, "SLICE_RECORDS", 7)
    for node in ("v-1", "v-2"):
        relay.send(batch(*range(1, 201), node=node), node)
    one = session.row("SELECT max(size_bytes / records) FROM streams")[0]
    policy = RetentionPolicy(max_bytes=100 * one)
    keepers = [PostgresKeeper(place, policy, lambda: BASE_NS) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        gone = list(threads.map(PostgresKeeper.retain_once, keepers))
    for keeping in keepers:
        keeping.close()
    assert 298 <= sum(gone) <= 302
    check_consistent(session)


def test_keeper_goes_on_after_the_server_ended_its_connection(
    place: PostgresPlace, relay: RelayInProcess, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a restart or a failover does, at any moment of a slice. A slice is there or not."""
    monkeypatch.setattr(keeper, "SLICE_RECORDS", 10)
    monkeypatch.setattr(keeper, "RETRY_S", (0.0, 0.0))
    relay.send(batch(*range(1, 201)))
    steps = count()
    end = PostgresSession.rows

    def ended(self: PostgresSession, statement: str, *values: object) -> list[Any]:
        if threading.current_thread().name == "keeper" and next(steps) % 11 == 10:
            session.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cloud-relay'"
                " AND pid = $1", self._connection.get_server_pid() if self._connection else 0,
            )  # fmt: skip
        return end(self, statement, *values)

    monkeypatch.setattr(PostgresSession, "rows", ended)
    with closing(PostgresKeeper(place, ALL_FOR_A_DAY, lambda: BASE_NS + int(DAY_S * SECOND))) as ours:
        ours.start()
        eventually(lambda: relay.account().stored == 0, "all are deleted")
    assert ours.statistics()["failures"] > 3
    account = relay.account()
    assert (account.deleted, account.adds_up) == (200, True)
    check_consistent(session)


# --- tables -----------------------------------------------------------------------------------------------------------
def test_store_of_the_version_before_is_changed_with_its_records(
    place: PostgresPlace, session: PostgresSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are to be deleted as those that came since."""
    mesh = ReceiptMesh(tmp_path, place=place)
    mesh.relay.send(batch(1, following=2))
    mesh.relay.send(mesh.sealed(*range(1, 11)))
    mesh.relay.send(batch(12, 13, fates=(Fate(11, 11, "expired"),), key="veh/v-1/é"))
    mesh.relay.store.close()
    session.execute(
        "DROP TABLE known_ranges, aggregates, aggregate_groups, aggregate_changes, sinks, sink_deletions;"
        " ALTER TABLE origins DROP COLUMN deleted, DROP COLUMN known_ranges;"
        " ALTER TABLE store DROP COLUMN deleted, DROP COLUMN newest_deleted;"
        " ALTER TABLE streams DROP COLUMN size_bytes; ALTER TABLE receipts DROP COLUMN records;"
        " UPDATE store SET version = 1"
    )
    with pytest.raises(StorageError, match="start a relay of this program on it once"), open_reader(place):
        pass
    relay = RelayInProcess(place)
    check_consistent(session)
    before = relay.account()
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 12
    assert relay.account() == replace(before, stored=0, deleted=12, with_receipt=0)
    check_consistent(session)
    relay.store.close()
