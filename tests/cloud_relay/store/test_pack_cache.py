"""What is kept of packs from question to question: it changes no answer, stays within its bound, and is not believed
once its pack is gone."""

import gc
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud_relay.query import packed
from cloud_relay.query.packed import one_moment
from cloud_relay.query.readers.sqlite import SqliteReader, SqliteReaders
from cloud_relay.query.searching import find_page, records_of_pages
from cloud_relay.query.selection import Query, place_of
from cloud_relay.query.sources import merged_steps, prepare
from cloud_relay.store.packs import reading
from cloud_relay.store.packs.cache import PackCache
from cloud_relay.store.packs.reading import MAX_OPEN_PACKS, OpenPack, PackReader
from cloud_relay.store.packs.tables import PackEntry
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.schema import open_for_reading
from protocols.base.limits import SECOND
from tests.tools.relay_fixture import (
    BASE_NS,
    RelayInProcess,
    batch,
    given_relay,  # noqa: F401 -- a fixture
)

np = pytest.importorskip("numpy")
pytest.importorskip("zstandard")

DAY_S = 86_400.0
ALL_FOR_A_DAY = RetentionPolicy((RetentionRule("**", DAY_S),))
DEBUG_FOR_A_DAY = RetentionPolicy((RetentionRule("veh/*/debug/**", DAY_S), RetentionRule("**", None)))
OLDEST_FIRST = Query(newest_first=False, limit=1_000)


def sequences(reader: SqliteReader, query: Query = OLDEST_FIRST) -> list[int]:
    return [record.fields["sequence"] for record in records_of_pages(reader.page, query)]


def asked(readers: SqliteReaders, query: Query = OLDEST_FIRST) -> list[int]:
    with readers.reader() as reader:
        return sequences(reader, query)


def kept_bytes(readers: SqliteReaders) -> int:
    with readers.reader() as reader:
        assert reader.cache is not None
        return reader.cache.size_bytes


def blocks_read(readers: SqliteReaders, ask: Callable[[SqliteReader], Any]) -> tuple[Any, int]:
    """The answer, and how many blocks were read for it."""
    statements: list[str] = []
    with readers.reader() as reader:
        reader.db.set_trace_callback(statements.append)
        answer = ask(reader)
    return answer, sum("FROM pack_blocks" in statement for statement in statements)


def contents_of(path: Path) -> list[int]:
    """The numbers of the blocks of all packs."""
    with closing(open_for_reading(path)) as db:
        return [entry.content for entry in PackReader(db).entries]


def entry_of(content: int, pack: int = 1) -> PackEntry:
    return PackEntry(pack, content, 1, 10, 10, 0, 1, 0.0, 0.0, 1.0, 1.0, 1.0, 0, 1, 0, 0)


# --- answers ---------------------------------------------------------------------------------------------------------
def test_following_page_reads_no_block_that_was_read_before(relay: RelayInProcess) -> None:
    """A cursor goes through the same few packs, page after page: each of them is expanded once."""
    relay.send(batch(*range(1, 31)))
    assert relay.pack(10) == 3
    readers = SqliteReaders(relay.path)
    query = Query(limit=5, newest_first=False)
    first, read = blocks_read(readers, lambda reader: reader.page(query))
    assert [record.fields["sequence"] for record in first.records] == [1, 2, 3, 4, 5]
    assert read == 9, "head, columns and body of the first pack"
    again, read = blocks_read(readers, lambda reader: reader.page(query))
    assert (again, read) == (first, 0)


def test_pack_whose_turn_does_not_come_has_only_its_times_read(relay: RelayInProcess) -> None:
    """Packs overlap in time where nodes deliver late. A page that needs none of their records must not pay for them."""
    for at in range(4):
        relay.send(batch(*range(1 + at, 41, 4), following=41))
    assert relay.pack(10) == 4
    query = Query(limit=1, newest_first=False, since_utc_ns=BASE_NS + 17 * SECOND)
    page, read = blocks_read(SqliteReaders(relay.path), lambda reader: reader.page(query))
    assert [record.fields["sequence"] for record in page.records] == [17]
    assert read == 9 + 3, "all of the pack that has it, and the times of the others"


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_over_packs_that_interleave_have_each_record_once(
    relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch, newest_first: bool
) -> None:
    """More packs than stay open at once, whose records lie between one another, at equal times, too."""
    monkeypatch.setattr(packed, "_CHUNK", 2)
    for node in ("v-1", "v-2", "v-3"):
        for at in range(6):
            relay.send(batch(*range(1 + at, 31, 6), node=node, following=31), node=node)
    assert relay.pack(5) == 18 > 2 * MAX_OPEN_PACKS
    readers = SqliteReaders(relay.path)
    found, query = list[tuple[int, str, int]](), Query(limit=7, newest_first=newest_first)
    while True:
        with readers.reader() as reader:
            page = reader.page(query)
        names = ("event_utc_ns", "origin", "sequence")
        found += [tuple(map(record.fields.__getitem__, names)) for record in page.records]
        if page.cursor is None:
            break
        query = replace(query, after=place_of(page.cursor))
    assert found == sorted(found, reverse=newest_first)
    assert len(set(found)) == len(found) == 90


