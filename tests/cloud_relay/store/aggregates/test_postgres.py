"""Kept aggregates in PostgreSQL are equal to what the stored records give, whoever fills them and whoever dies."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.postgresql import PostgresServer
from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.summary import GroupSummary
from cloud_relay.cli import main
from cloud_relay.query.kept import GroupSpan, kept_aggregates
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.searching import records_of_pages
from cloud_relay.query.selection import Query
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres.aggregates import following, keeping
from cloud_relay.store.postgres.group import ORIGIN_LOCKS, origin_lock
from cloud_relay.store.postgres.keeper import PostgresKeeper
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.writing import PostgresStore
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from cloud_relay.store.sqlite import Store
from tests.tools.aggregates_fixture import CHOICE as EACH_KIND
from tests.tools.aggregates_fixture import (
    HOUR_NS,
    HOURLY,
    START_NS,
    Groups,
    batch_of,
    kept_groups,
    recomputed,
    storable,
)
from tests.tools.eventually import eventually
from tests.tools.postgres_fixture import (  # noqa: F401 -- fixtures
    fresh_place,
    given_empty_place,
    given_postgres,
    given_session,
)
from tests.tools.relay_http_fixture import EventStream, RelayWeb

pytestmark = pytest.mark.processes

CHOICE = tuple(replace(each, rule="r\0") if each.rule else each for each in EACH_KIND)
"""PostgreSQL has no character 0, and nodes have."""


def opened(place: PostgresPlace, *kept: AggregateDefinition) -> PostgresStore:
    """A store whose clock stands a day after the records."""
    return PostgresStore(place, lambda: START_NS + 24 * HOUR_NS, kept)


def send(store: PostgresStore, *records: Any, node: str = "v-1") -> None:
    ordered = sorted(records, key=lambda record: record.sequence)
    store.submit(batch_of(*ordered, node=node)).result(30)


def kept_there(place: PostgresPlace) -> Groups:
    """What is kept, once all records are in it."""
    with closing(PostgresSession(place, 60, {})) as session:
        session.connect()
        waits = (
            "SELECT count(*) FROM aggregates WHERE dropped"
            " OR filled_to < (SELECT coalesce(max(number), 0) FROM records)"
            " OR EXISTS (SELECT FROM aggregate_groups WHERE aggregate = number AND bucket_utc_ns < floor_utc_ns)"
        )
        eventually(lambda: session.row(waits)[0] == 0, "all records are in all aggregates")
    with open_reader(place) as reader:
        source, found = reader.kept(), Groups()
        for number, definition in source.definitions().items():
            span = GroupSpan(source.floor_utc_ns(number), 2**63 - 1, newest_first=False, after=None)
            groups = source.groups(number, source.names(number, span, 1_000_000))
            found[definition.name] = {group.name: group.summary.encoded() for group in groups}
    return found


def recomputed_there(place: PostgresPlace) -> Groups:
    """The same from the records that are there, each group in one go."""
    with open_reader(place) as reader:
        return recomputed(reader.kept().definitions(), records_of_pages(reader.page, Query(limit=10**9)))


VALUES = st.one_of(
    st.floats(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=3), st.none(),
    st.builds(lambda number: {"a": [number]}, st.floats() | st.integers(-9, 9)),
)  # fmt: skip
RECORDS = st.builds(
    storable, st.integers(1, 40), VALUES, st.integers(0, 240), st.sampled_from(["veh/v/speed", "veh/v/x", "rsu"]),
    st.sampled_from(["r\0", "q"]), st.sampled_from(["m/s", "1\0"]),
    st.sampled_from([(0.5, 0.5), (-0.5, 179.9), (1.0, -180.0), (1.0, 180.0), (90.0, 3.0)]),
)  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"),
            st.sampled_from(["v-1", "v-2"]),
            st.lists(RECORDS, min_size=1, max_size=8, unique_by=lambda one: one.sequence),
        ),
        st.tuples(st.just("reopen"), st.sampled_from([{0, 1, 2}, {1, 3}, {0}, set[int]()])),
        st.tuples(st.just("wait"), st.none()),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_any_history_gives_what_the_records_give(postgres: PostgresServer, steps: list[Any]) -> None:
    """Repeated and conflicting records, other definitions, ends in mid-filling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "SLICE_RECORDS", 3)
        patch.setattr(following, "SLICE_DROPPED", 2)
        place = fresh_place(postgres)
        kept: tuple[AggregateDefinition, ...] = CHOICE[:2]
        with ExitStack() as closing_all:
            store = opened(place, *kept)
            closing_all.callback(store.close)
            for step in steps:
                match step:
                    case ("send", node, records):
                        send(store, *records, node=node)
                    case ("reopen", which):
                        store.close()
                        kept = tuple(CHOICE[index] for index in sorted(which))
                        store = opened(place, *kept)
                        closing_all.callback(store.close)
                    case ("wait", _):
                        kept_there(place)
            assert kept_there(place) == recomputed_there(place)
            assert store.statistics()["aggregate_failures"] == 0


