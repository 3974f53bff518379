"""Datasets of a store that packs its older records and lets them go by retention."""

from pathlib import Path

import pytest

from cloud_relay.store.packs import bodies
from cloud_relay.store.retaining import RetentionPolicy, RetentionRule
from tests.tools.dataset_fixture import run, shown, tried
from tests.tools.export_fixture import sent
from tests.tools.relay_fixture import RelayInProcess, batch, given_relay  # noqa: F401 -- a fixture

pytest.importorskip("zstandard")
FORMATS = ("parquet", "csv", "arrow")


@pytest.fixture(autouse=True, name="small_bodies")
def given_small_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY_RECORDS", 5)


def exports(relay: RelayInProcess, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    for form in FORMATS:
        run(relay, "export", "all@1", str(folder / f"all.{form}"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("pack_records", "most"), [(7, 2), (7, 100), (1_000, 100)], ids=["half", "many", "one"])
def test_version_is_the_same_before_and_after_packing(
    relay: RelayInProcess, tmp_path: Path, pack_records: int, most: int
) -> None:
    """Every kind of value: a digest in a paper must not depend on how the store keeps its records."""
    sent(relay)
    relay.send(batch(*range(1, 12), node="v-2"), "v-2")
    run(relay, "create", "all")
    before, digest = exports(relay, tmp_path / "before"), shown(relay, "all@1")["digest"]
    assert relay.pack(pack_records, most) > 0
    assert "has all 30 records of all@1" in run(relay, "verify", "all@1").output
    assert exports(relay, tmp_path / "after") == before
    assert "the same as version 1" in run(relay, "create", "all").output
    run(relay, "create", "packed", "--licence", "of another name")
    assert shown(relay, "packed")["digest"] == digest


def test_version_says_which_records_retention_has_deleted(relay: RelayInProcess, tmp_path: Path) -> None:
    """A file with less in it must not pass for the version; one that was exported before still does."""
    for number in range(1, 21):
        relay.send(batch(number, key="veh/v-1/debug/x" if number % 2 else "veh/v-1/speed"))
    run(relay, "create", "all")
    run(relay, "create", "speeds", "--key", "veh/*/speed")
    run(relay, "export", "all@1", str(tmp_path / "whole.parquet"))
    relay.pack(8)
    rules = (RetentionRule("veh/*/debug/**", 60.0), RetentionRule("**", None))
    assert relay.retain(RetentionPolicy(rules), 61.0) == 10
    done = tried(relay, "verify", "all")
    assert done.exit_code == 1
    assert "10 missing: v-1 1 of" in done.output
    done = tried(relay, "export", "all", str(tmp_path / "some.parquet"))
    assert done.exit_code == 2
    assert "does not have record 1 of v-1" in done.output
    assert not (tmp_path / "some.parquet").exists()
    assert "has all 20 records of all@1" in run(relay, "verify", "all", str(tmp_path / "whole.parquet")).output
    assert "has all 10 records of speeds@1" in run(relay, "verify", "speeds").output
    run(relay, "export", "speeds", str(tmp_path / "speeds.parquet"))
    assert run(relay, "create", "all").output.startswith("all@2: 10 records")
