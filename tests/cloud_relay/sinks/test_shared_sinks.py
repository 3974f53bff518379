"""Sinks of relays that share a database: one relay delivers at a time, whichever is there, and nothing is missing."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from benchmarks.postgresql import PostgresServer
from cloud_relay.cli import main
from cloud_relay.query.selection import Query
from cloud_relay.sinks import delivering
from cloud_relay.sinks.contract import Portion
from cloud_relay.sinks.progress import SinkProgress
from cloud_relay.sinks.stores.postgres import SINKS, PostgresSinkStore
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.postgres import removing
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from protocols.base.errors import StorageError
from tests.tools.eventually import eventually
from tests.tools.postgres_fixture import fresh_place, given_empty_place, given_postgres, given_session
from tests.tools.relay_fixture import RelayInProcess, RelayProcess
from tests.tools.sink_fixture import SinkBench, given_quick_pauses, settings_from
from tests.tools.sink_servers import HttpReceiver, given_receiver

__all__ = ["given_empty_place", "given_postgres", "given_quick_pauses", "given_receiver", "given_session"]
pytestmark = pytest.mark.processes
DEBUG = RetentionPolicy((RetentionRule("veh/*/debug/**", 60.0), RetentionRule("**", None)))
RECORDS, KILLS = 2_500, 4
HOLDER = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = $1 AND granted"


@pytest.fixture(autouse=True)
def given_quick_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a sink looks often."""
    monkeypatch.setattr(delivering, "TAKE_S", 0.05)


def table(url: str, more: str = "") -> str:
    return f'name = "out"\nkind = "http"\nurl = "{url}"\n{more}'


@pytest.fixture(name="benches")
def given_two_relays(tmp_path: Path, place: PostgresPlace, receiver: HttpReceiver) -> Iterator[list[SinkBench]]:
    """Two relays on one database, each with the same sink and a state folder of its own."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    both = [SinkBench(tmp_path / name, table(receiver.url), place=place) for name in ("one", "two")]
    yield both
    for bench in both:
        bench.close()


def ids(first: int, last: int) -> list[str]:
    return [f"v-1/{number}" for number in range(first, last + 1)]


def test_one_of_two_relays_delivers_and_the_other_one_takes_over(
    benches: list[SinkBench], receiver: HttpReceiver
) -> None:
    """Whoever adds a relay must neither get each record twice nor name one that has to live."""
    one, two = benches
    one.store(1, 700)
    with two.running() as waiting:
        with one.running() as sinks:
            turns = (waiting, sinks)
            one.delivered_all(sinks)
            two.delivered_all(waiting)
            assert sorted(each.statistics()["out"]["delivering"] for each in turns) == [False, True]
            assert {each.statistics()["out"]["delivered"] for each in turns} == {700}, "both tell the same"
            assert receiver.ids() == ids(1, 700)
        two.store(701, 900)
        eventually(lambda: len(receiver.ids()) == 900)
        two.delivered_all(waiting)  # and has saved it, or it would come again
        assert waiting.statistics()["out"]["delivering"]
    with one.running() as sinks:
        one.delivered_all(sinks)
        assert sinks.statistics()["out"]["delivered"] == 900
    assert receiver.ids() == ids(1, 900)


def test_relay_that_is_cut_off_saves_nothing_more_and_what_was_under_way_comes_again_as_it_was(
    benches: list[SinkBench], receiver: HttpReceiver, session: PostgresSession
) -> None:
    """The server ended the connection while the receiver took its time; the relay does not know it yet."""
    one, two = benches
    one.store(1, 256)
    goes_on = threading.Event()
    receiver.status = lambda _: 200 if goes_on.wait(30) else 500
    with one.running() as first:
        eventually(lambda: receiver.tries == 1)
        with two.running() as second:
            eventually(lambda: not second.statistics()["out"]["delivering"])
            (pid,) = session.row(HOLDER, SINKS)
            session.rows("SELECT pg_terminate_backend($1)", pid)
            eventually(lambda: receiver.tries == 2)
            goes_on.set()
            two.delivered_all(second)
            eventually(lambda: not first.statistics()["out"]["delivering"])
            one.store(257, 300)
            eventually(lambda: set(receiver.ids()) == set(ids(1, 300)))
            eventually(lambda: {each.statistics()["out"]["delivered"] for each in (first, second)} == {300})
    keys = [headers["idempotency-key"] for headers, body in receiver.requests if body["records"][0]["id"] == "v-1/1"]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_sink_whose_connection_is_gone_reads_nothing_until_it_is_taken_anew(
    tmp_path: Path, place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another relay has it by then, and each record would go out twice."""
    made = list[PostgresSession]()
    connect = PostgresSession.connect

    def note(session: PostgresSession) -> None:
        made.append(session)
        connect(session)

    with closing(SinkBench(tmp_path, place=place)) as bench:
        bench.store(1, 5)
        monkeypatch.setattr(PostgresSession, "connect", note)
        with closing(PostgresSinkStore(place, Query(), "out", bool)) as store:
            assert store.take()
            made[-1].drop()
            with pytest.raises(StorageError, match="taken anew"):
                store.extend(Portion(1, 0, []), 10, None)
            assert not store.is_held
            eventually(store.take)
            assert len(store.extend(Portion(1, 0, []), 10, None).portion.records) == 5