def test_two_relays_add_each_record_once(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches come to both, late and twice, and both fill; a third one asks for another aggregate meanwhile."""
    monkeypatch.setattr(following, "SLICE_RECORDS", 16)
    random = Random(1)
    stores = [opened(place, *CHOICE[:2]), opened(place, *CHOICE[:2])]

    def upload(node: str) -> None:
        parts = [
            [storable(number, random.random(), random.randrange(600), node=node) for number in range(first, first + 5)]
            for first in range(1, 150, 5)
        ]
        for part in random.sample([*parts, *parts[::3]], len(parts) + 10):
            send(random.choice(stores), *part, node=node)

    with ExitStack() as closing_all, ThreadPoolExecutor(4) as threads:
        for store in stores:
            closing_all.callback(store.close)
        uploads = [threads.submit(upload, f"v-{number}") for number in range(3)]
        stores.append(opened(place, *CHOICE[:3]))
        closing_all.callback(stores[2].close)
        for done in uploads:
            done.result()
        kept = kept_there(place)
        assert kept == recomputed_there(place)
    assert sum(GroupSummary.decode(one).records for one in kept["hourly"].values()) == 450
    assert [store.statistics()["aggregate_failures"] for store in stores] == [0, 0, 0]


_FILLING = """
import sys, time
from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.store.places import store_place
from cloud_relay.store.postgres.aggregates import following, keeping
from cloud_relay.store.postgres.writing import PostgresStore
following.SLICE_RECORDS = 8
work, left = following.AggregateFollower.work, 60
def some(follower):
    global left
    left -= 1
    if left < 0:
        time.sleep(600)  # somebody else has to do the rest
    return work(follower)
following.AggregateFollower.work = some
store = PostgresStore(store_place(sys.argv[1]), aggregates=None)
print("filling", flush=True)
time.sleep(600)
"""


def test_relay_that_is_killed_while_it_fills_adds_nothing_twice(place: PostgresPlace, session: PostgresSession) -> None:
    """A slice notes how far it came in the transaction that changes groups."""
    with closing(opened(place)) as store:
        for first in range(1, 2_001, 100):
            send(store, *(storable(number, number / 7, number % 600) for number in range(first, first + 100)))
    following.configure(session, CHOICE[:2], START_NS + 24 * HOUR_NS)
    for _ in range(2):
        before = _filled_to(session)
        child = subprocess.Popen([sys.executable, "-c", _FILLING, place.dsn], stdout=subprocess.PIPE, env=os.environ)
        try:
            eventually(lambda: _filled_to(session) > before, "it fills")  # noqa: B023 -- called at once
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
    assert _filled_to(session) < session.row("SELECT max(number) FROM records")[0], "it was killed in the middle"
    with closing(opened(place, *CHOICE[:2])):
        assert kept_there(place) == recomputed_there(place)


def test_filling_goes_on_after_the_server_ended_its_connections(
    place: PostgresPlace, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a restart does. What is remembered of groups may be older than what is there then."""
    monkeypatch.setattr(following, "SLICE_RECORDS", 8)
    monkeypatch.setattr(keeping, "RETRY_S", (0.0, 0.01))
    session.execute("SET application_name = 'operator'")
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=6)
    with closing(opened(place)) as store:
        send(store, *(storable(number, 1.0, 13 * number % 900) for number in range(1, 401)))
    began, goes_on, slices, work = Event(), Event(), count(), following.AggregateFollower.work

    def held(follower: following.AggregateFollower) -> bool:
        if next(slices) == 5:  # there is a connection to be ended, and much to do
            began.set()
            assert goes_on.wait(60)
        return work(follower)

    monkeypatch.setattr(following.AggregateFollower, "work", held)
    with closing(opened(place, CHOICE[1], small)) as store:
        newest_number = session.row("SELECT max(number) FROM records")[0]
        assert began.wait(60)
        while (before := _filled_to(session)) < newest_number:
            session.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cloud-relay'"
            )
            goes_on.set()
            eventually(lambda: _filled_to(session) > before, "it goes on")
        kept, recomputed = kept_there(place), recomputed_there(place)
        assert kept["cells"] == recomputed["cells"]
        newest = sorted({name.bucket_utc_ns for name in recomputed["hourly"]})[-6:]
        assert kept["hourly"] == {n: one for n, one in recomputed["hourly"].items() if n.bucket_utc_ns in newest}
        assert store.statistics()["aggregate_failures"] > 0


