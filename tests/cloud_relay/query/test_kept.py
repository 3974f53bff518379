"""Questions to kept aggregates: pages, filters, boxes across the date line and at the poles, and what has changed."""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.grouping import GroupName, cell_of
from cloud_relay.query import kept
from cloud_relay.query.kept import (
    KeptPage,
    changed_groups,
    cursor_after,
    group_at,
    group_form,
    kept_aggregates,
    kept_page,
    untrusted_kept,
)
from cloud_relay.query.readers.sqlite_groups import SqliteGroups
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import Store
from protocols.base.errors import LocalProtocolError, StorageError
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND
from tests.cloud_relay.query.test_searching import made_older
from tests.tools.aggregates_fixture import START_NS, batch_of, storable

HOUR_NS = 3_600 * SECOND
KEPT = (
    AggregateDefinition("speed", "veh/**", HOUR_NS, by=("key", "origin")),
    AggregateDefinition("map", "veh/**", HOUR_NS, rule="r", by=(), cell_e7=100_000_000),
)
PLACES = {
    "west of 180°": (5.0, 179.0), "180°": (5.0, 180.0), "-180°": (5.0, -180.0), "east of 180°": (5.0, -175.0),
    "north pole": (90.0, 33.0), "south pole": (-90.0, 33.0), "home": (48.7, 11.4), "near the pole": (85.0, 100.0),
}  # fmt: skip


@pytest.fixture(name="store")
def given_store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "relay.sqlite", lambda: START_NS + 24 * HOUR_NS, KEPT)) as store:
        yield store


@pytest.fixture(name="path")
def given_path(tmp_path: Path, store: Store) -> Path:
    for hour in range(4):
        for number in range(6):
            record = storable(
                hour * 10 + number, float(number), hour * 60 + number, f"veh/v-{number % 3}/speed", unit="m/s"
            )
            store.submit(batch_of(record, node=f"v-{number % 2}")).result()
    store.submit(batch_of(storable(90, 1.0, 5, "veh/v-0/speed", unit="km/h"), node="v-0")).result()
    return tmp_path / "relay.sqlite"


def page(path: Path, name: str = "speed", **given: str) -> KeptPage:
    with closing(open_for_reading(path)) as db:
        return kept_page(SqliteGroups(db), untrusted_kept(name, given, UtcNs(START_NS + 4 * HOUR_NS)))


def names(path: Path, **given: str) -> list[GroupName]:
    return [group.name for group in page(path, **given).groups]


def test_pages_give_each_group_once_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows cursors must end with the whole."""
    whole = names(path, limit="1000", order="oldest")
    assert whole == sorted(whole)
    assert len(whole) == 25
    for chunk in (1, 2, 7, 2_048):
        monkeypatch.setattr(kept, "_CHUNK", chunk)
        for order in ("oldest", "newest"):
            found: list[GroupName] = []
            cursor: dict[str, str] = {}
            while True:
                answer = page(path, limit="3", order=order, **cursor)
                found += [group.name for group in answer.groups]
                if answer.after is None:
                    break
                cursor = {"cursor": cursor_after(answer.after)}
            assert found == (whole if order == "oldest" else whole[::-1])


def test_page_without_patience_comes_further_each_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that finds nothing must not hold a thread for long, nor go round in a circle."""
    monkeypatch.setattr(kept, "_CHUNK", 5)
    query, looks = untrusted_kept("speed", {"key": "veh/none/x"}, UtcNs(START_NS)), 0
    with closing(open_for_reading(path)) as db:
        while True:
            answer = kept_page(SqliteGroups(db), query, patience_s=-1)
            assert answer.groups == []
            looks += 1
            if answer.after is None:
                break
            query = replace(query, after=answer.after)
    assert looks == 6