def test_relay_that_alone_can_not_reach_the_receiver_lets_another_one_try(
    benches: list[SinkBench], receiver: HttpReceiver
) -> None:
    """A firewall of one host must not keep records of all hosts back."""
    one, two = benches
    one.settings = settings_from(one.folder, table("http://127.0.0.1:1/"))
    one.store(1, 300)
    with one.running() as cut_off:
        eventually(lambda: cut_off.statistics()["out"]["failures"] > 0)
        with two.running() as sinks:
            two.delivered_all(sinks)
    assert receiver.ids() == ids(1, 300)


def test_sink_that_was_let_go_can_be_taken_at_once(place: PostgresPlace, tmp_path: Path) -> None:
    """An operator who stops a relay and moves its sink was told that another relay delivers it."""
    with closing(SinkBench(tmp_path, place=place)):
        for number in range(50):
            with closing(PostgresSinkStore(place, Query(), "out", bool)) as store:
                assert store.take(), number
                if number % 2:
                    store.give_way()


def test_server_that_restarts_is_waited_for(tmp_path: Path, receiver: HttpReceiver) -> None:
    """A database has its maintenance; the sink goes on where it was."""
    with ExitStack() as open_now:
        server = open_now.enter_context(PostgresServer())
        bench = open_now.enter_context(closing(SinkBench(tmp_path, table(receiver.url), place=fresh_place(server))))
        bench.store(1, 300)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
            server.stop()
            eventually(lambda: "can't be used" in sinks.statistics()["out"]["error"])
            for _ in range(50):  # over some tries to connect
                shown = sinks.statistics()["out"]
                assert (shown["delivered"], shown["working"], shown["failures"]) == (300, False, 0), (
                    "an alarm hears of it, and no counter goes back"
                )
                time.sleep(0.02)
            server.start()
            bench.delivered_all(sinks)
            eventually(lambda: _stored(bench, 301, 400))
            eventually(lambda: len(receiver.ids()) == 400)
    assert receiver.ids() == ids(1, 400)


def _stored(bench: SinkBench, first: int, last: int) -> bool:
    bench.store(first, last)
    return bench.relay.account().stored == last


def test_what_retention_deleted_is_counted_when_the_sink_comes_to_it(
    tmp_path: Path, place: PostgresPlace, receiver: HttpReceiver
) -> None:
    """Deleted records leave no hole in numbers of transactions, so retention says what it took from whom."""
    with closing(SinkBench(tmp_path, table(receiver.url), place=place)) as bench:
        bench.store(1, 4)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
        for number in range(5, 45):
            bench.store(number, number, key="veh/v-1/debug/x" if number % 4 == 0 else "veh/v-1/speed")
        assert bench.relay.retain(DEBUG, 61.0) == 10
        bench.store(45, 50)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["deleted"]) == (4 + 30 + 6, 10)
        with closing(PostgresSinkStore(place, Query(), "out", bool)) as store:
            progress = store.load()
            assert progress is not None
            (gap,) = progress.gaps
            assert gap.deleted == 10
            assert gap.last <= progress.position
    assert receiver.ids() == [f"v-1/{number}" for number in range(1, 51) if number < 5 or number > 44 or number % 4]


