"""The store in PostgreSQL when the server restarts, is slow, or is changed under it; where it is, and what keeps its
secrets."""

import logging
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner

from benchmarks.postgresql import PostgresServer
from cloud_relay.cli import main
from cloud_relay.config import load_config
from cloud_relay.ingest.batches import COMMIT_TIMEOUT_S
from cloud_relay.query.readers.opening import open_reader, open_readers
from cloud_relay.query.readers.postgres import walking
from cloud_relay.query.readers.postgres.reading import PostgresReaders
from cloud_relay.query.selection import Query, parse_box
from cloud_relay.store.opening import open_store
from cloud_relay.store.places import PostgresPlace, StorePlace, store_place
from cloud_relay.store.postgres import schema, writing
from cloud_relay.store.postgres.group import ORIGIN_LOCKS, commit_group, origin_lock
from cloud_relay.store.postgres.session import PostgresSession
from cloud_relay.store.postgres.texts import shown_text, stored_text
from protocols.base.errors import ConfigError, StorageError
from protocols.wire.records import Acknowledgement, Fate, RelayRefusal
from tests.tools.postgres_fixture import (  # noqa: F401 -- fixtures
    fresh_place,
    given_empty_place,
    given_postgres,
    given_session,
)
from tests.tools.relay_fixture import BASE_NS, RelayInProcess, batch
from tests.tools.relay_http_fixture import EventStream, RelayWeb

pytestmark = pytest.mark.processes


def careful_place(postgres: PostgresServer, port: int, secret: Path) -> StorePlace:
    """The database for a user who needs a password, over TCP."""
    secret.write_text("s3cret\n")
    postgres.sql("DROP ROLE IF EXISTS careful; CREATE ROLE careful LOGIN PASSWORD 's3cret' SUPERUSER")
    return store_place(f"postgresql://careful@127.0.0.1:{port}/postgres", secret.parent, secret)


