"""Sinks over TLS: a receiver that can't prove its name gets nothing."""

import gc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.tools.eventually import eventually
from tests.tools.sink_fixture import SinkBench, given_quick_pauses, settings_from
from tests.tools.sink_servers import HttpReceiver, Mosquitto, certificate_of_this_host

__all__ = ["given_quick_pauses"]
pytestmark = pytest.mark.processes


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    with closing(HttpReceiver(certificate_of_this_host(folder))) as receiver:
        yield f'name = "out"\nkind = "http"\nurl = "{receiver.url}"\n'


@contextmanager
def mqtt_broker(folder: Path) -> Iterator[str]:
    certificate, key = certificate_of_this_host(folder)
    lines = ("allow_anonymous true", f"certfile {certificate}", f"keyfile {key}")
    with Mosquitto(folder, *lines) as broker:
        yield f'name = "out"\nkind = "mqtt"\nurl = "mqtt://127.0.0.1:{broker.port}"\ntls = "on"\ntimeout = "5s"\n'


# paho leaves a socket whose handshake failed to the garbage collector, which closes it and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("server", [http_server, mqtt_broker])
def test_receiver_gets_records_only_if_its_authority_is_known(server: object, tmp_path: Path) -> None:
    """Somebody between the relay and its receiver must not learn where vehicles were."""
    assert callable(server)
    with server(tmp_path) as table, closing(SinkBench(tmp_path, table)) as bench:
        bench.store(1, 10)
        with bench.running() as sinks:
            eventually(lambda: sinks.statistics()["out"]["failures"] >= 2)
            assert sinks.statistics()["out"]["delivered"] == 0
        bench.settings = settings_from(tmp_path, table + 'ca = "receiver.pem"\n')
        with bench.running() as sinks:
            assert bench.delivered_all(sinks)["delivered"] == 10
    gc.collect()
