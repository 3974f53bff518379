"""Kept aggregates are equal to what the stored records give, whatever happens on the way."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.query.kept import KeptQuery, kept_aggregates, kept_page
from cloud_relay.query.readers.sqlite_groups import SqliteGroups
from cloud_relay.query.selection import Query
from cloud_relay.store.aggregates import groups, keeping
from cloud_relay.store.contract import StorableRecord
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import Store
from protocols.base.errors import StorageError
from tests.tools.aggregates_fixture import (
    CHOICE,
    HOUR_NS,
    HOURLY,
    START_NS,
    batch_of,
    kept_groups,
    pack,
    recomputed_groups,
    storable,
    told_of,
)
from tests.tools.eventually import eventually

pytest.importorskip("zstandard")


@pytest.fixture(name="path")
def given_path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sqlite"


@pytest.fixture(name="small_slices")
def given_small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "SLICE_RECORDS", 3)
    monkeypatch.setattr(keeping, "SLICE_DROPPED", 2)


def opened(path: Path, *kept: AggregateDefinition) -> Store:
    """A store whose clock stands a day after the records."""
    return Store(path, lambda: START_NS + 24 * HOUR_NS, kept)


def send(store: Store, *records: StorableRecord, node: str = "v-1") -> None:
    store.submit(batch_of(*records, node=node)).result()


VALUES = st.one_of(
    st.floats(), st.integers(-(2**63), 2**64 - 1), st.booleans(), st.text(max_size=3), st.none(),
    st.builds(lambda number: {"a": [number]}, st.floats() | st.integers(-9, 9)), st.just({"b": [1]}),
)  # fmt: skip
RECORDS = st.builds(
    storable, st.integers(1, 40), VALUES, st.integers(0, 240), st.sampled_from(["veh/v/speed", "veh/v/x", "rsu"]),
    st.sampled_from(["r", "q"]), st.sampled_from(["m/s", "1"]),
    st.sampled_from([(0.5, 0.5), (-0.5, 179.9), (1.0, -180.0), (1.0, 180.0), (90.0, 3.0)]),
)  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(["v-1", "v-2"]), st.lists(RECORDS, min_size=1, max_size=8)),
        st.tuples(st.just("reopen"), st.sets(st.sampled_from([0, 1, 2]))),
        st.tuples(st.just("reopen"), st.sets(st.sampled_from([1, 3]))),
        st.tuples(st.just("stop"), st.just(0)),
        st.tuples(st.just("pack"), st.integers(1, 9)),
        st.tuples(st.just("fail"), st.lists(RECORDS, min_size=1, max_size=4)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_any_history_gives_what_the_records_give(steps: list[Any]) -> None:
    """Repeated and conflicting records, other definitions, ends in mid-filling, packs, transactions that fail."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "SLICE_RECORDS", 3)
        patch.setattr(keeping, "SLICE_DROPPED", 2)
        path = Path(folder) / "relay.sqlite"
        kept: tuple[AggregateDefinition, ...] = CHOICE[:2]
        store = opened(path, *kept)
        for step in steps:
            match step:
                case ("send", node, records):
                    send(store, *records, node=node)
                case ("reopen", which):
                    store.close()
                    kept = tuple(CHOICE[index] for index in sorted(which))
                    store = opened(path, *kept)
                case ("stop", _):
                    store.close()
                    store = opened(path, *kept)
                case ("pack", most):
                    pack(path, store, most)
                case ("fail", records):
                    with pytest.MonkeyPatch.context() as failing:
                        failing.setattr(GroupSummary, "encoded", _fails)
                        done = store.submit(batch_of(*records))
                        assert isinstance(done.exception(), StorageError) or done.result()
        store.close()
        with closing(opened(path, *kept)):
            assert kept_groups(path) == recomputed_groups(path)


def _fails(_: GroupSummary) -> bytes:
    raise sqlite3.OperationalError("disk is full")


def test_late_and_repeated_records_count_once_and_where_they_belong(path: Path) -> None:
    """A vehicle that was in a tunnel for a day must not be in the wrong hour, nor twice."""
    with closing(opened(path, HOURLY)) as store:
        send(store, storable(5, 5.0, 70))
        for _ in range(2):
            send(store, storable(1, 1.0, 5), storable(2, 3.0, 10), storable(5, 5.0, 70))
        assert store.statistics()["repeated"] == 4
    told = [GroupSummary.decode(summary).told([50]) for _, summary in sorted(kept_groups(path)["hourly"].items())]
    assert [(group["records"], group["mean"]) for group in told] == [(2, 2.0), (1, 5.0)]


