"""Questions to the relay's store: each finds exactly what it asks for, whichever index it goes along, and costs what it
may."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import Raw

from cloud_relay.query import searching, sources
from cloud_relay.query.newest import newest_page
from cloud_relay.query.searching import find_page
from cloud_relay.query.selection import Box, Query, parse_box, place_of, untrusted_query
from cloud_relay.store.packs.reading import PackReader
from cloud_relay.store.schema import open_for_reading
from protocols.base.errors import LocalProtocolError, StorageError
from protocols.base.ids import Role, UtcNs
from protocols.base.keys import matches
from protocols.base.limits import SECOND
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Record
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch, given_relay  # noqa: F401 -- a fixture
from tests.tools.stored_fixture import every_record

KEYS = ("veh/v-1/speed", "veh/v-1/hazard", "veh/v-2/speed", "rsu/r-1/hazard", "veh")
PLACES = (
    (48.7, 11.4), (48.7049, 11.4049), (48.71, 11.41), (-17.0, 179.995), (-17.0, -179.995), (-17.0, 180.0),
    (-17.0, -180.0), (90.0, 77.0), (-90.0, -3.0), (89.99, 40.0), (0.0, 0.0), (-0.004, -0.004),
)  # fmt: skip


def records_of(node: str, count: int, random: Random) -> Batch:
    """Records of a node at few times, so that many have the same."""
    made = []
    for number in range(1, count + 1):
        latitude_deg, longitude_deg = random.choice(PLACES)
        reading = Reading(
            random.choice(KEYS), "v-9", number, number, Position(latitude_deg, longitude_deg, 1.0),
            EventTime(BASE_NS + random.randrange(12) * SECOND, 0), Provenance("s", "1", random.choice((0.2, 0.5, 1.0))),
        )  # fmt: skip
        made.append(Record(number, random.choice(("a", "b")), Raw(encode_reading(reading))))
    return Batch(1, 7, node, 1, count + 1, tuple(made))


@pytest.fixture(name="mixed", scope="module", params=["rows", "half packed", "packed"])
def given_mixed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sqlite3.Connection]:
    """A store with 300 records of three nodes, none, some or all of which are in packs."""
    relay, random = RelayInProcess(tmp_path_factory.mktemp("mixed") / "relay.sqlite"), Random(5)
    for node in ("v-1", "v-10", "v-2"):
        answer = relay.send(records_of(node, 100, random), node=node)
        assert isinstance(answer, Acknowledgement)
        assert len(answer.stored) == 100
    if request.param != "rows":
        assert relay.pack(40, 4 if request.param == "half packed" else 1_000) == (
            4 if request.param == "half packed" else 8
        )
    relay.store.close()
    with closing(open_for_reading(relay.path)) as db:
        yield db


def pages(db: sqlite3.Connection, query: Query, patience_s: float = 60.0) -> list[list[tuple[int, str, int]]]:
    """Everything that a question finds, page by page."""
    found = []
    while True:
        page = find_page(db, query, patience_s)
        assert len(page.records) <= query.limit
        found.append([place(record.fields) for record in page.records])
        if page.cursor is None:
            return found
        query = replace(query, after=place_of(page.cursor))


def rounds(db: sqlite3.Connection, many: int) -> int:
    """Fewer, where each page opens packs anew."""
    return many if db.execute("SELECT 1 FROM packs").fetchone() is None else many // 4


def place(fields: dict[str, Any]) -> tuple[int, str, int]:
    return fields["event_utc_ns"], fields["origin"], fields["sequence"]


def in_box(box: Box, latitude_deg: float, longitude_deg: float) -> bool:
    """By the angle between meridians, which is another way than that of the product."""
    if not box.south <= latitude_deg <= box.north:
        return False
    width = 360.0 if (box.west, box.east) == (-180, 180) else (box.east - box.west) % 360
    return abs(latitude_deg) == 90 or (longitude_deg - box.west) % 360 <= width + 1e-12


def expected(rows: list[dict[str, Any]], query: Query) -> list[tuple[int, str, int]]:
    """What a question should find, by looking at each record."""
    found = [
        place(row)
        for row in rows
        if (query.key is None or matches(query.key, row["key"]))
        and query.origin in (None, row["origin"])
        and query.rule in (None, row["rule"])
        and (query.since_utc_ns is None or row["event_utc_ns"] >= query.since_utc_ns)
        and (query.until_utc_ns is None or row["event_utc_ns"] < query.until_utc_ns)
        and (query.min_quality is None or row["quality"] >= query.min_quality)
        and (query.box is None or in_box(query.box, row["latitude_deg"], row["longitude_deg"]))
    ]
    return sorted(found, reverse=query.newest_first)


def random_query(random: Random) -> Query:
    """Filters, mostly few of them."""

    def maybe(share: float, *choices: Any) -> Any:
        return random.choice(choices) if random.random() < share else None

    since = maybe(0.3, *range(12))
    until = maybe(0.3, *range(1, 13))
    return Query(
        key=maybe(0.5, "veh/**", "veh/v-1/speed", "*/*/hazard", "**/speed", "veh", "none", "**"),
        origin=maybe(0.3, "v-1", "v-10", "v-2", "v-3"),
        rule=maybe(0.3, "a", "b", "c"),
        since_utc_ns=None if since is None else BASE_NS + since * SECOND,
        until_utc_ns=None if until is None else BASE_NS + until * SECOND,
        box=maybe(
            0.5, parse_box("48.7,11.4,48.705,11.405"), parse_box("40,0,50,20"), parse_box("-17.01,179.99,-17,-179.99"),
            parse_box("-17.01,179.99,-17,180"), parse_box("-17.01,-180,-17,-179.99"), parse_box("89.9,-10,90,-9"),
            parse_box("-90,-180,90,180"), parse_box("-0.01,-0.01,0,0"), parse_box("-17,180,-17,180"),
        ),
        min_quality=maybe(0.2, 0.5, 1.0),
        limit=random.choice((20, 100, 1_000)),
        newest_first=random.random() < 0.5,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["streams", "cells", "time", "small chunks"])
def test_pages_find_exactly_what_is_asked_for_along_each_index(
    mixed: sqlite3.Connection, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which index is used is for speed alone: the answer must be the same, in order, each record once."""
    if path == "cells":
        monkeypatch.setattr(sources, "FEW_RECORDS", -1)
    if path == "time":
        monkeypatch.setattr(sources, "MAX_SOURCES", 0)
    if path == "small chunks":
        monkeypatch.setattr(sources, "_FIRST_CHUNKS", (1, 1))
        monkeypatch.setattr(sources, "_MAX_CHUNK", 3)
    random = Random(path)
    rows = [record.fields for record in every_record(mixed, Query(limit=10_000))]
    assert len(rows) == 300
    for _ in range(rounds(mixed, 60)):
        query = random_query(random)
        assert list(chain(*pages(mixed, query))) == expected(rows, query), query