class Forwarder:
    """Passes connections on to a port of this host, as long as ``passing`` is set."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.passing = threading.Event()
        self.passing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.passing.set()
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass_on, args=ends))
                    self._threads[-1].start()

    def _pass_on(self, come: socket.socket, go: socket.socket) -> None:
        with suppress(OSError):
            while data := come.recv(65_536):
                self.passing.wait()
                go.sendall(data)
            go.shutdown(socket.SHUT_WR)


# --- several relays ------------------------------------------------------------------------------------------------
def test_two_relays_with_the_same_batches_at_once_store_each_record_once(place: PostgresPlace) -> None:
    """Nodes change relays while an answer is under way: no relay leads, and none waits for ever."""
    relays = [RelayInProcess(place), RelayInProcess(place)]
    sent = [(node, first) for first in range(1, 60, 3) for node in ("v-1", "v-2", "v-3")]

    def send(relay: RelayInProcess) -> set[str]:
        with ThreadPoolExecutor(6) as threads:
            answers = threads.map(
                lambda one: relay.send(batch(one[1], one[1] + 1, one[1] + 2, node=one[0], following=62,
                                             fates=(Fate(61, 61, "expired"),)), one[0]), sent,
            )  # fmt: skip
            return {type(answer).__name__ for answer in answers}

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(send, relays)) == [{"Acknowledgement"}] * 2
    accounts = relays[0].accounts()
    counts = [relay.store.statistics() for relay in relays]
    for relay in relays:
        relay.store.close()
    assert [(one.stored, one.expired, one.conflicts, one.missing) for one in accounts] == [(60, 1, 0, 0)] * 3
    assert sum(one["stored"] for one in counts) == 180
    assert sum(one["repeated"] for one in counts) == 180
    assert sum(one["failures"] for one in counts) == 0


def test_relays_that_start_at_once_make_the_tables_once(place: PostgresPlace) -> None:
    """They are started by the same unit at the same time."""
    with ThreadPoolExecutor(4) as threads:
        relays = list(threads.map(RelayInProcess, [place] * 4))
    for relay in relays:
        assert isinstance(relay.send(batch(1)), Acknowledgement)
        relay.store.close()


def test_stream_waits_for_a_transaction_that_began_before_and_ends_after(
    place: PostgresPlace, session: PostgresSession
) -> None:
    """Relays commit in any order. A stream that went past a record of a slow one would never show it."""
    relay = RelayInProcess(place)
    with open_reader(place) as reader:
        session.execute("BEGIN")
        session.rows("SELECT pg_current_xact_id()")
        relay.send(batch(1))
        begin = reader.arrivals(Query(), 0)
        assert (begin.records, reader.newest_number()) == ([], 0), "an older transaction may still store something"
        assert len(reader.page(Query()).records) == 1, "a question shows it at once"
        session.execute("COMMIT")
        assert [one.fields["sequence"] for _, one in reader.arrivals(Query(), begin.reached).records] == [1]
    relay.store.close()


def test_relay_rings_for_what_another_one_stored(place: PostgresPlace) -> None:
    """A stream is at one relay, and the nodes are at both."""
    rung = threading.Event()
    listening, storing = RelayInProcess(place), RelayInProcess(place)
    storing.send(batch(1))
    listening.store.at_commit = rung.set
    for number in range(2, 60):  # its first look only learns where it is, and may come after some of these
        storing.send(batch(number))
        if rung.wait(1.0):
            break
    assert rung.is_set()
    for relay in (listening, storing):
        relay.store.close()


def test_http_of_either_relay_shows_and_streams_all_records(place: PostgresPlace, tmp_path: Path) -> None:
    """Clients see one store, whichever relay they came to, and go on at the other one."""
    webs = [RelayWeb(tmp_path, place=place) for _ in range(2)]
    with closing(EventStream(webs[0].server.port)) as stream:
        webs[1].relay.send(batch(1, 2))
        assert stream.sequences(2) == [1, 2]
        seen = stream.last_id
    assert [web.found(key="veh/*/speed") for web in webs] == [[2, 1]] * 2
    tags = [web.get("/v1/records").headers["etag"] for web in webs]
    assert tags[0] == tags[1]
    assert webs[1].get("/v1/records", headers={"if-none-match": tags[0]}).status == 304
    webs[0].relay.send(batch(3))
    with closing(EventStream(webs[1].server.port, headers={"last-event-id": seen})) as stream:
        assert stream.sequences(1) == [3]
    assert webs[0].get("/v1/aggregates", by="origin").json["groups"][0]["records"] == 3
    assert webs[0].found("/v1/newest") == [3]
    for web in webs:
        web.close()


# --- a server that is away, slow or changed --------------------------------------------------------------------------
def test_origin_that_somebody_holds_is_refused_clearly_and_others_go_on(
    place: PostgresPlace, session: PostgresSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that hangs, of a person or of a relay that was stopped, must not hang nodes."""
    monkeypatch.setattr(writing, "_SETTINGS", {"lock_timeout": "300ms"})
    relay = RelayInProcess(place)
    relay.send(batch(1))
    session.execute("BEGIN")
    session.rows("SELECT pg_advisory_xact_lock($1, $2)", ORIGIN_LOCKS, origin_lock("v-1"))
    with monkeypatch.context() as impatient:
        impatient.setattr(writing, "PATIENCE_S", 1.5)
        while not relay.store.statistics()["retries"]:
            assert relay.send(batch(2)) == RelayRefusal("storage", "the relay's disk does not take records now")
    assert isinstance(relay.send(batch(1, node="v-2"), "v-2"), Acknowledgement)
    session.execute("ROLLBACK")
    assert relay.send(batch(2)) == Acknowledgement((2,))
    relay.store.close()


def test_connections_that_an_operator_ends_cost_no_batch(place: PostgresPlace, session: PostgresSession) -> None:
    """As a restart or a failover does. What a commit that was cut off has done is found out by sending it again."""
    relay = RelayInProcess(place)
    sent = threading.Event()

    def end_them() -> None:
        for _ in range(8):
            sent.wait(10)
            sent.clear()
            session.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND application_name = 'cloud-relay'"
            )

    session.execute("SET application_name = 'operator'")
    ending = threading.Thread(target=end_them)
    ending.start()
    for number in range(1, 25):
        sent.set()
        wanted = tuple(range(10 * number, 10 * number + 10))
        while (answer := relay.send(batch(*wanted))) != Acknowledgement(wanted):
            assert isinstance(answer, RelayRefusal)
    sent.set()
    ending.join()
    assert len(relay.records(limit=1_000)) == 240
    relay.store.close()