def test_conflicting_record_adds_nothing(path: Path) -> None:
    """Only what is stored counts."""
    with closing(opened(path, HOURLY)) as store:
        send(store, storable(1, 1.0), storable(1, 9.0))
    assert kept_groups(path) == recomputed_groups(path)


def test_changed_definition_is_filled_anew_and_shown_percentiles_are_not_part_of_it(path: Path) -> None:
    """A number must be what its definition says now; to see another percentile needs no work."""
    with closing(opened(path, HOURLY)) as store:
        send(store, storable(1), storable(2, key="veh/v-1/x"))
    before = told_of(path, "hourly")
    opened(path, AggregateDefinition("hourly", "veh/**", HOUR_NS, percentiles=(1,), max_groups=7)).close()
    assert told_of(path, "hourly") == before | {"percentiles": "[1]", "max_groups": 7}
    with closing(opened(path, CHOICE[3])):
        assert [name.key for name in kept_groups(path)["hourly"]] == ["veh/v-1/speed"]
    assert told_of(path, "hourly")["number"] != before["number"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM aggregates").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM aggregate_groups").fetchone() == (1,)


def test_store_opened_without_definitions_goes_on_with_its_own(path: Path) -> None:
    """A tool that opens a store must not drop what a relay keeps."""
    with closing(opened(path, HOURLY)) as store:
        send(store, storable(1))
    with closing(Store(path, lambda: START_NS)) as store:
        send(store, storable(2))
    assert kept_groups(path) == recomputed_groups(path)


def test_full_aggregate_lets_its_oldest_buckets_go_whatever_the_order(path: Path) -> None:
    """Which buckets are there must not depend on who was late, and each that is there must be whole."""
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=4)
    records = [storable(number, float(number), 20 * number, f"veh/v-1/k{number % 2}") for number in range(1, 31)]
    found = []
    for number, order in enumerate((records, records[::-1], records[::2] + records[1::2], records[15:] + records[:15])):
        store_path = path.with_name(f"{number}.sqlite")
        with closing(opened(store_path, small)) as store:
            for record in order:
                send(store, record)
        found.append(kept_groups(store_path)["hourly"])
        told = told_of(store_path, "hourly")
        assert told["floor_utc_ns"] == min(name.bucket_utc_ns for name in found[-1])
        assert told["let_go"] + told["below_floor"] > 0
        assert told["beyond"] == 0
    whole = recomputed_groups(path.with_name("0.sqlite"))["hourly"]
    newest = sorted({name.bucket_utc_ns for name in whole})[-2:]
    assert found == [{name: summary for name, summary in whole.items() if name.bucket_utc_ns in newest}] * 4