def test_slices_that_are_listed_for_a_sink_are_bounded_and_all_records_are_counted(
    tmp_path: Path, place: PostgresPlace, session: PostgresSession, receiver: HttpReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A sink that is down for a year costs its database nothing."""
    monkeypatch.setattr(removing, "MAX_SINK_DELETIONS", 3)
    with closing(SinkBench(tmp_path, table(receiver.url), place=place)) as bench:
        with bench.running() as sinks:
            eventually(lambda: session.rows("SELECT FROM sinks"))
            assert sinks.statistics()["out"]["backlog"] == 0
        for round_ in range(6):
            bench.store(1 + 10 * round_, 10 + 10 * round_, key="veh/v-1/debug/x")
            assert bench.relay.retain(DEBUG, 61.0) == 10
        assert session.row("SELECT count(*), sum(records) FROM sink_deletions")[:] == (3, 60)
        bench.store(61, 65)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert (counted["delivered"], counted["deleted"]) == (5, 60)
        assert session.row("SELECT count(*) FROM sink_deletions")[0] == 0


def test_slices_are_listed_one_by_one_again_once_a_sink_has_passed_some(
    tmp_path: Path, place: PostgresPlace, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that is always a little behind would never come to the end of a last one that takes in all to come."""
    monkeypatch.setattr(removing, "MAX_SINK_DELETIONS", 3)
    with closing(SinkBench(tmp_path, place=place)) as bench:
        with closing(PostgresSinkStore(place, Query(), "out", bool)) as store:
            assert store.take()
            for number in range(1, 6):
                bench.store(number, number, key="veh/v-1/debug/x")
                assert bench.relay.retain(DEBUG, 61.0) == 1
                if number == 3:
                    store.save(SinkProgress(session.row("SELECT min(last) + 1 FROM sink_deletions")[0]))
        assert session.row("SELECT count(*), max(records) FROM sink_deletions")[:] == (3, 2)
        assert session.row("SELECT count(*) FROM sink_deletions WHERE first = last")[0] == 2


def test_sink_too_far_behind_skips_the_oldest_with_the_count_of_records(
    tmp_path: Path, place: PostgresPlace, receiver: HttpReceiver
) -> None:
    """A bound of records is one of records, whatever numbers they have."""
    with closing(SinkBench(tmp_path, table(receiver.url, "max_backlog = 100"), place=place)) as bench:
        for number in range(1, 901, 100):
            bench.store(number, number + 99)
        bench.store(901, 950)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
        assert receiver.ids() == ids(851, 950)
        assert (counted["skipped"], counted["delivered"]) == (850, 100)


def test_sink_that_is_sent_nothing_saves_its_position_once_in_a_while(
    tmp_path: Path, place: PostgresPlace, receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of two transactions are far apart: none of a thousand sinks may write at each of its looks."""
    saved = list[SinkProgress]()
    save = PostgresSinkStore.save

    def note(store: PostgresSinkStore, progress: SinkProgress) -> None:
        saved.append(progress)
        save(store, progress)

    monkeypatch.setattr(PostgresSinkStore, "save", note)
    nothing = table(receiver.url, 'select = { key = "other/**" }')
    with closing(SinkBench(tmp_path, nothing, place=place)) as bench, bench.running() as sinks:
        for number in range(1, 11):
            before = sinks.statistics()["out"]["position"]
            bench.store(number, number)
            eventually(lambda before=before: sinks.statistics()["out"]["position"] > before)
    assert len(saved) < 5


def test_what_retention_deleted_of_a_gap_counts_as_skipped(
    tmp_path: Path, place: PostgresPlace, receiver: HttpReceiver
) -> None:
    """Whoever adds up what was delivered, skipped and deleted must not miss any."""
    with closing(SinkBench(tmp_path, table(receiver.url, "max_backlog = 10"), place=place)) as bench:
        bench.store(1, 4)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
        bench.store(5, 14, key="veh/v-1/debug/x")
        bench.store(15, 40)
        assert bench.relay.retain(DEBUG, 61.0) == 10
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
    assert (counted["delivered"], counted["skipped"], counted["deleted"]) == (4 + 10, 10 + 16, 0)


def test_portion_ends_where_its_limit_is_and_records_behind_are_counted(tmp_path: Path, place: PostgresPlace) -> None:
    """Each look is bounded, so that a month of backlog is worked off in the memory of a minute."""
    with closing(SinkBench(tmp_path, place=place)) as bench:
        bench.store(1, 700)
        with closing(PostgresSinkStore(place, Query(), "out", bool)) as store:
            assert store.take()
            found = store.extend(Portion(1, 0, []), 300, None)
            assert (len(found.portion.records), found.whole) == (256, False)
            found = store.extend(found.portion, 300, None)
            assert (len(found.portion.records), found.whole, found.is_thinned) == (300, True, False)
            assert store.between(found.portion.last, found.newest) == store.behind(found.portion.last) == 400
            again = store.extend(Portion(1, 0, []), 1_000, found.portion.records[9][0])
            assert ([number for number, _ in again.portion.records], again.whole) == (
                [number for number, _ in found.portion.records[:10]], True,
            )  # fmt: skip


def test_count_of_records_behind_ends_when_the_relay_does(
    tmp_path: Path, place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that stops must not go through a hundred million rows first."""
    monkeypatch.setattr("cloud_relay.sinks.stores.postgres._SLICE", 1)
    with closing(SinkBench(tmp_path, place=place)) as bench:
        bench.store(1, 10)
        stopping = threading.Event()
        with closing(PostgresSinkStore(place, Query(), "out", stopping.is_set)) as store:
            assert store.take()
            stopping.set()
            with pytest.raises(StorageError, match="the relay stops"):
                store.behind(0)


def test_command_shows_sinks_of_a_database_and_moves_one_that_nobody_delivers(
    benches: list[SinkBench], postgres: PostgresServer, receiver: HttpReceiver
) -> None:
    """From any host, an operator sees what is owed and can send a year again."""
    one, two = benches
    one.store(1, 50)
    file = two.folder / "relay.toml"
    file.write_text(
        f'[relay]\nid = "relay-2"\nstate_dir = "state"\n[store]\nurl = "{postgres.url("postgres")}"\n'
        f"[[sink]]\n{table(receiver.url)}\n"
    )

    def said(*words: str, status: int = 0) -> str:
        done = CliRunner().invoke(main, ["sinks", "--config", str(file), *words])
        assert done.exit_code == status, done.output
        return done.output

    shown = json.loads(said("--json"))["sinks"][0]
    assert (shown["position"], shown["backlog"]) == (0, 50)
    with one.running() as sinks:
        one.delivered_all(sinks)
        shown = json.loads(said("--json"))["sinks"][0]
        assert (shown["delivered"], shown["backlog"]) == (50, 0)
        assert "another relay delivers out: stop all relays that have this sink first" in said(
            "move", "out", "oldest", status=2
        )
    assert "goes on after record 0 of" in said("move", "out", "oldest")
    with one.running() as sinks:
        one.delivered_all(sinks)
    assert receiver.ids() == ids(1, 50) * 2
    said("move", "out", "oldest")
    said("move", "out", "newest")
    assert json.loads(said("--json"))["sinks"][0]["skipped"] == 50


@pytest.mark.parametrize("change", [-1, 1])
def test_store_of_another_program_is_left_alone_each_time(
    tmp_path: Path, place: PostgresPlace, session: PostgresSession, change: int
) -> None:
    """A sink tries again and again: the second try must not work on tables that it does not know."""
    with closing(SinkBench(tmp_path, place=place)), closing(PostgresSinkStore(place, Query(), "out", bool)) as store:
        session.execute("UPDATE store SET version = version + $1", change)
        for _ in range(2):
            with pytest.raises(StorageError, match="has version"):
                store.take()
        session.execute("UPDATE store SET version = version - $1", change)
        assert store.take()


def test_damaged_progress_is_named_with_the_way_out(
    tmp_path: Path, place: PostgresPlace, session: PostgresSession, receiver: HttpReceiver
) -> None:
    """A row that can't be read must not be taken for a new sink's."""
    with closing(SinkBench(tmp_path, table(receiver.url), place=place)) as bench:
        bench.store(1, 5)
        session.execute("INSERT INTO sinks (name, progress) VALUES ('out', '{')")
        with bench.running() as sinks:
            eventually(lambda: "delete its row in the table sinks" in sinks.statistics()["out"]["error"])
        session.execute("DELETE FROM sinks")
        with bench.running() as sinks:
            bench.delivered_all(sinks)
    assert receiver.ids() == ids(1, 5)


def test_each_record_arrives_whichever_of_two_relays_is_killed(
    tmp_path: Path, place: PostgresPlace, postgres: PostgresServer, receiver: HttpReceiver
) -> None:
    """Nobody has to be there to move a sink when a host burns down."""
    with closing(RelayInProcess(place).store):
        pass
    relays = [RelayProcess(tmp_path / name) for name in ("one", "two")]
    for relay in relays:
        (relay.folder / "relay.toml").write_text(
            f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[store]\nurl = "{postgres.url("postgres")}"\n'
            f"[[sink]]\n{table(receiver.url)}\n"
        )
    bench = SinkBench(tmp_path, place=place)
    bench.store(1, RECORDS)
    random = Random(4)

    def take_a_while(_: object) -> int:
        time.sleep(0.02)
        return 200

    receiver.status = take_a_while
    with relays[0], relays[1], closing(bench.relay.store):
        for number in range(KILLS):
            wanted = receiver.tries + 1 + random.randrange(2)
            eventually(lambda wanted=wanted: receiver.tries >= wanted or len(set(receiver.ids())) == RECORDS)
            relay = relays[number % 2]
            relay.process.kill()
            relay.process.wait()
            relay.__enter__()
        eventually(lambda: set(receiver.ids()) == set(ids(1, RECORDS)), lambda: f"{len(set(receiver.ids()))} came")
    keys: dict[str, list[str]] = {}
    for headers, body in receiver.requests:
        sent = [record["id"] for record in body["records"]]
        assert keys.setdefault(headers["idempotency-key"], sent) == sent
    assert sum(map(len, keys.values())) == RECORDS, "what came again came as the same request"
