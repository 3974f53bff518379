"""Tables [[sink]]: what is wrong is named with the way out, and secrets and clear connections need a word."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from cloud_relay.config import load_config
from cloud_relay.sinks.running import target_of
from cloud_relay.sinks.secrecy import scrubbed
from cloud_relay.sinks.settings import MAX_SINKS, SinkKind
from protocols.base.errors import ConfigError
from tests.tools.sink_fixture import settings_from

HTTP = 'name = "out"\nkind = "http"\nurl = "http://127.0.0.1:1/x"\n'
MQTT = 'name = "out"\nkind = "mqtt"\nurl = "mqtt://127.0.0.1"\n'
POSTGRESQL = 'name = "out"\nkind = "postgresql"\nurl = "postgresql://127.0.0.1/x"\n'
PARQUET = 'name = "out"\nkind = "parquet"\nurl = "file:///x"\n'


def test_sink_with_three_keys_has_defaults(tmp_path: Path) -> None:
    """Whoever writes no more than needed gets everything, and loses nothing."""
    (sink,) = settings_from(tmp_path, 'name = "lake"\nkind = "parquet"\nurl = "s3://bucket/x"')
    assert (sink.name, sink.kind, sink.url) == ("lake", SinkKind.PARQUET, "s3://bucket/x")
    assert (sink.max_backlog, sink.begins_newest, sink.query.key) == (None, False, None)
    assert sink.own == {"records_per_file": 20_000, "longest_wait_s": 300.0, "options": {}}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "table 1 of [[sink]] has no name: add name"),
        ('name = "Lake"', "name is 'Lake': use up to 63 of a-z"),
        ('name = "../x"', "use up to 63 of a-z"),
        ('name = "out"', "sink 'out' has no kind"),
        ('name = "out"\nkind = "kafak"', "kind is 'kafak': write \"parquet\" or"),
        ('name = "out"\nkind = "http"', "has no url"),
        (HTTP + "urll = 1", "unknown key 'urll': did you mean 'url'?"),
        (HTTP + 'topic = "x"', "unknown key 'topic': a sink of kind http has"),
        (HTTP + "begin = 3", "begin is '3': write text in quotes"),
        (HTTP + 'begin = "now"', 'write "oldest" or "newest"'),
        (HTTP + "max_backlog = 0", "max_backlog is '0': use a whole number from 1"),
        (HTTP + "max_backlog = true", "max_backlog is 'True'"),
        (HTTP + 'timeout = "0s"', "timeout is '0s': use a span"),
        (HTTP + "select = 1", "select is '1': write a table"),
        (HTTP + 'select = { keys = "a" }', "did you mean 'key'?"),
        (HTTP + 'select = { key = "a//b" }', "empty chunk"),
        (HTTP + 'select = { since = "1d" }', "unknown name 'since'"),
        (HTTP + "select = { key = 1 }", "select.key is '1': write text"),
        (HTTP + "select = { min_quality = 2 }", "use a number from 0 to 1"),
        (HTTP + 'token = "abc"', 'not the secret itself'),
        (HTTP + 'token = { file = "missing" }', "can't be read"),
        (HTTP + 'token = { env = "MESHNODE_NOT_SET" }', "MESHNODE_NOT_SET is empty or missing"),
        (HTTP + 'token = { env = "A", file = "b" }', "write { file"),
        (HTTP + 'client_key = "x"', "belong together"),
        (HTTP.replace("http://127.0.0.1:1/x", "https://h/") + 'ca = "missing.pem"', "can't be used"),
        (HTTP.replace("127.0.0.1", "records.example"), "write https://, or tls = \"off\""),
        (HTTP.replace("127.0.0.1", "ada:pw@127.0.0.1"), "has a user or password in it"),
        (HTTP.replace("http:", "ftp:"), "url is 'ftp:"),
        (HTTP.replace(":1/", ":99999/"), "Port out of range"),
        (HTTP.replace(":1/", ":0/"), "a port is 0"),
        (HTTP.replace("127.0.0.1:1", ""), "a host is missing"),
        (MQTT.replace("127.0.0.1", "a,,b"), "a host is missing"),
        (MQTT + 'topic = "a/{kay}"', "{key}, {origin}, {rule}"),
        (MQTT + 'topic = "a/{key"', "{key}, {origin}, {rule}"),
        (MQTT + 'topic = "a/#"', "topic is 'a/#'"),
        (MQTT.replace("127.0.0.1", "127.0.0.1/x?y=1"), "leave out what follows the '?'"),
        (POSTGRESQL.replace("/x", ""), "name the database"),
        (POSTGRESQL + 'table = "a; drop"', "table is 'a; drop'"),
        ('name = "out"\nkind = "kafka"\nurl = "kafka://127.0.0.1"\nmessage_key = "x"', "write \"origin\" or"),
        (PARQUET + "records_per_file = 0", "use a whole number from 1 to 50000"),
        (PARQUET + 'options = { secret = "x" }', "put it into secrets"),
        (PARQUET + 'options = { aws_secret_access_key = "x" }', "put it into secrets"),
        (PARQUET + 'options = { endpoint_url = "http://minio.example" }', 'tls = "off"'),
        (PARQUET + 'options = { endpoint_url = "HTTP://minio.example" }', 'tls = "off"'),
        (PARQUET + 'options = { endpoint_url = "http://" }', "a host is missing"),
        (PARQUET + 'options = { client_kwargs = { endpoint_url = "http://minio.example" } }', "client_kwargs.endp"),
        (PARQUET + 'options = { client_kwargs = { aws_session_token = "x" } }', "put it into secrets"),
        (PARQUET + 'tls = "of"', 'write "on" or "off"'),
        (PARQUET.replace("file:///x", "records"), "url is 'records'"),
    ],
)  # fmt: skip
def test_wrong_table_is_named_with_the_way_out(table: str, said: str, tmp_path: Path) -> None:
    """A relay that starts with half of its settings understood sends the wrong things, or none."""
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        settings_from(tmp_path, table)
    assert "relay.toml" in str(raised.value)


def test_sinks_have_names_of_their_own_and_are_few(tmp_path: Path) -> None:
    """Two sinks with one name would share a position."""
    with pytest.raises(ConfigError, match="two tables"):
        settings_from(tmp_path, HTTP, MQTT)
    many = [HTTP.replace("out", f"out-{number}") for number in range(MAX_SINKS + 1)]
    with pytest.raises(ConfigError, match="at most 16"):
        settings_from(tmp_path, *many)


def test_sink_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """One pair of brackets is easily forgotten."""
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\n[sink]\nname = "x"\n')
    with pytest.raises(ConfigError, match=re.escape("write tables, [[sink]]")):
        load_config(tmp_path / "relay.toml")


def test_tls_is_on_beyond_this_host_unless_it_is_written(tmp_path: Path) -> None:
    """Records tell where vehicles were."""
    local, remote, clear = settings_from(
        tmp_path,
        MQTT.replace("out", "local"),
        MQTT.replace("out", "remote").replace("127.0.0.1", "broker.example"),
        MQTT.replace("out", "clear").replace("127.0.0.1", "broker.example") + 'tls = "off"',
    )
    assert (local.tls, clear.tls) == (None, None)
    assert remote.tls is not None


def test_command_names_a_wrong_table_before_it_asks_the_store(tmp_path: Path) -> None:
    """Whoever writes a configuration need not have the database at hand."""
    config = tmp_path / "relay.toml"
    away = '[store]\nurl = "postgresql://127.0.0.1:1/x"\n'
    config.write_text(f'[relay]\nid = "relay-1"\n{away}[[sink]]\n{HTTP}urll = 1\n')
    told = CliRunner().invoke(main, ["sinks", "--config", str(config)])
    assert told.exit_code
    assert "unknown key 'urll'" in told.output


def test_several_hosts_are_read(tmp_path: Path) -> None:
    """A cluster has several, and any of them may be away."""
    (sink,) = settings_from(tmp_path, 'name = "out"\nkind = "kafka"\nurl = "kafka://a:1,b,[::1]:3"')
    assert sink.hosts(9) == [("a", 1), ("b", 9), ("::1", 3)]


def test_secrets_are_taken_out_of_what_libraries_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them tell the whole address, or repeat what they were given."""
    monkeypatch.setenv("TEST_TOKEN", " s3cr3t\n")
    (sink,) = settings_from(tmp_path, HTTP + 'token = { env = "TEST_TOKEN" }')
    assert scrubbed("bad token s3cr3t\x1b[2J", sink.secrets.values()) == "bad token *** [2J"
    monkeypatch.delenv("TEST_TOKEN")
    assert scrubbed("text", sink.secrets.values()) == "text"


@pytest.mark.parametrize(("table", "library"), [(HTTP, "aiohttp"), (MQTT, "paho"), (PARQUET, "fsspec")])
def test_missing_library_is_told_with_the_command(
    table: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adds a sink to a relay without the extra has to learn what to install."""
    (sink,) = settings_from(tmp_path, table)
    for name in [name for name in sys.modules if name.startswith((library, "cloud_relay.sinks.targets."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'meshnode[sinks]'")):
        target_of(sink)