def test_large_bucket_is_let_go_at_once_and_taken_away_in_short_slices(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches wait while rows are deleted, and a bucket may have half a million; nobody sees what is left of it."""
    monkeypatch.setattr(keeping, "SLICE_DROPPED", 7)
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=100)
    with closing(opened(path, small)) as store:
        send(store, *(storable(number, key=f"veh/v-1/k{number}") for number in range(1, 101)))
        changed: list[int] = []
        taking_away = groups.take_away

        def counted(*given: Any) -> int:
            changed.append(taking_away(*given))
            with closing(open_for_reading(path)) as db:  # as it was before this slice
                page = kept_page(SqliteGroups(db), KeptQuery("hourly", Query(limit=1_000)))
                (told,) = kept_aggregates(SqliteGroups(db))
                rows = db.execute("SELECT count(*) FROM aggregate_groups").fetchone()[0]
            seen.append((rows, told["groups"], len(page.groups), told["groups_let_go"]))
            return changed[-1]

        seen: list[tuple[int, int, int, int]] = []
        monkeypatch.setattr(groups, "take_away", counted)
        monkeypatch.setattr(keeping, "take_away", counted)
        send(store, storable(101, minute=90))
        send(store, storable(102, key="veh/v-1/k1"))
        eventually(lambda: sum(changed) == 100)
    assert max(changed) <= 7
    assert [each[1:] for each in seen[1:]] == [(1, 1, 100)] * (len(seen) - 1)
    assert told_of(path, "hourly")["below_floor"] == 1


def test_bucket_beyond_the_allowance_is_counted_and_named(path: Path) -> None:
    """An aggregate by keys that a node invents must not fill the disk."""
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=3)
    with closing(opened(path, small)) as store:
        send(store, *(storable(number, key=f"veh/v-1/k{number}") for number in range(1, 7)))
        send(store, storable(7, key="veh/v-1/k1"))
    assert len(kept_groups(path)["hourly"]) == 3
    assert told_of(path, "hourly")["beyond"] == 3
    assert told_of(path, "hourly")["beyond_named"].startswith("v-1 veh/v-1/k")


def test_node_that_invents_keys_does_not_push_out_those_of_others(path: Path) -> None:
    """The largest holder gives way first."""
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=6)
    with closing(opened(path, small)) as store:
        send(store, storable(1, key="veh/v-2/speed", node="v-2"), node="v-2")
        for number in range(1, 20):
            send(store, storable(number, minute=60 * number, key=f"veh/v-1/k{number}"))
        send(store, storable(2, 3.0, 1, key="veh/v-2/speed", node="v-2"), node="v-2")
    groups = kept_groups(path)["hourly"]
    (summary,) = (summary for name, summary in groups.items() if name.key == "veh/v-2/speed")
    assert GroupSummary.decode(summary).records == 2
    assert len(groups) == 6
    assert told_of(path, "hourly")["beyond"] == 14


def test_one_node_alone_may_use_the_whole_allowance(path: Path) -> None:
    """A relay of one roadside unit must not stop keeping after a while."""
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=6)
    with closing(opened(path, small)) as store:
        for number in range(1, 20):
            send(store, storable(number, minute=60 * number))
    assert len(kept_groups(path)["hourly"]) == 6
    assert told_of(path, "hourly")["beyond"] == 0


def test_record_from_the_future_belongs_to_no_group(path: Path) -> None:
    """A clock that is wrong by years would push the buckets of everybody out."""
    with closing(opened(path, HOURLY)) as store:
        send(store, storable(1, minute=60 * 24 * 9), storable(2))
    assert len(kept_groups(path)["hourly"]) == 1
    assert told_of(path, "hourly")["ahead"] == 1


def test_filling_that_fails_is_tried_again_and_batches_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, small_slices: None
) -> None:
    """A full disk must not end the relay, nor leave an aggregate half full for ever."""
    monkeypatch.setattr(keeping, "RETRY_S", 0.01)
    with closing(opened(path)) as store:
        send(store, *(storable(number, minute=number) for number in range(1, 20)))
    with monkeypatch.context() as failing:
        failing.setattr(GroupSummary, "encoded", _fails)
        store = opened(path, HOURLY)
        eventually(lambda: store.statistics()["aggregate_failures"] > 1)
    with closing(store):
        send(store, storable(99))
        assert kept_groups(path) == recomputed_groups(path)


def test_filling_that_fails_waits_however_many_batches_come(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each batch would pay for a slice that fails, and the log would have a traceback for each."""
    monkeypatch.setattr(keeping, "RETRY_S", 3_600.0)
    with closing(opened(path)) as store:
        send(store, storable(1))
    with monkeypatch.context() as failing:
        failing.setattr(GroupSummary, "encoded", _fails)
        with closing(opened(path, HOURLY)) as store:
            eventually(lambda: store.statistics()["aggregate_failures"] > 0)
            for number in range(2, 7):
                send(store, storable(number, key="rsu/r-1/none"))
            assert store.statistics()["aggregate_failures"] == 1


CHILD = """
import sys
from pathlib import Path
from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.query.kept import KeptQuery, kept_aggregates, kept_page
from cloud_relay.query.readers.sqlite_groups import SqliteGroups
from cloud_relay.query.selection import Query
from cloud_relay.store.aggregates import groups, keeping
from cloud_relay.store.sqlite import Store
from tests.cloud_relay.store.aggregates.test_keeping import CHOICE, START_NS, HOUR_NS, some_records
from tests.tools.aggregates_fixture import batch_of
keeping.SLICE_RECORDS = 16
store = Store(Path(sys.argv[1]), lambda: START_NS + 24 * HOUR_NS, CHOICE[: int(sys.argv[2])])
for records in some_records():
    store.submit(batch_of(*records)).result()
    print("stored", flush=True)
"""


def some_records() -> Iterator[list[StorableRecord]]:
    """Batches that overlap."""
    for first in range(1, 1_600, 20):
        yield [
            storable(number, math.sin(number) * 40, number * 7 % 600, f"veh/v-1/{'speed' if number % 3 else 'x'}")
            for number in range(first, first + 40)
        ]


@pytest.mark.processes
def test_relay_killed_while_it_stores_and_fills_has_each_record_once(path: Path) -> None:
    """SIGKILL at any moment: groups and records are of the same transaction."""
    for kills, kept in enumerate((1, 3, 2)):
        command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-c", CHILD, str(path), str(kept)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            for _ in range(3 + 4 * kills):
                assert child.stdout.readline() == "stored\n"
            child.send_signal(signal.SIGKILL)
    with closing(opened(path, *CHOICE[:3])) as store:
        for records in some_records():
            send(store, *records)
        assert kept_groups(path) == recomputed_groups(path)
        assert sum(map(len, kept_groups(path).values())) > 30
