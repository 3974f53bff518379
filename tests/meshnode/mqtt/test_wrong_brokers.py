"""Brokers that speak no MQTT, break off or lie, and tables that name none: a node tells of them and goes on."""

import asyncio
import contextlib
import socket
import socketserver
import threading
import time

import pytest

import meshnode as mesh
from benchmarks.mosquitto import MOSQUITTO, Mosquitto
from protocols.base.errors import ConfigError
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.mqtt_fixture import given_broker, opened, troubles

__all__ = ["given_broker", "given_house"]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed: 'sudo .ci/servers' installs it"),
]

CONNACK = b"\x20\x03\x00\x00\x00"
LONG = b"\xff\xff" + b"a" * 65_535
ANSWERS = {
    "silence": b"",
    "garbage": bytes(range(256)) * 40,
    "endless_length": CONNACK + b"\x30\xff\xff\xff\xff\xff",
    "cut_connack": b"\x20\x01\x00",
    "cut_publish": CONNACK + b"\x32\x01\x00",
    "bad_properties": CONNACK + b"\x30\x08\x00\x01a\x04\xfe\x01\x02\x03",
    "topic_of_64_kB": CONNACK + b"\x30\x82\x80\x04" + LONG + b"\x00",
    "topic_that_is_no_text": CONNACK + b"\x30\x05\x00\x02\xff\xfe\x00",
    "suback_of_another": CONNACK + b"\x90\x03\x00\x63\x00",
    "confirms_what_was_not_sent": CONNACK + b"\x40\x02\x00\x63" + b"\x50\x02\x00\x63" + b"\x70\x02\x00\x63",
    "retained": CONNACK + b"\x31\x05\x00\x01a\x001" * 5_000,
}


socketserver.ThreadingTCPServer.daemon_threads = True


class Impostor(socketserver.BaseRequestHandler):
    """Says what it has to say, and then nothing."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.recv(4_096)
            self.request.sendall(self.server.answer)  # type: ignore[attr-defined]
            self.server.met.set()  # type: ignore[attr-defined]
            while self.request.recv(4_096):
                pass


@pytest.mark.parametrize("names", [list(ANSWERS)[:5], list(ANSWERS)[5:]], ids=["no_session", "session"])
async def test_brokers_that_are_none_stop_no_node(house: House, names: list[str]) -> None:
    """It opens, goes on, and closes in bounded time, with messages waiting for all of them."""
    tables = []
    with contextlib.ExitStack() as servers:
        met = []
        for name in names:
            server = servers.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Impostor))
            server.answer, server.met = ANSWERS[name], threading.Event()  # type: ignore[attr-defined]
            met.append(server.met)  # type: ignore[attr-defined]
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            servers.callback(server.shutdown)
            tables.append(
                f'[[mqtt]]\nname = "{name}"\nhost = "127.0.0.1"\nport = {server.server_address[1]}\n'
                'give = [{ keys = "veh/*/n", topic = "n", qos = 2 }]\n'
                'take = [{ topic = "#", key = "veh/{node}/t/{1}" }]\n'
            )
        async with mesh.open(house.file("v", "\n".join(tables), mdns=False)) as node:
            heard = node.subscribe("veh/v/n")
            for each in met:
                assert await asyncio.to_thread(each.wait, 30)
            for number in range(50):
                node.publish("veh/v/n", number)
            assert (await heard.next(30)).value == 0
            started_s = time.monotonic()
        assert time.monotonic() - started_s < 30, "far beyond what one session may take"


async def test_client_goes_on_after_an_error_of_its_own(house: House, broker: Mosquitto) -> None:
    """An error on the client's thread would otherwise end the bridge, and nobody would see it."""
    answers = [ANSWERS["cut_publish"], ANSWERS["bad_properties"], ANSWERS["cut_connack"], b""]

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                if len(answers) == 4:
                    answers.pop()  # the connection by which an earlier session is forgotten
                elif answers:
                    self.request.recv(4_096)
                    self.request.sendall(answers.pop())
                    return
                with socket.create_connection(("127.0.0.1", broker.port)) as real:
                    threading.Thread(target=pumped, args=(real, self.request), daemon=True).start()
                    pumped(self.request, real)

    def pumped(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65_536):
                sink.sendall(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        give = 'give = [{ keys = "veh/*/n", topic = "n", qos = 2 }]'
        async with opened(house, server.server_address[1], give) as node:
            node.publish("veh/v/n", 1)
            await until(lambda: node.statistics().get("mqtt_confirmed") == 1, lambda: troubles(node))
        assert not answers
        server.shutdown()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('take = [{ topic = "a/#/b", key = "veh/v/x" }]', "wildcard"),
        ('take = [{ topic = "a/+", key = "veh/v/{2}" }]', "has no place {2}"),
        ('give = [{ keys = "veh/*", topic = "{origins}" }]', "has no place {origins}"),
        ('give = [{ keys = "veh/*", topic = "a/+" }]', "has a wildcard"),
        ('password_file = "x"', "needs 'username'"),
        ('ca = "x"', "needs 'tls = true'"),
        ('tls = true\ncertificate = "x"', "needs 'key'"),
        ("qos = 1", "qos"),
        ('[[mqtt]]\nname = "other"\nhost = "h"', "give each its own 'client_id'"),
    ],
    ids=["filter", "place", "name", "topic", "password", "ca", "certificate", "unknown", "session"],
)
def test_wrong_tables_are_named(house: House, table: str, said: str) -> None:
    """They keep the node from starting, with all other errors of the file."""
    with pytest.raises(ConfigError) as told:
        mesh.open(house.file("v", f'[[mqtt]]\nname = "box"\nhost = "h"\n{table}\n', mdns=False))
    assert said in str(told.value)