def test_server_that_falls_silent_is_given_up_and_found_again(
    postgres: PostgresServer, place: PostgresPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that swallows everything says nothing: nodes must be refused in time, and served once it is back."""
    with Forwarder(postgres.port) as forwarder:
        behind = careful_place(postgres, forwarder.port, tmp_path / "db.password")
        relay = RelayInProcess(behind)
        assert relay.send(batch(1)) == Acknowledgement((1,))
        monkeypatch.setattr(writing, "PATIENCE_S", 1.0)
        forwarder.passing.clear()
        began_s = time.monotonic()
        assert isinstance(relay.send(batch(1, 2)), RelayRefusal)
        assert time.monotonic() - began_s < COMMIT_TIMEOUT_S, "its node was told why, before it gave up"
        forwarder.passing.set()
        while relay.send(batch(1, 2)) != Acknowledgement((1, 2)):
            time.sleep(0.05)
        relay.store.close()


@pytest.mark.parametrize("odd", [("SELECT 1 / 0",), ("SELECT $1::bigint", 2**63)], ids=["there", "here"])
def test_batch_that_the_database_cannot_take_costs_only_its_own_node(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch, odd: tuple[Any, ...]
) -> None:
    """One odd batch shares its transaction with those of others: they are not to pay for it."""
    relay = RelayInProcess(place)

    def failing(session: PostgresSession, batches: Any, *of: Any) -> Any:
        if any(one.origin == "v-3" for one in batches):
            session.rows(*odd)
        return commit_group(session, batches, *of)

    monkeypatch.setattr(writing, "commit_group", failing)
    nodes = [f"v-{number}" for number in range(1, 7)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda node: relay.send(batch(1, node=node), node), nodes))
    assert [type(answer).__name__ for answer in answers].count("Acknowledgement") == 5
    assert isinstance(answers[2], RelayRefusal)
    relay.store.close()


def test_database_restored_from_a_dump_numbers_records_after_those_it_has(
    place: PostgresPlace, session: PostgresSession
) -> None:
    """A new server counts transactions anew. Streams go on after the numbers that they had."""
    relay = RelayInProcess(place)
    relay.send(batch(1))
    relay.store.close()
    session.execute(f"UPDATE records SET number = number + (1000000::bigint << {schema.NUMBER_BITS})")
    relay = RelayInProcess(place)
    with open_reader(place) as reader:
        before = reader.newest_number()
        relay.send(batch(2))
        assert [one.fields["sequence"] for _, one in reader.arrivals(Query(), before).records] == [2]
    relay.store.close()


def test_relay_that_runs_while_a_newer_one_changes_the_tables_writes_nothing(
    place: PostgresPlace, session: PostgresSession
) -> None:
    """Relays are updated one after the other: the old one must not write into tables that it does not know."""
    relay = RelayInProcess(place)
    relay.send(batch(1))
    session.execute("UPDATE store SET version = version + 1")
    for _ in range(2):
        assert isinstance(relay.send(batch(2)), RelayRefusal)
    session.execute("UPDATE store SET version = version - 1")
    assert relay.send(batch(2)) == Acknowledgement((2,))
    relay.store.close()


def test_server_that_does_not_sync_is_not_believed(place: PostgresPlace, session: PostgresSession) -> None:
    """An acknowledged record is on disk, whatever somebody made the default of the database."""
    session.execute("ALTER DATABASE postgres SET synchronous_commit = off")
    try:
        writer = writing._Writer(place)
        writer.connect()
        assert writer.session.row("SELECT current_setting('synchronous_commit')")[0] == "on"
        writer.close()
    finally:
        session.execute("ALTER DATABASE postgres RESET synchronous_commit")


def test_server_that_is_not_there_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay waits a while for it when it starts; whoever asks does not."""
    monkeypatch.setattr(writing, "START_PATIENCE_S", 0.2)
    place = store_place("postgresql://relay@/records?host=/nowhere&port=1")
    with pytest.raises(StorageError, match="start the server"), open_reader(place):
        pass
    with pytest.raises(StorageError, match="start the server"):
        RelayInProcess(place)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(), "records_in_time"),
        (Query(min_quality=0.5, newest_first=False, after=(BASE_NS, "v-1", 1)), "records_in_time"),
        (Query(key="veh/*/speed", since_utc_ns=BASE_NS), "records_in_streams"),
        (Query(origin="v-1", until_utc_ns=BASE_NS, newest_first=False), "records_in_streams"),
        (Query(box=parse_box("48.7,11.4,48.71,11.41"), after=(BASE_NS, "v-1", 1)), "records_in_cells"),
    ],
)
def test_look_goes_along_the_index_that_it_is_made_for(place: PostgresPlace, query: Query, index: str) -> None:
    """Whatever the server thinks of its statistics: a sort or a scan would look at everything."""
    relay = RelayInProcess(place)
    relay.send(batch(*range(1, 100)))
    relay.store.close()
    with PostgresReaders(place, 1).reader() as reader:
        found = walking._sources(reader.session, query)
        text, values = walking._statement(query, found, query.after, 16)
        plan = "\n".join(row[0] for row in reader.session.rows(f"EXPLAIN {text}", *values))
        reader.session.close()
    assert index in plan, plan
    assert not re.search(r"Sort|Seq Scan|Bitmap", plan), plan