# --- bounds ----------------------------------------------------------------------------------------------------------
def test_cache_holds_no_more_than_it_says_and_says_all_that_it_holds(relay: RelayInProcess) -> None:
    """Long names, odd values and columns alike: what is not counted is not bounded."""
    for start in range(1, 2_001, 200):
        numbers = range(start, start + 200)
        relay.send(batch(*numbers, key=f"veh/v-1/{'k' * 60}/{start}", value="ü" * 100, following=numbers.stop))
    assert relay.pack(400) == 5
    with closing(open_for_reading(relay.path)) as db:
        list(records_of_pages(lambda query: find_page(db, query), OLDEST_FIRST))  # what is loaded once is loaded
        gc.collect()
        cache = PackCache()
        tracemalloc.start()
        try:
            assert len(find_page(db, OLDEST_FIRST, cache=cache).records) == 1_000
            gc.collect()
            held_bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert 100_000 < held_bytes <= cache.size_bytes


@pytest.mark.parametrize("most_bytes", [0, 20_000, 100_000])
def test_cache_that_is_full_lets_go_of_what_was_not_asked_for_longest(relay: RelayInProcess, most_bytes: int) -> None:
    """However small it is, questions are answered."""
    relay.send(batch(*range(1, 201)))
    assert relay.pack(10) == 20
    cache = PackCache(most_bytes)
    with closing(open_for_reading(relay.path)) as db:
        for newest_first in (True, False, True):
            page = find_page(db, Query(limit=1_000, newest_first=newest_first), cache=cache)
            assert len(page.records) == 200
            assert cache.size_bytes <= most_bytes


def test_part_that_was_asked_for_last_stays() -> None:
    """Else one look at everything would leave nothing of what is asked for again and again."""
    cache = PackCache(10_000)
    for content in (1, 2, 3):
        cache.keep(entry_of(content), 0, f"part of {content}", 2_000)
    assert cache.find(entry_of(1), 0) == "part of 1"
    cache.keep(entry_of(4), 0, "part of 4", 2_000)
    assert [cache.find(entry_of(content), 0) for content in (1, 2, 3, 4)] == [
        "part of 1", None, "part of 3", "part of 4",
    ]  # fmt: skip
    cache.keep(entry_of(5), 0, "too large", 10_000)
    assert cache.find(entry_of(5), 0) is None
    assert cache.find(entry_of(4), 0) == "part of 4"


def test_question_over_many_packs_keeps_few_of_them_open(relay: RelayInProcess) -> None:
    """Records that come in random order make packs that all reach over all times."""
    for at in range(40):
        relay.send(batch(*range(1 + at, 201, 40), following=201))
    assert relay.pack(5) == 40
    with closing(open_for_reading(relay.path)) as db:
        prepare(db)
        with one_moment(db) as reader:
            gc.collect()  # or what other tests left would count
            most, found = 0, 0
            for step in merged_steps(db, OLDEST_FIRST, reader):
                found += step.number > 0
                if found % 9 == 0:
                    most = max(most, sum(isinstance(thing, OpenPack) for thing in gc.get_objects()))
    assert found == 200
    assert most <= MAX_OPEN_PACKS


