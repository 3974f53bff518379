"""What an operator writes about packing and retention, and what the commands say of it."""

from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.config import KeepingConfig, load_config
from cloud_relay.store.places import PostgresPlace
from cloud_relay.store.retaining import RetentionPolicy
from cloud_relay.store.schema import open_for_reading
from protocols.base.errors import ConfigError
from tests.tools.postgres_fixture import given_empty_place, given_postgres  # noqa: F401 -- fixtures
from tests.tools.relay_fixture import RelayInProcess, batch

pytest.importorskip("zstandard")


def written(folder: Path, text: str) -> Path:
    path = folder / "relay.toml"
    path.write_text('[relay]\nid = "relay-1"\n' + text)
    return path


def test_configuration_of_keeping_means_what_it_says(tmp_path: Path) -> None:
    """Without a word, records are packed after a day and nothing is ever deleted."""
    assert load_config(written(tmp_path, "")).keeping == KeepingConfig(86_400, 262_144, None, ())
    path = written(
        tmp_path,
        "[store]\npack_after_s = 60\npack_beyond = 1000\nmax_mb = 5\n"
        '[[retention]]\nkeys = "veh/*/debug/**"\nmax_age_s = 3600\n[[retention]]\nmax_age_s = 0\n',
    )
    rules = (("veh/*/debug/**", 3_600), ("**", None))
    assert load_config(path).keeping == KeepingConfig(60, 1_000, 5_000_000, rules)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[store]\nmax_mb = -1\n", r"store\.max_mb is -1: use 0 to"),
        ('[store]\npack_after_s = "1d"\n', r"store\.pack_after_s is '1d' \(str\): write a whole number"),
        ("retention = 5\n", "unknown key 'relay.retention'"),
        ("[retention]\nkeys = 'a'\n", r"retention is .*\[\[retention\]\]"),
        ("[[retention]]\nkeys = 'a'\n", "retention, number 1: max_age_s is 'None'"),
        ("[[retention]]\nmax_age_s = true\n", "max_age_s is 'True'"),
        ("[[retention]]\nmax_age_s = 1\nkeys = 'a/**/b**'\n", "retention, number 1: keys is 'a/\\*\\*/b"),
        ("[[retention]]\nmax_age_s = 1\nkey = 'a'\n", "unknown key 'retention, number 1: key': did you mean 'keys'"),
    ],
)
def test_wrong_configuration_of_keeping_names_the_value_and_the_way_out(tmp_path: Path, text: str, said: str) -> None:
    """A rule that was read wrongly would delete what nobody can bring back."""
    with pytest.raises(ConfigError, match=said):
        load_config(written(tmp_path, text))


def test_retention_command_says_what_would_go_and_deletes_nothing(tmp_path: Path) -> None:
    """An operator looks first: what is deleted is gone."""
    relay = RelayInProcess(tmp_path / "state" / "relay.sqlite")
    for number in range(1, 13):
        relay.send(batch(number, key="veh/v-1/debug/x" if number % 3 == 0 else "veh/v-1/speed"))
    relay.pack(6)
    relay.send(batch(13))
    path = written(tmp_path, '[[retention]]\nkeys = "veh/*/debug/**"\nmax_age_s = 3600\n')
    ran = CliRunner().invoke(main, ["retention", "--config", str(path)])
    assert ran.exit_code == 0, ran.output
    lines = ran.output.splitlines()
    assert lines[0].startswith("pack 1: 2 of 6 records, ")
    assert lines[0].endswith("older than their rule says: veh/v-1/debug/x")
    assert lines[2].startswith("4 records, about ")
    assert lines[2].endswith("would be deleted now; 1 records are not packed yet, and are looked at once they are")
    with closing(open_for_reading(relay.path)) as db:
        assert db.execute("SELECT sum(records) FROM packs").fetchone() == (12,)
    relay.store.close()


def test_audit_command_tells_deleted_records_from_lost_ones(tmp_path: Path) -> None:
    """Who reads an audit must not take retention for a fault, nor a fault for retention."""
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    relay.send(batch(1, 2, 4))
    relay.pack()
    relay.retain(RetentionPolicy(max_bytes=1), 0.0)
    relay.store.close()
    ran = CliRunner().invoke(main, ["audit", "--store", str(relay.path)])
    assert ran.exit_code == 1
    assert "v-1: 3 records were stored, and deleted since by retention" in ran.output
    assert "v-1: missing 3" in ran.output


@pytest.mark.processes
def test_retention_command_says_what_would_go_from_postgresql(place: PostgresPlace, tmp_path: Path) -> None:
    """An operator looks first: what is deleted is gone."""
    relay = RelayInProcess(place)
    for number in range(1, 13):
        relay.send(batch(number, key="veh/v-1/debug/x" if number % 3 == 0 else "veh/v-1/speed"))
    path = tmp_path / "relay.toml"
    rules = '[[retention]]\nkeys = "veh/*/debug/**"\nmax_age_s = 3600\n'
    path.write_text(f'[relay]\nid = "relay-1"\n[store]\nurl = "{place.dsn}"\n{rules}')
    ran = CliRunner().invoke(main, ["retention", "--config", str(path)])
    assert ran.exit_code == 0, ran.output
    assert ran.output.splitlines() == [
        "4 of 4 records, 2.6 kB: older than their rule says: veh/v-1/debug/x",
        "4 records, about 2.6 kB, would be deleted now",
    ]
    value = "x" * 200_000
    for number in range(13, 21):
        relay.send(batch(number, value=value))
    path.write_text(f'[relay]\nid = "relay-1"\n[store]\nurl = "{place.dsn}"\nmax_mb = 2\n')
    ran = CliRunner().invoke(main, ["retention", "--config", str(path)])
    assert ran.output.splitlines()[0] == "16 of 20 records, 1.6 MB: the store is larger than [store] max_mb says"
    assert relay.account().stored == 20
    assert relay.retain(RetentionPolicy(max_bytes=2_000_000), 0.0) == 16
    relay.store.close()