# --- where it is, and its secrets ------------------------------------------------------------------------------------
def test_password_is_read_from_its_file_and_told_to_nobody(
    postgres: PostgresServer, place: PostgresPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be changed while a relay runs. A wrong one is an error with a way out, and without the password."""
    secret = tmp_path / "db.password"
    careful = careful_place(postgres, postgres.port, secret)
    relay = RelayInProcess(careful)
    assert isinstance(relay.send(batch(1)), Acknowledgement)
    relay.store.close()
    secret.write_text("wr0ng")
    with caplog.at_level(logging.DEBUG), pytest.raises(StorageError, match="password_file") as failed:
        RelayInProcess(careful)
    for told in (repr(careful), str(failed.value), caplog.text):
        assert "s3cret" not in told
        assert "wr0ng" not in told


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://relay:pw@localhost/db", "has a password"),
        ("postgresql://localhost/db?password=pw", "has a password"),
        ("postgresql://localhost/", "names no database"),
        ("postgresql://localhost:99999/db", "wrong host or port"),
        ("postgresql://localhost:0/db", "wrong host or port"),
        ("postgresql://localhost/db?port=0", "wrong host or port"),
        ("postgresql://localhost/db?port=5432,5433", "wrong host or port"),
        ("postgresql://localhost,127.0.0.1/db?port=5432,", "wrong host or port"),
        ("postgresql://localhost,,127.0.0.1/db", "wrong host or port"),
        ("postgresql:///db?host=::1", "wrong host or port"),
        ("postgresql://db.example/db?sslmode=require", "verify-full"),
        ("postgresql://db.example/db?sslmode=disable", "verify-full"),
        ("postgresql://db.example/db?sslkey=a", "sslcert and sslkey"),
        ("postgresql://localhost/db?statement_timeout=0", "unknown name 'statement_timeout'"),
        ("postgresql://localhost/db?user=a&user=b", "name twice"),
        ("postgresql://[::1/db", "wrong host or port"),
        ("postgresql://localhost/db?=", "unknown name"),
        ("postgresql://localhost/db?sslmode", "malformed"),
        ("postgresql://127.0.0.1:5432%2Crecords.example/db?sslmode=disable", "verify-full"),
        ("mysql://localhost/db", "unknown kind"),
    ],
)
def test_url_that_is_wrong_is_refused_with_the_way_out(url: str, why: str, tmp_path: Path) -> None:
    """Without the password that somebody wrote into it."""
    config = tmp_path / "relay.toml"
    config.write_text(f'[relay]\nid = "relay-1"\n[store]\nurl = "{url}"\n')
    with pytest.raises(ConfigError, match=why) as failed:
        load_config(config)
    assert ":pw" not in str(failed.value)
    assert str(config) in str(failed.value)


def test_server_elsewhere_has_to_prove_who_it_is() -> None:
    """As everything in the mesh has to."""
    for url in ("postgresql://a.example,b.example:5433/db", "postgresql://localhost,db.example/db"):
        place = store_place(url)
        assert isinstance(place, PostgresPlace)
        assert place.tls is not None
        assert place.tls.checks_name
    for url in ("postgresql:///db", "postgresql://127.0.0.1:5432/db", "postgresql:///db?host=/run/postgresql"):
        place = store_place(url)
        assert isinstance(place, PostgresPlace)
        assert place.tls is None


@pytest.mark.parametrize(
    ("hosts", "ports"),
    [
        ("[::1]:{},127.0.0.1:{}", ""),  # not all versions of Python split this
        ("127.0.0.1", "?port={}"),  # as libpq reads it: it was 5432, whatever stood there
        ("%31%32%37.0.0.1", "?port={}"),
    ],
)
def test_server_is_where_the_hosts_and_ports_say(
    hosts: str, ports: str, postgres: PostgresServer, place: PostgresPlace, tmp_path: Path
) -> None:
    """A database with a standby has several hosts, of which the first that answers is used."""
    careful_place(postgres, postgres.port, secret := tmp_path / "secret")
    url = f"postgresql://careful@{hosts}/postgres{ports}".replace("{}", str(postgres.port))
    asked = store_place(url, tmp_path, secret)
    assert isinstance(asked, PostgresPlace)
    assert asked.tls is None
    with closing(PostgresSession(asked, 60, {})) as session:
        session.connect()
        assert session.row("SELECT current_user") == ("careful",)


def test_server_that_does_not_come_is_told_of_once(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each try hid everything else that the relay had to say."""
    monkeypatch.setattr(writing, "START_PATIENCE_S", 1.0)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = store_place(f"postgresql://relay@127.0.0.1:{nobody.getsockname()[1]}/postgres")
        with caplog.at_level("WARNING"), pytest.raises(StorageError, match="can't be used"):
            open_store(away)
    (line,) = [record.getMessage() for record in caplog.records if record.name == writing.__name__]
    assert "it is tried for 1 s" in line


def test_server_without_tls_is_refused(postgres: PostgresServer, place: PostgresPlace) -> None:
    """Whoever is in between could say that the server has none."""
    asks = store_place(f"postgresql://relay@127.0.0.1:{postgres.port}/postgres?sslmode=verify-ca")
    with pytest.raises((StorageError, ssl.SSLError)), open_reader(asks):
        pass


def test_commands_take_the_url_of_a_store(place: PostgresPlace, tmp_path: Path) -> None:
    """Operators look into it with the commands that they know."""
    relay = RelayInProcess(place)
    relay.send(batch(1, 2, 3))
    relay.store.close()
    run = CliRunner()
    url = ["--store", place.dsn]
    told = run.invoke(main, ["query", *url, "--format", "csv", "--key", "veh/**"])
    assert (told.exit_code, len(told.output.splitlines())) == (0, 4), told.output
    told = run.invoke(main, ["audit", *url])
    assert (told.exit_code, "the ledger adds up" in told.output) == (0, True), told.output
    told = run.invoke(main, ["export", *url, str(tmp_path / "records.csv")])
    assert told.exit_code == 0, told.output
    assert len((tmp_path / "records.csv").read_text().splitlines()) == 4
    nobody = run.invoke(main, ["audit", "--store", place.dsn.replace("/postgres?", "/nobody?")])
    assert (nobody.exit_code, "create the database" in nobody.output) == (2, True), nobody.output
    assert "Traceback" not in nobody.output


def test_relay_without_asyncpg_says_how_to_get_it(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: most relays have SQLite."""
    monkeypatch.setattr("cloud_relay.store.opening.find_spec", lambda _: None)
    for opening in (lambda: open_store(place), lambda: open_readers(place, 1)):
        with pytest.raises(ConfigError, match=r"pip install 'meshnode\[postgresql\]'"):
            opening()


def test_database_without_a_store_is_told_apart(place: PostgresPlace) -> None:
    """A reader makes no tables."""
    with pytest.raises(StorageError, match="has no store"), open_reader(place):
        pass


@pytest.mark.parametrize("change", [-1, 1])
def test_store_of_another_program_is_refused_each_time(
    place: PostgresPlace, session: PostgresSession, change: int
) -> None:
    """A connection that found it once must not be taken for a good one by whoever comes next."""
    relay = RelayInProcess(place)
    relay.store.close()
    session.execute("UPDATE store SET version = version + $1", change)
    with closing(PostgresReaders(place, 1)) as readers:
        for _ in range(2):
            with pytest.raises(StorageError, match="has version"), readers.reader() as reader:
                reader.newest_number()


@pytest.mark.parametrize("text", ["", "plain", "\0", "\ue000", "\ue000\ue002", "a\0\ue000b", "\ue001\ue002\0\ue001"])
def test_text_that_postgresql_cannot_hold_comes_back(text: str) -> None:
    assert "\0" not in stored_text(text)
    assert shown_text(stored_text(text)) == text