def test_filling_that_fails_is_not_tried_again_for_each_batch(
    place: PostgresPlace, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is too slow already would have a connection and a line of the log more for each."""
    monkeypatch.setattr(keeping, "RETRY_S", (3_600.0, 3_600.0))
    with closing(opened(place, HOURLY)) as store:
        session.execute("ALTER TABLE aggregate_groups RENAME TO away")
        send(store, storable(1))
        eventually(lambda: store.statistics()["aggregate_failures"] == 1, "it fails")
        for number in range(2, 40):
            send(store, storable(number))
        session.execute("ALTER TABLE away RENAME TO aggregate_groups")
    assert store.statistics()["aggregate_failures"] == 1, "and the store closes at once nevertheless"


def _filled_to(session: PostgresSession) -> int:
    return int(session.row("SELECT min(filled_to) FROM aggregates")[0])


def test_new_aggregate_has_records_of_transactions_that_were_under_way(
    place: PostgresPlace, session: PostgresSession
) -> None:
    """One that begins first may end last, and then has a lower number than all that are there."""
    with closing(opened(place)) as store:
        session.rows("SELECT pg_advisory_lock($1::int, $2::int)", ORIGIN_LOCKS, origin_lock("v-1"))
        first = store.submit(batch_of(storable(1)))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        eventually(lambda: session.row(waiting)[0] == 1, "the first one has a number")
        send(store, storable(1, node="v-2"), node="v-2")
        following.configure(session, [HOURLY], 0)
        session.rows("SELECT pg_advisory_unlock($1::int, $2::int)", ORIGIN_LOCKS, origin_lock("v-1"))
        first.result(30)
    with closing(opened(place, HOURLY)):
        assert kept_there(place) == recomputed_there(place)


def test_groups_that_one_relay_let_go_count_for_no_other_one(place: PostgresPlace, session: PostgresSession) -> None:
    """A record that lets a bucket go, and is below the floor itself, changes no group: it must be seen otherwise."""
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=2)
    with ExitStack() as stack:
        store = stack.enter_context(closing(opened(place)))
        following.configure(session, [small], 0)
        one, other = (
            following.AggregateFollower(stack.enter_context(closing(PostgresSession(place, 60, {})))) for _ in range(2)
        )
        for follower, number, minute, key in (
            (one, 1, 10, "a"),
            (one, 2, 70, "a"),
            (other, 3, 11, "b"),
            (one, 4, 130, "a"),
        ):
            send(store, storable(number, 1.0, minute, f"veh/v-1/{key}"))
            follower._session.connect()
            while follower.work():
                pass
        buckets = [name.bucket_utc_ns for name in kept_there(place)["hourly"]]
        assert sorted(buckets) == [START_NS + HOUR_NS, START_NS + 2 * HOUR_NS]


def test_groups_of_the_largest_node_are_gone_through_once(
    place: PostgresPlace, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its bucket has groups of others, too, is asked for each group that it can't open: a node that invents
    keys would make a slice take a minute."""
    small, asked = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=4), list[str]()
    with closing(opened(place)) as store:
        following.configure(session, [small], 0)
        send(store, *(storable(number, 1.0, 10, f"veh/v-1/{number}") for number in range(1, 4)))
        send(store, storable(1, 1.0, 10, "veh/v-2/a", node="v-2"), node="v-2")
        send(store, *(storable(number, 1.0, 70, f"veh/v-1/{number}") for number in range(4, 12)))
        rows = session.rows

        def counted(statement: str, *values: object) -> list[Any]:
            asked.extend(["others"] if "opened_by <> " in statement else [])
            return rows(statement, *values)

        monkeypatch.setattr(session, "rows", counted)
        follower = following.AggregateFollower(session)
        while follower.work():
            pass
        assert session.row("SELECT beyond FROM aggregates")[0] == 8
        assert asked == ["others"]


