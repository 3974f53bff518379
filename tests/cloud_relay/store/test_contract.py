"""What every store promises: the same tests run on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from msgspec import Raw

from cloud_relay.query.aggregating import untrusted_aggregates
from cloud_relay.query.proofs import proven
from cloud_relay.query.readers.contract import StoreReader
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.selection import Query, parse_box, place_of
from cloud_relay.store.places import StorePlace
from meshnode.identity.signatures import read_authority
from protocols.base.errors import LocalProtocolError, StorageError
from protocols.base.ids import UtcNs
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Fate, Record, RelayRefusal
from tests.tools.postgres_fixture import given_place, given_postgres  # noqa: F401 -- fixtures
from tests.tools.receipt_fixture import ReceiptMesh
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch

pytestmark = pytest.mark.processes


@pytest.fixture(name="relay")
def given_any_relay(place: StorePlace) -> Iterator[RelayInProcess]:
    relay = RelayInProcess(place)
    yield relay
    relay.store.close()


@pytest.fixture(name="reader")
def given_reader(place: StorePlace, relay: RelayInProcess) -> Iterator[StoreReader]:
    with open_reader(place) as reader:
        yield reader


@pytest.fixture(name="mesh")
def given_mesh(place: StorePlace, tmp_path: Path) -> Iterator[ReceiptMesh]:
    mesh = ReceiptMesh(tmp_path, place=place)
    yield mesh
    mesh.relay.store.close()


# --- batches -------------------------------------------------------------------------------------------------------
def test_batch_that_comes_again_is_acknowledged_and_stored_once(relay: RelayInProcess) -> None:
    """A node that lost the acknowledgement sends again: that must cost nothing and change nothing."""
    for _ in range(3):
        assert relay.send(batch(1, 2, 3)) == Acknowledgement((1, 2, 3))
    assert relay.send(batch(2, 3, 4)) == Acknowledgement((2, 3, 4))
    assert [record["sequence"] for record in relay.records()] == [4, 3, 2, 1]
    counts = relay.store.statistics()
    assert (counts["stored"], counts["repeated"], counts["failures"], counts["batches_waiting"]) == (4, 8, 0, 0)


def test_conflict_keeps_the_first_record_and_refuses_the_second(relay: RelayInProcess) -> None:
    """Two nodes with one id, or a forger inside: the first record stays, and the audit says so."""
    relay.send(batch(1, 2))
    answer = relay.send(batch(2, 3, value="other"))
    assert isinstance(answer, Acknowledgement)
    assert (answer.stored, [one.sequence for one in answer.refused]) == ((3,), [2])
    assert relay.records()[1]["value"] == {"number": 2}
    assert relay.account().conflicts == 1


def test_node_that_goes_back_is_told_where_it_was(relay: RelayInProcess) -> None:
    """An outbox that was lost, or restored: the node has to go on after what the relay has."""
    relay.send(batch(1, 2, 3))
    assert relay.send(batch(1, value="other")) == RelayRefusal("sequence", "4")
    assert relay.account().conflicts == 0


def test_fates_and_records_make_up_the_account(relay: RelayInProcess) -> None:
    """Nothing is lost silently, and what was given up and came after all counts as stored."""
    relay.send(batch(1, 4, fates=(Fate(2, 2, "expired"), Fate(3, 3, "evicted")), following=9))
    relay.send(batch(8, fates=(Fate(5, 6, "evicted"),), following=9))
    relay.send(batch(6, following=9))
    account = relay.account()
    assert (account.stored, account.expired, account.evicted, account.stored_after_all) == (4, 1, 2, 1)
    assert (account.missing, account.gaps, account.outstanding) == (1, ((7, 7),), 0)


def test_fates_beyond_the_ranges_of_an_origin_cost_only_that_origin(
    relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences are free, so a node could make the table of ranges, and every look at it, as large as it likes."""
    monkeypatch.setattr("cloud_relay.store.fates.MAX_RANGES_PER_ORIGIN", 3)
    relay.send(batch(fates=tuple(Fate(number, number, "expired") for number in (1, 3, 5, 7, 9)), following=20))
    assert relay.store.statistics()["fates_beyond_bounds"] == 2
    assert relay.account().expired == 3
    relay.send(batch(fates=(Fate(1, 6, "expired"), Fate(8, 8, "evicted")), following=20))
    assert (relay.account().expired, relay.account().evicted) == (6, 1), "what joins ranges makes room"
    relay.send(batch(fates=(Fate(1, 1, "expired"),), node="v-2"), node="v-2")
    assert [account.expired for account in relay.accounts()] == [6, 1]