def test_impatient_pages_come_to_the_same_end(mixed: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that had no time left must neither lose records nor stand still."""
    monkeypatch.setattr(sources, "_FIRST_CHUNKS", (2, 2))
    monkeypatch.setattr(sources, "_MAX_CHUNK", 8)
    rows = [record.fields for record in every_record(mixed, Query(limit=10_000))]
    random = Random(7)
    for _ in range(rounds(mixed, 12)):
        query = random_query(random)
        found = pages(mixed, query, patience_s=-1.0)
        assert max(map(len, found)) <= 1
        assert list(chain(*found)) == expected(rows, query), query


def test_steps_of_a_rule_come_in_order_although_other_rules_have_newer_records(relay: RelayInProcess) -> None:
    """A page that ends where nothing was found goes on from there: at a place before its last record, that one would
    come twice."""
    made = [(n, "veh/v-1/speed", "busy", 100 + n) for n in range(1, 31)] + [(31, "veh/v-1/speed", "quiet", 0)]
    made += [(n, "veh/v-1/hazard", "quiet", n) for n in range(32, 42)]
    relay.send(Batch(1, 7, "v-1", 1, 42, tuple(
        Record(number, rule, Raw(encode_reading(Reading(
            key, "v-1", number, number, Position(48.7, 11.4, 1.0), EventTime(BASE_NS + second * SECOND, 0),
            Provenance("s", "1", 1.0),
        ))))
        for number, key, rule, second in made
    )))  # fmt: skip
    with closing(open_for_reading(relay.path)) as db:
        sources.prepare(db)
        for query in (Query(rule="quiet", limit=5), Query(rule="quiet", limit=5, newest_first=False)):
            places = [step.place for step in sources.merged_steps(db, query, PackReader(db))]
            assert places == sorted(places, reverse=query.newest_first)


def test_page_is_bounded_in_bytes_whatever_limit_it_has(relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of the largest records would take a gigabyte of memory."""
    monkeypatch.setattr(searching, "MAX_PAGE_BYTES", 20_000)
    relay.send(batch(*range(1, 31), value="x" * 2_000))
    with closing(open_for_reading(relay.path)) as db:
        found = pages(db, Query(limit=1_000))
    assert [len(page) for page in found] == [5, 5, 5, 5, 5, 5, 0]


def test_question_looks_at_few_rows_whatever_it_asks(mixed: sqlite3.Connection) -> None:
    """SQLite must go along an index in order: a sort would take the memory of all that is found."""
    statements: list[str] = []
    random = Random(11)
    for _ in range(60):
        mixed.set_trace_callback(statements.append)
        find_page(mixed, random_query(random))
        mixed.set_trace_callback(None)
    asked = {text for text in statements if "INDEXED BY" in text}
    if mixed.execute("SELECT 1 FROM records").fetchone() is not None:
        assert {text.split("INDEXED BY ")[1].split()[0] for text in asked} == {
            "records_in_streams", "records_in_cells", "records_in_time",
        }  # fmt: skip
    sources.prepare(mixed)
    for text in asked:
        steps = [row[3] for row in mixed.execute("EXPLAIN QUERY PLAN " + text)]
        assert len(steps) == 1, (text, steps)
        assert steps[0].startswith("SEARCH records USING"), (text, steps)


# --- the newest of each key ------------------------------------------------------------------------------------------
def test_newest_of_each_key_follows_late_and_repeated_records(relay: RelayInProcess) -> None:
    """A record that comes late is not newer than one that was sensed after it; one that comes again changes nothing."""
    relay.send(batch(1, 2, 5))
    relay.send(batch(1, node="r-1", key="rsu/r-1/hazard"), node="r-1", role=Role.RSU)
    relay.send(batch(2, 4, 5))
    with closing(open_for_reading(relay.path)) as db:

        def newest(**of: Any) -> list[tuple[str, int]]:
            return [(r.fields["key"], r.fields["sequence"]) for r in newest_page(db, Query(**of)).records]

        assert newest() == [("rsu/r-1/hazard", 1), ("veh/v-1/speed", 5)]
        assert newest(key="veh/**") == newest(origin="v-1") == [("veh/v-1/speed", 5)]
        assert newest(since_utc_ns=BASE_NS + 2 * SECOND) == [("veh/v-1/speed", 5)]
        assert newest(rule="none") == newest(key="none") == newest(box=parse_box("0,0,1,1")) == []
        assert newest(box=parse_box("48,11,49,12"), min_quality=0.9) == newest()
        assert newest(min_quality=0.95) == []
        records, streams = db.execute("SELECT sum(records), count(*) FROM streams").fetchone()
        assert (records, streams) == (5, 2)
        page = newest_page(db, Query(limit=1))
        assert page.cursor == "rsu/r-1/hazard"
        rest = newest_page(db, Query(limit=1), page.cursor)
        assert [record.fields["key"] for record in rest.records] == ["veh/v-1/speed"]
        assert newest_page(db, Query(), rest.cursor) == ([], None)


def test_newest_of_each_key_is_that_of_all_nodes_and_rules(mixed: sqlite3.Connection) -> None:
    """Several nodes may send one key; only their newest record is its newest."""
    rows = [record.fields for record in every_record(mixed, Query(limit=10_000))]
    for of in ({}, {"origin": "v-10"}, {"rule": "b"}, {"key": "veh/**", "rule": "a"}):
        query = Query(**of)  # type: ignore[arg-type]
        newest: dict[str, tuple[int, str, int]] = {}
        for row in rows:
            if place(row) in expected([row], query):
                newest[row["key"]] = max(newest.get(row["key"], (0, "", 0)), place(row))
        found = newest_page(mixed, query).records
        assert {record.fields["key"]: place(record.fields) for record in found} == newest
        assert [record.fields["key"] for record in found] == sorted(newest)


def test_newest_of_keys_that_few_match_is_looked_for_in_bounded_pages(mixed: sqlite3.Connection) -> None:
    """A node may invent keys by the million; a question that none of them matches must not hold a thread meanwhile."""
    for key, patient in (("**/none", []), ("**/hazard", ["rsu/r-1/hazard", "veh/v-1/hazard"])):
        query, cursor, found, pages_seen = Query(key=key), None, [], 0
        while pages_seen == 0 or cursor is not None:
            page = newest_page(mixed, query, cursor, patience_s=-1.0)
            found += [record.fields["key"] for record in page.records]
            cursor, pages_seen = page.cursor, pages_seen + 1
        assert (found, pages_seen) == (patient, len(KEYS) + 1)


# --- stores of earlier versions --------------------------------------------------------------------------------------
def made_older(path: Path, version: int) -> None:
    """Take out of a store what this version brought."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "DROP TABLE streams; DROP INDEX records_in_streams; DROP INDEX records_in_time;"
            "DROP INDEX records_in_cells;"
            "CREATE INDEX records_by_key ON records (key, event_utc_ns);"
            "CREATE INDEX records_by_time ON records (event_utc_ns);"
            "CREATE INDEX records_by_place ON records (latitude_deg, longitude_deg);"
            "DROP TABLE aggregates; DROP TABLE aggregate_groups; DROP TABLE aggregate_changes;"
            f"PRAGMA user_version = {version}"
        )


def test_store_of_version_2_is_read_as_it_is_and_indexed_by_the_next_relay(tmp_path: Path) -> None:
    """Who only looks must not change the file; a relay that takes it over must know all that is in it."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    relay.send(batch(1, 3))
    relay.store.close()
    made_older(relay.path, 2)
    with closing(open_for_reading(relay.path)) as db:
        query = Query(key="veh/**", box=parse_box("48,11,49,12"), limit=1)
        assert [len(page) for page in pages(db, query)] == [1, 1, 0]
        with pytest.raises(StorageError, match="start the relay once"):
            newest_page(db, Query())
    later = RelayInProcess(relay.path)
    try:
        assert later.send(batch(2, 3)) == Acknowledgement((2, 3))
        with closing(open_for_reading(relay.path)) as db:
            stream = db.execute("SELECT * FROM streams").fetchall()
            assert stream == [("veh/v-1/speed", "v-1", "r", 3, BASE_NS + 3 * SECOND)]
            assert [record.fields["sequence"] for record in newest_page(db, Query()).records] == [3]
            names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'index'")}
            assert not {name for name in names if name.startswith("records_by_")}
    finally:
        later.store.close()


# --- questions as text -----------------------------------------------------------------------------------------------
def test_question_in_text_means_what_its_parts_say() -> None:
    """Commands, HTTP and exports read it here."""
    query = untrusted_query(
        {
            "key": "veh/**", "origin": "v-1", "rule": "r", "since": "1h", "until": "2026-01-31", "limit": "7",
            "box": "1,2,3,4", "min_quality": "0.5", "order": "oldest", "cursor": "5.7.v-2",
        },
        UtcNs(7200 * SECOND),
    )  # fmt: skip
    assert query == Query(
        "veh/**", "v-1", "r", 3600 * SECOND, 1769817600 * SECOND, Box(1, 2, 3, 4), 0.5, 7, False, (5, "v-2", 7)
    )


@pytest.mark.parametrize("before", ["999999999d", "0001-01-01", "1960-01-01T00:00+14:00"])
def test_times_long_before_all_records_are_times(mixed: sqlite3.Connection, before: str) -> None:
    """SQLite can't hold the nanoseconds of such a time; the answer is known all the same."""
    until, since = untrusted_query({"until": before}, UtcNs(0)), untrusted_query({"since": before}, UtcNs(0))
    assert list(chain(*pages(mixed, until))) == []
    assert len(list(chain(*pages(mixed, since)))) == 300
    assert newest_page(mixed, since).records


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kye": "veh"}, "'kye': did you mean 'key'"),
        ({"x" * 99: ""}, "known are key, origin"),
        ({"key": "a//b"}, "empty chunk"),
        ({"key": ""}, "empty"),
        ({"origin": "V 1"}, "'V 1'"),
        ({"rule": ""}, "rule ''"),
        ({"rule": "\udcff"}, "can't be shown"),
        ({"since": "tomorrow"}, "'tomorrow'"),
        ({"since": "9" * 40}, "ISO 8601"),
        ({"since": "5", "until": "5"}, "since '5' is not before until '5'"),
        ({"box": "1,2,3"}, "'1,2,3'"),
        ({"box": "91,0,0,0"}, "not on earth"),
        ({"box": "nan,0,0,inf"}, "not on earth"),
        ({"min_quality": "nan"}, "min_quality is 'nan'"),
        ({"limit": "0"}, "from 1 to 1000"),
        ({"limit": "1001"}, "from 1 to 1000"),
        ({"limit": "٣"}, "'٣'"),
        ({"order": "up"}, "newest or oldest"),
        ({"cursor": "x"}, "give it unchanged"),
        ({"cursor": f"{2**63}.1.v"}, "give it unchanged"),
        ({"cursor": "1.1.v'--"}, "give it unchanged"),
    ],
)
def test_wrong_question_is_refused_with_its_value(given: dict[str, str], said: str) -> None:
    """A value that is misread gives an answer that looks like a true one."""
    with pytest.raises(LocalProtocolError) as raised:
        untrusted_query(given, UtcNs(0))
    assert said in str(raised.value)
