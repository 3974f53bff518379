"""All that a relay does with records beside storing them, in one process: packs, aggregates, sinks, datasets, HTTP."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from click.testing import CliRunner

from cloud_relay.cli import main
from protocols.wire.codec import encode_frame
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import RelayProcess, batch
from tests.tools.relay_http_fixture import asked
from tests.tools.sink_servers import HttpReceiver

pytest.importorskip("zstandard")
pytestmark = pytest.mark.processes

STORE = "[store]\npack_after_s = 1\n"
AGGREGATE = '[[aggregate]]\nname = "speed"\nkey = "veh/**"\nby = []\nbucket = "1d"\n'
HEAD = '[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[http]\nport = 0\n'


def told(relay: RelayProcess, target: str) -> Any:
    assert relay.http_url is not None
    port = urlparse(relay.http_url).port
    assert port is not None
    return asked(port, target).json


def dataset(folder: Path, command: str, *words: str) -> str:
    done = CliRunner().invoke(main, ["dataset", command, "--config", str(folder / "relay.toml"), *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_records_that_were_packed_reach_whatever_is_configured_later(tmp_path: Path) -> None:
    """An operator adds an aggregate and a sink to a relay that has run for a year; a dataset stays."""
    config = tmp_path / "relay.toml"
    config.write_text(HEAD + STORE)
    with RelayProcess(tmp_path) as relay, relay.requester() as requester:
        for first in (1, 101, 201):
            requester.request(encode_frame(batch(*range(first, first + 100), value=1.5)), 20)
        dataset(tmp_path, "create", "all")
        eventually(lambda: told(relay, "/v1/statistics")["keeping"]["packed"] == 300)
        assert "has all 300 records of all@1" in dataset(tmp_path, "verify", "all")
        # a page that takes longer than half a second ends earlier
        eventually(lambda: len(told(relay, "/v1/records?limit=1000")["records"]) == 300)
    with closing(HttpReceiver()) as receiver:
        sink = f'[[sink]]\nname = "out"\nkind = "http"\nurl = "{receiver.url}"\n'
        config.write_text(HEAD + STORE + AGGREGATE + sink)
        with RelayProcess(tmp_path) as relay, relay.requester() as requester:
            requester.request(encode_frame(batch(*range(250, 321), value=1.5)), 20)
            eventually(lambda: len(set(receiver.ids())) == 320)
            eventually(lambda: told(relay, "/v1/aggregates/kept")["aggregates"][0]["filled"] == 1)
            groups = told(relay, "/v1/aggregates/kept/speed")["groups"]
            assert (sum(group["records"] for group in groups), sum(group["sum"] for group in groups)) == (320, 480.0)
            counted = eventually(lambda: _abreast(told(relay, "/v1/statistics")["sinks"]["out"]))
            assert (counted["delivered"], counted["deleted"]) == (320, 0)
    assert receiver.ids()[:300] == [f"v-1/{number}" for number in range(1, 301)]
    assert json.loads(dataset(tmp_path, "show", "--json", "all"))["records"] == 300


def _abreast(counted: dict[str, Any]) -> dict[str, Any] | None:
    return counted if counted["backlog"] == 0 else None