def test_fate_across_more_ranges_than_a_batch_may_touch_is_noted_in_part(
    relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fate across all ranges of an origin must not keep the writer from everybody else."""
    monkeypatch.setattr("cloud_relay.store.fates.MAX_TOUCHED_RANGES", 4)
    relay.send(batch(fates=tuple(Fate(number, number, "evicted") for number in range(2, 42, 2)), following=50))
    relay.send(batch(fates=(Fate(1, 41, "expired"),), following=50))
    assert relay.store.statistics()["fates_beyond_bounds"] == 1
    account = relay.account()
    assert (account.evicted, account.expired) == (20, 7)


def test_what_a_store_cannot_hold_is_refused_one_by_one(relay: RelayInProcess) -> None:
    """An odd record never holds up the others of its batch."""
    assert isinstance(relay.send(batch(1)), Acknowledgement)
    odd = Reading("veh/v-1/speed", "v-1", 2**63, 1, Position(0, 0, 1), EventTime(1, 1), Provenance("s", "1"))
    records = [*batch(2).records, Record(3, "r", Raw(encode_reading(odd))), *batch(4).records]
    answer = relay.send(Batch(1, 7, "v-1", 1, 5, tuple(records)))
    assert isinstance(answer, Acknowledgement)
    assert (answer.stored, [one.sequence for one in answer.refused]) == ((2, 4), [3])
    assert relay.account().refused == 1


def test_hostile_texts_and_numbers_come_back_as_they_were(relay: RelayInProcess) -> None:
    """PostgreSQL has no character 0, and JSON no NaN. Nobody may make a store refuse or change what others keep."""
    texts = ["nul \0 \0\0", "\ue000\ue001\ue002\0", "'; DROP TABLE records; --", "\U0010ffff", "\x7f\x85\u2028", ""]
    values: list[Any] = [nan, inf, -inf, 2**63 - 1, -(2**63), 2**64 - 1, "\0", {"\0": ["\0", {"deep": [[[]]]}]}, b"\0"]
    made = [
        Record(number, text, Raw(encode_reading(Reading(
            "veh/v-1/odd", "v-1", 2**63 - 1, value, Position(-90.0, 180.0, 1e308), EventTime(2**63 - 1, 2**63 - 1),
            Provenance(text, text, 0.0, text, (text, "x")),
        ))))
        for number, (text, value) in enumerate(((text, value) for text in texts for value in values), 1)
    ]  # fmt: skip
    answer = relay.send(Batch(1, 7, "v-1", 1, len(made) + 1, tuple(made)))
    assert answer == Acknowledgement(tuple(range(1, len(made) + 1)))
    assert relay.send(Batch(1, 7, "v-1", 1, len(made) + 1, tuple(made))) == answer
    found = relay.records(limit=1_000, newest_first=False)
    expected = [(text, [text, "x"]) for text in texts for _ in values]
    assert [(record["sensor"], record["lineage"]) for record in found] == expected
    assert {(one["rule"], one["unit"], one["calibration"]) for one in found} == {(text,) * 3 for text in texts}
    assert [record["value"] for record in found[:4]] == [None, None, None, 2**63 - 1]
    assert found[0]["event_utc_ns"] == found[0]["reading_sequence"] == 2**63 - 1


def test_batches_of_many_nodes_at_once_are_each_answered(relay: RelayInProcess) -> None:
    """They share transactions: none may get the answer of another one."""
    from concurrent.futures import ThreadPoolExecutor

    nodes = [f"v-{number}" for number in range(40)]
    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(lambda node: relay.send(batch(*range(1, 1 + len(node)), node=node), node), nodes))
    assert answers == [Acknowledgement(tuple(range(1, 1 + len(node)))) for node in nodes]
    assert [account.stored for account in relay.accounts()] == [len(node) for node in sorted(nodes)]


def test_closed_store_takes_nothing(relay: RelayInProcess) -> None:
    """What was queued is finished; what comes later stays at its node."""
    relay.store.close()
    relay.store.close()
    assert relay.send(batch(1)) == RelayRefusal("storage", "the relay's disk does not take records now")


# --- receipts ------------------------------------------------------------------------------------------------------
def test_record_with_a_receipt_is_proved_to_a_stranger(mesh: ReceiptMesh) -> None:
    """A receipt that comes with records that were there without one covers these, and the first one stays."""
    plain, key = batch(1, 2), mesh.key()
    mesh.relay.send(plain)
    for _ in range(2):
        assert mesh.relay.send(mesh.sealed(1, 2, 3, key=key)) == Acknowledgement((1, 2, 3))
    assert mesh.relay.account().with_receipt == 3
    with open_reader(mesh.relay.path) as reader:
        for sequence in (1, 3):
            proof = proven(reader.proof("v-1", sequence), read_authority(mesh.anchor))
            assert (proof.author.node, proof.record.sequence) == ("v-1", sequence)
        with pytest.raises(LocalProtocolError, match="no record 4"):
            reader.proof("v-1", 4)


def test_wrong_receipt_is_noted_and_nothing_stored(mesh: ReceiptMesh) -> None:
    """Somebody tried, or a clock is wrong: a person has to see it."""
    sealed = mesh.sealed(1, 2)
    forged = Batch(*[getattr(sealed, name) for name in sealed.__struct_fields__[:5]], batch(1, 2, value=9).records, (),
                   sealed.receipt, sealed.certificate)  # fmt: skip
    for _ in range(2):
        answer = mesh.relay.send(forged)
        assert isinstance(answer, RelayRefusal)
        assert answer.code == "receipt"
    account = mesh.relay.account()
    assert (account.stored, account.wrong_receipts) == (0, 2)
    assert account.why_wrong


# --- questions -----------------------------------------------------------------------------------------------------
def test_pages_by_cursor_give_each_record_once(relay: RelayInProcess, reader: StoreReader) -> None:
    """In either order, through any filter, and to the end."""
    for node in ("v-1", "v-2"):
        relay.send(batch(*range(1, 31), node=node), node)
    for query in (Query(limit=7), Query(limit=7, newest_first=False, key="veh/**"), Query(limit=7, origin="v-2")):
        found, after = [], None
        while True:
            page = reader.page(
                Query(query.key, query.origin, None, limit=7, newest_first=query.newest_first, after=after)
            )
            found += [
                (one.fields["event_utc_ns"], one.fields["origin"], one.fields["sequence"]) for one in page.records
            ]
            if page.cursor is None:
                break
            after = place_of(page.cursor)
        assert found == sorted(set(found), reverse=query.newest_first)
        assert len(found) == (60 if query.origin is None else 30)


def test_box_across_the_date_line_and_at_a_pole(relay: RelayInProcess, reader: StoreReader) -> None:
    """Both sides of 180° are one meridian, and a pole is in each box that reaches it."""
    for number, (latitude, longitude) in enumerate([(-17, 179.99), (-17, -180), (-17, 0), (90, 5), (90, -170)], 1):
        relay.send(batch(number, latitude_deg=float(latitude), longitude_deg=float(longitude)))
    found = {
        box: sorted(one.fields["sequence"] for one in reader.page(Query(box=parse_box(box))).records)
        for box in ("-18,179,-16,-179", "89,0,90,1", "-18,-1,-16,1", "-17.001,179.98,-16.999,-179.99")
    }
    assert list(found.values()) == [[1, 2], [4, 5], [3], [1, 2]]


def test_newest_of_each_key_and_its_filters(relay: RelayInProcess, reader: StoreReader) -> None:
    """Late records do not become the newest ones."""
    for number, key in enumerate(("veh/v-1/a", "veh/v-1/b", "rsu/r-1/a", "veh"), 1):
        records = tuple(record for n in (number, number + 4, number + 8) for record in batch(n, key=key).records)
        relay.send(Batch(1, 7, f"n-{number}", 1, number + 9, records), f"n-{number}")
    page = reader.newest(Query(limit=3))
    assert [(one.fields["key"], one.fields["sequence"]) for one in page.records] == [
        ("rsu/r-1/a", 11), ("veh", 12), ("veh/v-1/a", 9)
    ]  # fmt: skip
    rest = reader.newest(Query(limit=3), page.cursor)
    assert ([one.fields["sequence"] for one in rest.records], rest.cursor) == ([10], None)
    assert [one.fields["key"] for one in reader.newest(Query(key="veh/*/b")).records] == ["veh/v-1/b"]
    assert reader.newest(Query(key="veh/**", min_quality=0.95)).records == []


def test_aggregates_of_many_units(relay: RelayInProcess, reader: StoreReader) -> None:
    """Groups by key, and values that are no numbers counted apart."""
    for number, value in enumerate((1.0, 2, 3.5, "text", nan), 1):
        relay.send(batch(number, value=value))
    (group,) = reader.aggregates(untrusted_aggregates({"by": "key"}, UtcNs(BASE_NS)))
    assert (group["records"], group["numbers"], group["min"], group["max"], group["p50"]) == (5, 3, 1.0, 3.5, 2.0)


def test_arrivals_come_in_turn_and_none_twice(relay: RelayInProcess, reader: StoreReader) -> None:
    """A stream goes on after a number: nothing that is stored later may have a lower one."""
    relay.send(batch(*range(1, 6)))
    begin = reader.newest_number()
    assert [one.fields["sequence"] for _, one in reader.arrivals(Query(), 0).records] == [1, 2, 3, 4, 5]
    for number in range(6, 12):
        relay.send(batch(number, key=f"veh/v-1/{number % 2}"))
    found = reader.arrivals(Query(key="veh/*/1"), begin)
    assert ([one.fields["sequence"] for _, one in found.records], found.behind) == ([7, 9, 11], 0)
    assert found.reached == reader.newest_number()
    again = reader.arrivals(Query(), found.reached)
    assert (again.records, again.reached) == ([], found.reached)


def test_state_changes_when_an_answer_could(mesh: ReceiptMesh) -> None:
    """Entity tags are made of it: an old answer must never pass for a new one, nor a repeated batch spoil it."""
    mesh.relay.send(batch(1, 2))
    with open_reader(mesh.relay.path) as reader:
        states = [reader.state()]
        for sent in (batch(1, 2), batch(3), mesh.sealed(1, 2, 3)):
            mesh.relay.send(sent)
            states.append(reader.state())
    assert states[0] == states[1]
    assert len(set(states)) == 3


def test_store_says_when_something_was_stored(relay: RelayInProcess) -> None:
    """Live streams wait for it."""
    rung = Event()
    relay.store.at_commit = rung.set
    relay.send(batch(1))
    assert rung.wait(30)


def test_store_of_a_newer_program_is_refused_by_name(relay: RelayInProcess, place: StorePlace) -> None:
    """A program that does not know it would damage it."""
    relay.store.close()
    if isinstance(place, Path):
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(place)) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        from cloud_relay.store.postgres.session import PostgresSession

        session = PostgresSession(place, 5, {})
        session.connect()
        session.execute("UPDATE store SET version = 99")
        session.close()
    with pytest.raises(StorageError, match="version 99, this program knows"):
        RelayInProcess(place)
    with pytest.raises(StorageError, match="version 99, this program knows"), open_reader(place):
        pass
