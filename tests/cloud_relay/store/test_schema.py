"""The form of the store's file: how one of an earlier version becomes one of this one."""

import sqlite3
from contextlib import closing
from pathlib import Path

from cloud_relay.query.arrivals import arrivals_after
from cloud_relay.query.selection import Query
from cloud_relay.store import schema
from cloud_relay.store.schema import SCHEMA, VERSION, open_for_reading
from protocols.wire.records import Acknowledgement
from tests.tools.relay_fixture import RelayInProcess, batch

BEFORE_NUMBERS = SCHEMA.replace("number INTEGER PRIMARY KEY, UNIQUE (origin", "PRIMARY KEY (origin")
"""The tables as version 3 made them."""


def store_of_version_3(path: Path) -> None:
    """A store as version 3 left it, with three records, of which the second is gone."""
    with closing(sqlite3.connect(path)) as db:
        for statement in (BEFORE_NUMBERS + ";" + schema.RECEIPTS + ";" + schema.SEARCHING).split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 3")
        relay = RelayInProcess(path.with_suffix(".new"))
        relay.send(batch(1, 2, 3))
        relay.store.close()
        with closing(open_for_reading(relay.path)) as made:
            rows = made.execute("SELECT * FROM records ORDER BY number").fetchall()
        db.executemany(f"INSERT INTO records VALUES ({','.join('?' * 23)})", [row[:-1] for row in rows])
        db.execute("DELETE FROM records WHERE sequence = 2")
        db.execute("INSERT INTO origins VALUES ('v-1', 4, 1, 0)")
        db.commit()


def test_store_of_version_3_is_taken_over_with_the_numbers_of_its_rows(tmp_path: Path) -> None:
    """Streams of records go on by these numbers."""
    path = tmp_path / "relay.sqlite"
    store_of_version_3(path)
    relay = RelayInProcess(path)
    assert relay.send(batch(1, 4)) == Acknowledgement((1, 4))
    relay.store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT number, sequence FROM records").fetchall() == [(1, 1), (3, 3), (4, 4)]
        db.execute("VACUUM")
    with closing(open_for_reading(path)) as db:
        assert [number for number, _ in arrivals_after(db, Query(), 1).records] == [3, 4]


def test_numbers_of_records_outlive_a_vacuum(tmp_path: Path) -> None:
    """An operator may compact the file, and ``Last-Event-ID`` has to mean the same record afterwards."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    relay.send(batch(1, 2, 3))
    relay.store.close()
    with closing(sqlite3.connect(relay.path)) as db:
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        db.execute("DELETE FROM records WHERE sequence = 1")
        db.commit()
        db.execute("VACUUM")
        assert db.execute("SELECT number FROM records").fetchall() == [(2,), (3,)]