def test_packs_of_very_many_keys_are_not_open_together(relay: RelayInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may invent a key for each record, and the names of all of them are in the head of a pack."""
    for number in range(1, 61):
        relay.send(batch(number, key=f"veh/v-1/{number}/{'k' * 60}"))
    assert relay.pack(10) == 6
    with closing(open_for_reading(relay.path)) as db:
        reader = PackReader(db)
        for entry in reader.entries:
            assert reader.opened(entry).streams
        assert len(reader._open) == 6
        most = max(pack.size_bytes for pack in reader._open.values())
        monkeypatch.setattr(reading, "MAX_OPEN_BYTES", 2 * most)
        reader = PackReader(db)
        for entry in reader.entries:
            assert reader.opened(entry).streams
        assert len(reader._open) == 3, "what is open while another one is opened, and that one"


# --- packs that are gone ---------------------------------------------------------------------------------------------
def test_pack_that_retention_deleted_is_not_answered_from_the_cache(relay: RelayInProcess) -> None:
    """Deleted is deleted, by law in places: from the next question on."""
    relay.send(batch(*range(1, 21)))
    relay.pack(10)
    readers = SqliteReaders(relay.path)
    assert asked(readers) == list(range(1, 21))
    assert kept_bytes(readers) > 0
    assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 20
    relay.send(batch(21))
    assert asked(readers) == [21]
    assert kept_bytes(readers) == 0


def test_pack_that_was_written_again_is_read_again(relay: RelayInProcess) -> None:
    """A part of a pack goes by a rule of its own, and what stays gets other blocks."""
    for number in range(1, 21):
        relay.send(batch(number, key="veh/v-1/debug/x" if number % 2 == 0 else "veh/v-1/speed"))
    relay.pack(10)
    readers = SqliteReaders(relay.path)
    assert asked(readers) == list(range(1, 21))
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 10
    assert asked(readers) == list(range(1, 21, 2))


def test_blocks_with_the_number_of_others_that_are_gone_are_read(relay: RelayInProcess) -> None:
    """Once the pack with the highest number of blocks is gone, the next one gets that number."""
    for number in range(1, 21):
        kind = "other" if number > 10 else "debug/x" if number % 2 == 0 else "speed"
        relay.send(batch(number, key=f"veh/v-1/{kind}"))
    relay.pack(10)
    assert relay.retain(DEBUG_FOR_A_DAY, DAY_S) == 5
    readers = SqliteReaders(relay.path)
    assert asked(readers) == [1, 3, 5, 7, 9, *range(11, 21)]
    assert contents_of(relay.path) == [3, 2], "the first pack was written again"
    assert relay.retain(RetentionPolicy((RetentionRule("veh/*/speed", DAY_S),)), DAY_S) == 5
    relay.send(batch(*range(21, 31)))
    relay.pack(10)
    assert contents_of(relay.path) == [2, 3], "or this test shows nothing"
    assert asked(readers) == list(range(11, 31))


def test_another_file_in_the_place_of_the_store_is_answered_from(relay: RelayInProcess, tmp_path: Path) -> None:
    """An operator puts a copy back while the relay's readers go on."""
    relay.send(batch(*range(1, 11), value=1.0))
    relay.pack(10)
    readers = SqliteReaders(relay.path)
    assert asked(readers) == list(range(1, 11))
    relay.store.close()
    other = RelayInProcess(tmp_path / "other.sqlite")
    other.send(batch(*range(1, 11), value=2.0))
    other.pack(10)
    other.store.close()
    other.path.replace(relay.path)
    with readers.reader() as reader:
        assert {record.fields["value"] for record in reader.page(OLDEST_FIRST).records} == {"2.0"}


def test_threads_that_share_a_small_cache_get_right_answers_while_packs_go(relay: RelayInProcess) -> None:
    """Parts are kept, found and let go of by several questions at once, and packs are made and deleted meanwhile."""
    relay.send(batch(*range(1, 201)))
    cache, ended = PackCache(60_000), threading.Event()

    def ask(newest_first: bool) -> int:
        asked = 0
        while not ended.is_set() or not asked:
            with closing(open_for_reading(relay.path)) as db:
                found = [
                    record.fields["sequence"]
                    for record in find_page(db, Query(limit=1_000, newest_first=newest_first), cache=cache).records
                ]
            assert found[:: -1 if newest_first else 1] == list(range(201 - len(found), 201)), "the oldest ones go"
            assert cache.size_bytes <= 60_000
            asked += 1
        return asked

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, newest_first) for newest_first in (True, False) * 2]
        try:
            assert relay.pack(20) == 10
            assert relay.retain(ALL_FOR_A_DAY, DAY_S) == 200
        finally:
            ended.set()
        assert all(done.result(60) > 0 for done in asking)