def test_full_aggregate_lets_its_oldest_buckets_go_as_in_sqlite(place: PostgresPlace, tmp_path: Path) -> None:
    """The allowance is one arithmetic, whatever the groups are kept in."""
    small = AggregateDefinition("hourly", "veh/**", HOUR_NS, max_groups=4)
    records = [storable(number, float(number), 20 * number, f"veh/v-1/k{number % 2}") for number in range(1, 31)]
    records += [storable(number, 1.0, 600, f"veh/v-1/n{number}", node="v-1") for number in range(31, 40)]
    path = tmp_path / "relay.sqlite"
    with closing(Store(path, lambda: START_NS + 24 * HOUR_NS, [small])) as ours, closing(opened(place, small)) as store:
        for record in (*records[::2], *records[1::2]):
            ours.submit(batch_of(record)).result()
            send(store, record)
            kept_there(place)  # what is beyond depends on what came together
        assert kept_there(place) == kept_groups(path)
        accounts = []
        for each in (path, place):
            with open_reader(each) as reader:
                accounts.append(kept_aggregates(reader.kept()))
        assert accounts[0] == accounts[1]
        assert accounts[0][0]["records_beyond"] > 0
        assert accounts[0][0]["groups_let_go"] > 0


def test_retention_waits_until_a_record_is_in_all_aggregates(place: PostgresPlace, session: PostgresSession) -> None:
    """What is kept outlives the records, so it must have them first."""
    with closing(opened(place)) as store:
        send(store, *(storable(number, 1.0) for number in range(1, 11)))
    following.configure(session, [HOURLY], 0)
    policy = RetentionPolicy((RetentionRule("**", 60.0),))
    with closing(PostgresKeeper(place, policy, lambda: START_NS + 48 * HOUR_NS)) as keeper:
        assert keeper.retain_once() == 0
        with closing(opened(place, HOURLY)):
            kept = kept_there(place)
        assert keeper.retain_once() == 10
        with closing(opened(place, HOURLY)):
            assert kept_there(place) == kept
    assert sum(GroupSummary.decode(one).records for one in kept["hourly"].values()) == 10


def test_http_and_commands_show_what_is_kept(place: PostgresPlace, tmp_path: Path) -> None:
    """With the answers that SQLite gives, at each relay."""
    web = RelayWeb(tmp_path, place=place, aggregates=(CHOICE[0],))
    with closing(EventStream(web.server.port, "/v1/aggregates/kept/hourly/stream")) as stream:
        send(web.relay.store, *(storable(number, float(number), 90 * number, rule="r\0") for number in range(1, 8)))
        kept_there(place)
        event = stream.event()
        assert event is not None
        assert (event[0], event[1]["records"]) == ("group", 1)
    (told,) = web.get("/v1/aggregates/kept").json["aggregates"]
    assert (told["name"], told["filled"], told["groups"]) == ("hourly", 1.0, 7)
    first = web.get("/v1/aggregates/kept/hourly", limit="3")
    tag = {"if-none-match": first.headers["etag"]}
    assert web.get("/v1/aggregates/kept/hourly", headers=tag, limit="3").status == 304
    seen, cursor = [one["max"] for one in first.json["groups"]], first.json["cursor"]
    while cursor is not None:
        page = web.get("/v1/aggregates/kept/hourly", limit="3", cursor=cursor).json
        seen, cursor = seen + [one["max"] for one in page["groups"]], page["cursor"]
    assert seen == [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert web.get("/v1/aggregates/kept/hourly", order="oldest").json["groups"][0]["rule"] == "r\0"
    assert web.get("/v1/aggregates/kept/nothing").status == 404
    ran = CliRunner().invoke(main, ["aggregates", "list", "--store", place.dsn])
    assert (ran.exit_code, "hourly: 7 of 100000 groups, 100 % filled" in ran.output) == (0, True), ran.output
    ran = CliRunner().invoke(main, ["aggregates", "export", "--store", place.dsn, "hourly", str(tmp_path / "h.csv")])
    assert ran.exit_code == 0, ran.output
    assert len((tmp_path / "h.csv").read_text().splitlines()) == 8
    web.close()