def test_filters_select_groups_and_buckets_that_have_a_part_of_a_time(path: Path) -> None:
    """An hour that is asked for in its middle is still asked for."""
    assert len(names(path, key="veh/v-0/*")) == 9
    assert len(names(path, key="veh/*/speed", origin="v-1")) == 12
    assert len(names(path, unit="km/h")) == 1
    half_past = str(START_NS // SECOND + 5_400)
    assert {name.bucket_utc_ns for name in names(path, since=half_past)} == {START_NS + n * HOUR_NS for n in (1, 2, 3)}
    assert {name.bucket_utc_ns for name in names(path, until=half_past)} == {START_NS, START_NS + HOUR_NS}
    assert {name.bucket_utc_ns for name in names(path, since="3h", until="2h")} == {START_NS + HOUR_NS}


def test_form_of_a_group_says_what_it_is_and_all_numbers(path: Path) -> None:
    """What a program needs, and how to find its records again."""
    answer = page(path, key="veh/v-0/speed", origin="v-0", unit="m/s", until=str(START_NS // SECOND + 60))
    (group,) = answer.groups
    assert group_form(answer.definition, group) == {
        "aggregate": "speed", "bucket_utc_ns": START_NS, "bucket_ns": HOUR_NS, "key": "veh/v-0/speed", "origin": "v-0",
        "unit": "m/s", "records": 1, "numbers": 1, "nans": 0, "infinities": 0, "missing": 0, "others": 0, "min": 0.0,
        "mean": 0.0, "max": 0.0, "sum": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0, "percentile_error": 2**-7,
        "change": group.change,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ("0,170,10,-170", ["-180°", "180°", "east of 180°", "west of 180°"]),
        ("0,175,10,180", ["-180°", "180°", "east of 180°", "west of 180°"]),
        ("0,-180,10,-179", ["-180°", "180°", "east of 180°"]),
        ("48,11,49,12", ["home"]),
        ("80,0,90,5", ["north pole"]),
        ("80,100,90,101", ["near the pole", "north pole"]),
        ("80,100,89,101", ["near the pole"]),
        ("-90,-10,-89,-5", ["south pole"]),
        ("-80,-180,-1,180", []),
        ("-90,-180,90,180", sorted(PLACES)),
    ],
)
def test_box_selects_cells_that_have_a_part_of_it(tmp_path: Path, store: Store, box: str, found: list[str]) -> None:
    """The date line and the poles are where maps go wrong."""
    for number, place in enumerate(PLACES.values(), 1):
        store.submit(batch_of(storable(number, place=place))).result()
    cells = {(name.south_e7, name.west_e7) for name in names(tmp_path / "relay.sqlite", name="map", box=box)}
    shown = sorted(of for of, place in PLACES.items() if cell_of(*place, 100_000_000) in cells)
    assert shown == found


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.hex()))
def test_cursor_of_a_stranger_is_refused_or_names_a_place(text: str) -> None:
    """Bytes from anywhere must give one error only."""
    with suppress(LocalProtocolError):
        assert isinstance(group_at(text), GroupName)


def test_cursor_names_a_group_again() -> None:
    """Whatever its texts have."""
    name = GroupName(7, "veh/ü/*", "v-1", "r \x7f", "°C", -900_000_000, 5)
    assert group_at(cursor_after(name)) == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": ""}, "there is no aggregate ''"),
        ({"name": "nope"}, "known are map, speed"),
        ({"rule": "r"}, "is not by rule"),
        ({"box": "0,0,1,1"}, "has no cells"),
        ({"name": "map", "key": "veh/**"}, "is not by key"),
        ({"unit": "\n"}, "is no unit"),
        ({"min_quality": "1"}, "unknown name 'min_quality'"),
        ({"cursor": "x"}, "give it unchanged"),
    ],
)
def test_wrong_question_is_told_with_the_way_out(path: Path, given: dict[str, Any], said: str) -> None:
    """An empty page would be taken for an answer."""
    with pytest.raises(LocalProtocolError, match=said):
        page(path, **given)


def test_rule_of_the_aggregate_itself_may_be_asked_for(path: Path) -> None:
    """All that it has is of this rule."""
    assert len(names(path, name="map", rule="r")) == 5
    assert names(path, name="map", rule="q") == []


def test_changes_come_in_order_and_each_group_as_it_is_now(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows misses no change, and sees no state of before."""
    monkeypatch.setattr(kept, "MAX_CHANGED_GROUPS", 4)
    query = untrusted_kept("speed", {}, UtcNs(START_NS))
    with closing(open_for_reading(path)) as db:
        number, seen = 0, list[GroupName]()
        while True:
            found = changed_groups(SqliteGroups(db), query, number)
            assert [group.change for group in found.groups] == sorted(group.change for group in found.groups)
            seen += [group.name for group in found.groups]
            if found.reached == found.newest:
                break
            number = found.reached
        assert sorted(seen) == names(path, order="oldest")
        last = SqliteGroups(db).newest_change()
        for sequence in (70, 71):
            store.submit(batch_of(storable(sequence, 9.0, key="veh/v-0/speed"), node="v-0")).result()
        (again,) = changed_groups(SqliteGroups(db), query, last).groups
        assert (again.name.key, again.summary.records) == ("veh/v-0/speed", 3)
        assert changed_groups(SqliteGroups(db), query, SqliteGroups(db).newest_change()).groups == []


def test_list_tells_what_is_kept_and_how_far_it_is(path: Path) -> None:
    """An operator must see an allowance that is too small."""
    with closing(open_for_reading(path)) as db:
        first, second = kept_aggregates(SqliteGroups(db))
    assert (first["name"], first["cell_deg"], first["by"], first["rule"]) == ("map", 10.0, [], "r")
    assert (second["groups"], second["filled"], second["records_beyond"]) == (25, 1.0, 0)


def test_store_of_an_earlier_version_says_the_way_out(tmp_path: Path) -> None:
    """A traceback about a table helps nobody."""
    Store(tmp_path / "old.sqlite").close()
    made_older(tmp_path / "old.sqlite", 2)
    with pytest.raises(StorageError, match="start the relay once"):
        page(tmp_path / "old.sqlite")
