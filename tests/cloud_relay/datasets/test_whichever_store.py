"""A version is the same whichever store its records are in: what one store made, another one with the same verifies."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.postgresql import PostgresServer
from cloud_relay.cli import main
from cloud_relay.store.postgres.session import PostgresSession
from tests.tools.postgres_fixture import fresh_place, given_postgres  # noqa: F401 -- a fixture
from tests.tools.relay_fixture import RelayInProcess, batch

pytestmark = pytest.mark.processes


@pytest.fixture(name="folder")
def given_folder(tmp_path: Path) -> Path:
    """The folder of datasets, which several stores share here."""
    return tmp_path / "datasets"


@pytest.fixture(name="in_sqlite")
def given_relay_in_sqlite(tmp_path: Path) -> Iterator[RelayInProcess]:
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    yield relay
    relay.store.close()


@pytest.fixture(name="in_postgres")
def given_relay_in_postgres(postgres: PostgresServer) -> Iterator[RelayInProcess]:
    relay = RelayInProcess(fresh_place(postgres))
    yield relay
    relay.store.close()


def told(store: str, folder: Path, command: str, *words: str, status: int = 0) -> str:
    done = CliRunner().invoke(main, ["dataset", command, "--store", store, "--folder", str(folder), *words])
    assert done.exit_code == status, done.output
    return done.output


def test_versions_of_both_stores_are_the_same_and_each_verifies_that_of_the_other(
    in_sqlite: RelayInProcess, in_postgres: RelayInProcess, postgres: PostgresServer, folder: Path, tmp_path: Path
) -> None:
    """Who moves to PostgreSQL takes along the versions by which models were trained."""
    texts = batch(3_001, key="veh/v-1/text", value="\0 ü \ud7ff")
    for relay in (in_postgres, in_sqlite):
        for first in range(1, 2_001, 200):  # more than a page
            relay.send(batch(*range(first, first + 200)))
        relay.send(texts)
    sqlite, url = str(in_sqlite.path), postgres.url("postgres")
    made = told(url, folder, "create", "all")
    assert made.startswith("all@1: 2001 records, ")
    assert "all@2: 2001 records, the same as version 1" in told(sqlite, folder, "create", "all")
    for store, version in ((sqlite, "all@1"), (url, "all@2")):
        assert f"the store has all 2001 records of {version}" in told(store, folder, "verify", version)
    files = [tmp_path / f"{name}.csv" for name in ("sqlite", "postgresql")]
    for store, file in zip((sqlite, url), files, strict=True):
        told(store, folder, "export", "all@1", str(file))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "all@1" in told(url, folder, "verify", "all@1", str(files[1]))


def test_version_stays_while_records_come_in_and_names_those_that_are_gone(
    in_postgres: RelayInProcess, postgres: PostgresServer, folder: Path, tmp_path: Path
) -> None:
    """The list says which records belong to it: neither later ones nor those that retention took change that."""
    url = postgres.url("postgres")
    in_postgres.send(batch(1, 2, 3, 4))
    assert "speeds@1: 4 records" in told(url, folder, "create", "speeds", "--key", "veh/*/speed")
    in_postgres.send(batch(5, 6, 7))
    assert "has all 4 records" in told(url, folder, "verify", "speeds@1")
    told(url, folder, "export", "speeds@1", str(tmp_path / "speeds.csv"))
    assert "speeds@2: 7 records" in told(url, folder, "create", "speeds")
    with closing(PostgresSession(in_postgres.path, 60, {})) as session:
        session.connect()
        session.execute("DELETE FROM records WHERE sequence = 2")
    said = told(url, folder, "verify", "speeds@1", status=1)
    assert "it has 3 of 4 records" in said
    assert "1 missing: v-1 2 of " in said
    said = told(url, folder, "export", "--overwrite", "speeds@1", str(tmp_path / "speeds.csv"), status=2)
    assert "does not have record 2 of v-1, which belongs to speeds@1" in said


def test_folder_has_to_be_named_where_the_store_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL is beside no folder, and a version in whatever folder the command is in would not be found again."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["dataset", "list", "--store", "postgresql://db.example/records"])
    assert done.exit_code == 2
    assert "datasets of postgresql://db.example/records are in a folder of the relay's host" in done.output
    assert "--folder" in done.output
    assert list(tmp_path.iterdir()) == []


def test_folder_is_that_of_the_configuration_whichever_store_it_names(
    in_postgres: RelayInProcess, postgres: PostgresServer, tmp_path: Path
) -> None:
    """Triggers and ``train`` look there."""
    in_postgres.send(batch(1, 2))
    file = tmp_path / "relay.toml"
    file.write_text(f'[relay]\nid = "relay-1"\nstate_dir = "state"\n[store]\nurl = {postgres.url("postgres")!r}\n')
    done = CliRunner().invoke(main, ["dataset", "create", "--config", str(file), "speeds"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "state" / "datasets" / "speeds" / "1" / "version.json").is_file()
