"""Two stores get the same batches, and one of them packs: nobody may be able to tell them apart."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloud_relay.query import packed
from cloud_relay.query.aggregating import AggregateQuery
from cloud_relay.query.readers.sqlite import SqliteReaders
from cloud_relay.query.searching import records_of_pages
from cloud_relay.query.selection import Box, Query
from cloud_relay.store.packs import known
from cloud_relay.store.packs.keeper import StoreKeeper
from cloud_relay.store.packs.packing import PackingPolicy
from cloud_relay.store.retaining import RetentionPolicy
from cloud_relay.store.schema import open_for_reading
from protocols.base.errors import StorageError
from protocols.base.limits import SECOND
from protocols.wire.records import Fate
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch

pytest.importorskip("zstandard")

QUERIES = [
    Query(key=key, origin=origin, since_utc_ns=since, box=box, newest_first=newest_first, limit=100)
    for key in (None, "veh/*/a", "veh/v-1/b")
    for origin, since in ((None, None), ("v-1", BASE_NS + 4 * SECOND))
    for box in (None, Box(48.0, 11.0, 49.0, 12.0))
    for newest_first in (True, False)
]


def told(readers: SqliteReaders) -> Iterator[Any]:
    """Everything that people can ask."""
    with readers.reader() as reader:
        for query in QUERIES:
            yield list(records_of_pages(reader.page, query))
            yield list(records_of_pages(lambda asked: reader.page(replace(asked, limit=2)), query))
            yield reader.newest(query)
        for after in (0, 3):
            yield reader.arrivals(Query(key="veh/**"), after)
        yield reader.aggregates(AggregateQuery(Query(), ("key", "cell"), 2 * SECOND))
        yield reader.audit()


class PackedTwin(RuleBasedStateMachine):
    """Whatever comes, in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self._plain = RelayInProcess(Path(self._folder.name) / "plain.sqlite")
        self._packed = RelayInProcess(Path(self._folder.name) / "packed.sqlite")
        self._readers = [SqliteReaders(relay.path) for relay in (self._packed, self._plain)]  # they keep what they read
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(packed, "_CHUNK", 2)
        self._patch.setattr(known, "MAX_PACKS_PER_BATCH", 1_000)  # beyond, a node is told less, and comes again
        self._next = {"v-1": 1, "v-2": 1}

    def teardown(self) -> None:
        self._patch.undo()
        self._plain.store.close()
        self._packed.store.close()
        self._folder.cleanup()

    @rule(
        node=st.sampled_from(["v-1", "v-2"]), numbers=st.sets(st.integers(1, 20), min_size=1, max_size=8),
        key=st.sampled_from(["veh/v-1/a", "veh/v-1/b", "veh/v-2/a"]), value=st.sampled_from([1.5, "x"]),
        fate=st.none() | st.integers(1, 20),
    )  # fmt: skip
    def send(self, node: str, numbers: set[int], key: str, value: object, fate: int | None) -> None:
        """New records, repeated ones, ones with other contents, and fates."""
        following = self._next[node] = max(self._next[node], *(number + 1 for number in numbers), (fate or 0) + 1)
        fates = () if fate is None else (Fate(fate, fate, "expired"),)
        sent = batch(*sorted(numbers), node=node, key=key, value=value, fates=fates, following=following)
        assert self._packed.send(sent, node=node) == self._plain.send(sent, node=node)

    @rule(records=st.integers(1, 9), most=st.integers(1, 3), beyond=st.integers(0, 4))
    def pack(self, records: int, most: int, beyond: int) -> None:
        """Some of the older ones."""
        self._packed.pack(records, most, beyond)

    @rule()
    def restart(self) -> None:
        """The relay ends and starts again."""
        self._packed.store.close()
        self._packed = RelayInProcess(self._packed.path)

    @invariant()
    def looks_the_same(self) -> None:
        """To whoever asks whatever."""
        of_packed, of_plain = (repr(list(told(readers))) for readers in self._readers)
        assert of_packed == of_plain


TestPackedTwin = PackedTwin.TestCase
TestPackedTwin.settings = settings(max_examples=8, stateful_step_count=8, deadline=None)


def test_relay_without_zstandard_works_with_rows_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An extra that is missing must be named with the way to get it, and not stop the relay."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    relay.send(batch(1, 2))
    relay.pack(2)
    relay.send(batch(3))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    reading = lambda: open_for_reading(relay.path)  # noqa: E731 - a fixture of one line
    keeper = StoreKeeper(reading, relay.store.maintain, PackingPolicy(), RetentionPolicy())
    with caplog.at_level(logging.WARNING):
        keeper.start()
    keeper.close()
    assert "pip install 'meshnode[packing]'" in caplog.text
    assert [row["sequence"] for row in relay.records(since_utc_ns=BASE_NS + 3 * SECOND)] == [3]
    with pytest.raises(StorageError, match="pip install 'meshnode\\[packing\\]'"):
        relay.records()
    relay.store.close()
