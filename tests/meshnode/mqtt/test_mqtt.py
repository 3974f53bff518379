"""A node and a real broker: topics become readings, readings become messages, and nothing comes twice."""

import asyncio
import ipaddress
import json
import socket
import subprocess
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks import mqtt
from benchmarks.mosquitto import MOSQUITTO, Mosquitto
from meshnode.cli.checks import examine
from meshnode.mqtt.client import Client
from meshnode.mqtt.delivered import Delivered
from meshnode.mqtt.section import Broker
from tests.tools.eventually import eventually, until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.mqtt_fixture import connected, given_broker, opened, troubles, write

__all__ = ["given_broker", "given_house"]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed: 'sudo .ci/servers' installs it"),
]


class Other:
    """Another client of the broker, whose session outlasts its connections. It makes up for faults of paho and of
    mosquitto by which a message comes twice that the node gave or took once (see test_broker_sessions.py)."""

    def __init__(self, port: int, *topics: str, qos: int = 2) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._topics = [(topic, qos) for topic in topics]
        self.confirmed = 0
        self._is_subscribed = threading.Event()
        broker = Broker(name="box", host="127.0.0.1", port=port, version="3.1.1")
        self.client = Client(broker, Path(), "other", keeps=True)
        self.client.on_connect = lambda client, *_: client.subscribe(self._topics) if self._topics else None
        self.client.on_subscribe = lambda *_: self._is_subscribed.set()
        self._delivered = Delivered()
        self.client.on_message = self._take
        self.client.on_publish = self._count
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        if topics:
            assert self._is_subscribed.wait(30)

    def _count(self, *_: object) -> None:
        self.confirmed += 1

    def _take(self, _client: object, _data: object, message: Any) -> None:
        repeated = self._delivered.is_repeated
        if message.qos < 2 or not repeated(message.mid, message.dup, message.topic, message.payload):
            self.messages.append((message.topic, message.payload))

    def payloads(self, topic: str) -> list[bytes]:
        """What came on a topic, in its order."""
        return [payload for name, payload in list(self.messages) if name == topic]

    def say(self, topic: str, payload: str | bytes, retain: bool = False) -> None:
        self.client.publish(topic, payload, 1, retain).wait_for_publish(30)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


async def test_topics_become_readings_by_their_patterns(house: House, broker: Mosquitto) -> None:
    """Values in JSON, a field of an object, texts; what makes no sense is counted and told until something does."""
    take = (
        'take = [{ topic = "plant/+/temperature", key = "veh/{node}/plant/{1}/temperature",'
        ' unit = "Cel", quality = 0.5 },'
        ' { topic = "box/#", key = "veh/{node}/box/{1}", field = "data.level" },'
        ' { topic = "text/+", key = "veh/{node}/text/{1}", format = "text", lifespan_ms = 500 }]'
    )
    other = Other(broker.port)
    other.say("plant/old/temperature", "1", retain=True)
    async with opened(house, broker.port, take) as node:
        await connected(node)
        heard = node.subscribe("veh/v/**")
        other.say("plant/north/temperature", "21.5")
        other.say("box/a/b", json.dumps({"data": {"level": 7}}))
        other.say("text/door", "open")
        readings = {reading.key: reading for reading in [await heard.next(30) for _ in range(3)]}
        north = readings["veh/v/plant/north/temperature"]
        assert (north.value, north.how.unit, north.how.quality, north.how.lineage) == (21.5, "Cel", 0.5, ("mqtt box",))
        assert readings["veh/v/box/a/b"].value == 7
        assert (readings["veh/v/text/door"].value, readings["veh/v/text/door"].lifespan_ms) == ("open", 500)
        assert node.statistics()["mqtt_retained_skipped"] == 1, "nobody knows how old it is"
        for topic, payload in (("plant/x/temperature", "21,5"), ("plant/x/temperature", "[" * 5_000), ("box/a", "{}")):
            other.say(topic, payload)
        other.say("text/x", b"\xff\xfe")
        await until(lambda: node.statistics().get("mqtt_unusable") == 4, "each is counted")
        assert "is no reading" in troubles(node)
        other.say("plant/south/temperature", "20")
        await until(lambda: not troubles(node), "a good one ends the trouble")
    other.close()


async def test_readings_become_messages_with_their_context_or_as_values(house: House, broker: Mosquitto) -> None:
    """And what came from a broker does not go back to it."""
    give = (
        'give = [{ keys = "veh/*/speed", topic = "fleet/{1}/speed", format = "value", qos = 1 },'
        ' { keys = "veh/**", topic = "all/{key}", qos = 2 }]\n'
        'take = [{ topic = "all/veh/other/#", key = "veh/v/{1}" }]'
    )
    other = Other(broker.port, "fleet/#", "all/#")
    async with opened(house, broker.port, give) as node:
        await connected(node)
        node.publish("veh/v/speed", 12.5, unit="m/s")
        eventually(lambda: len(other.messages) == 2, "both entries send it")
        messages = dict(other.messages)
        assert json.loads(messages["fleet/v/speed"]) == 12.5
        form = json.loads(messages["all/veh/v/speed"])
        assert (form["value"], form["origin"], form["how"]["unit"]) == (12.5, "v", "m/s")
        other.say("all/veh/other/level", "3")
        heard = await node.subscribe("veh/v/level").next(30)
        assert heard.value == 3
        node.publish("veh/v/speed", 13.5)
        eventually(lambda: len(other.messages) == 5, "the next one is sent")
        assert not [topic for topic, _ in other.messages if topic == "all/veh/v/level"], "no loop"
    other.close()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_message_of_several_entries_is_one_reading_of_each(house: House, broker: Mosquitto, version: str) -> None:
    """Two fields of one topic, and filters that overlap: with MQTT 5 mosquitto sends a message once for each filter."""
    take = (
        'take = [{ topic = "box", key = "veh/{node}/x", field = "x", qos = 2 },'
        ' { topic = "box", key = "veh/{node}/y", field = "y", qos = 0 },'
        ' { topic = "plant/#", key = "veh/{node}/all/{1}" }, { topic = "plant/+/t", key = "veh/{node}/one/{1}" }]'
    )
    other = Other(broker.port)
    async with opened(house, broker.port, take, version=f'"{version}"') as node:
        await connected(node)
        heard: list[tuple[str, Any]] = []
        node.subscribe("veh/v/**", callback=lambda reading: heard.append((reading.key, reading.value)))
        other.say("plant/a/t", "1")
        other.say("box", '{"x": 2, "y": 3}')
        other.say("plant/b", "4")
        await until(lambda: ("veh/v/all/b", 4) in heard, "this came last")
        assert sorted(heard) == [
            ("veh/v/all/a/t", 1), ("veh/v/all/b", 4), ("veh/v/one/a", 1), ("veh/v/x", 2), ("veh/v/y", 3),
        ]  # fmt: skip
    other.close()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_retained_message_that_is_wanted_comes_once_and_not_with_each_connection(
    house: House, broker: Mosquitto, version: str
) -> None:
    """It would look like a new value each time that the connection was lost."""
    other = Other(broker.port)
    other.say("door", '"shut"', retain=True)
    take = 'take = [{ topic = "door", key = "veh/{node}/door", retained = true }]'
    async with opened(house, broker.port, take, version=f'"{version}"') as node:
        heard: list[Any] = []
        node.subscribe("veh/v/door", callback=lambda reading: heard.append(reading.value))
        await until(lambda: heard == ["shut"], "what the broker had kept")
        await asyncio.to_thread(broker.stop)
        await until(lambda: not node.statistics()["mqtt_connected"], "the node sees it")
        await asyncio.to_thread(broker.start)
        await connected(node)
        other.say("door", '"open"')
        await until(lambda: "open" in heard, "this came since")
        assert heard == ["shut", "open"]
    other.close()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_broker_that_goes_away_again_and_again_gets_each_message_once(
    house: House, broker: Mosquitto, version: str
) -> None:
    """With quality of service 2, while readings come all the time; what has outlived its lifespan is left out."""
    give = (
        'give = [{ keys = "veh/*/n", topic = "n", format = "value", qos = 2 },'
        ' { keys = "veh/*/short", topic = "short", format = "value" }]'
    )
    other = Other(broker.port, "n", "short")
    async with opened(house, broker.port, give, version=f'"{version}"') as node:
        await connected(node)
        count = 0
        for _ in range(3):
            for pause in range(60):
                if pause == 30:
                    await asyncio.to_thread(broker.stop)
                    await until(lambda: not node.statistics()["mqtt_connected"], "the node sees it")
                    node.publish("veh/v/short", "late", lifespan_ms=100)
                for _ in range(5):
                    node.publish("veh/v/n", count)
                    count += 1
                await asyncio.sleep(0.01)
            await until(lambda: "has gone" in troubles(node) or "can't be reached" in troubles(node), "it is told")
            await asyncio.to_thread(broker.start)
            await connected(node)
        node.publish("veh/v/short", "in time", lifespan_ms=60_000)
        numbers = Counter[int]()
        await until(lambda: len(other.payloads("n")) >= count, lambda: f"{len(other.payloads('n'))} of {count} came")
        await until(lambda: other.payloads("short") == [b'"in time"'], "this one came, and no late one")
        numbers.update(int(payload) for payload in other.payloads("n"))
        assert numbers == Counter(range(count)), "each once"
        assert "mqtt_sessions_lost" not in node.statistics(), "mosquitto wrote the session down"
        assert node.statistics()["mqtt_expired"] == 3
        assert not troubles(node)
    other.close()


async def test_quality_of_service_2_inwards_comes_once_while_a_broker_comes_and_goes(
    house: House, broker: Mosquitto
) -> None:
    """The broker keeps what comes while the node's connection is lost. What it gives a second time is left out: so
    mosquitto does with what it had under way above its own limit, which it exceeds up to 2.0.12."""
    take = 'take = [{ topic = "n", key = "veh/{node}/n", qos = 2 }]'
    heard: list[int] = []
    other = Other(broker.port)
    async with opened(house, broker.port, take) as node:
        await connected(node)
        node.subscribe("veh/v/n", callback=lambda reading: heard.append(reading.value))
        for number in range(150):
            if number % 50 == 25:
                broker.stop()
                restarted = asyncio.create_task(asyncio.to_thread(broker.start))
            other.client.publish("n", str(number), 2)
            await until(lambda number=number: other.confirmed > number - 10, "the broker keeps up")
            if number % 50 == 25:
                await restarted
        await until(lambda: set(heard) == set(range(150)), lambda: f"{set(range(150)) - set(heard)} did not come")
        assert len(heard) == 150, {number: count for number, count in Counter(heard).items() if count > 1}
        assert "mqtt_sessions_lost" not in node.statistics()
    other.close()


async def test_benchmark_finds_nothing_twice_and_nothing_expired(tmp_path: Path) -> None:
    """The short form of ``python -m benchmarks.mqtt``. A stall may outlast a lifespan: then it is made again. A fault
    of ours would show in every run."""
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        figures, wrong = await mqtt.run(folder, 3.0, 20.0)
        if not wrong:
            break
    assert not wrong, figures
    assert figures["expired"] > 0


async def test_too_many_for_a_broker_that_is_away_give_way_oldest_first(house: House, broker: Mosquitto) -> None:
    """A vehicle may be away for a day."""
    broker.stop()
    give = 'give = [{ keys = "veh/*/n", topic = "n", format = "value" }]'
    async with opened(house, broker.port, give, max_waiting="100") as node:
        for number in range(1_000):
            node.publish("veh/v/n", number)
        await until(lambda: node.statistics().get("mqtt_gave_way") == 900, "the oldest give way")
        assert node.statistics()["mqtt_waiting"] == 100
        broker.start()
        other = Other(broker.port, "n")
        await until(lambda: len(other.messages) == 100, "the newest are sent", 60)
        assert [int(payload) for _, payload in other.messages] == list(range(900, 1_000))
    other.close()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_broker_that_asks_for_a_certificate_and_a_password(house: House, tmp_path: Path, version: str) -> None:
    """TLS both ways. A wrong password and a wrong authority are told as what they are, to the doctor, too."""
    folder = tmp_path / "secure"
    folder.mkdir()
    files = Certificates(folder)
    passwords = folder / "passwords"
    passwords.touch()
    line = ["mosquitto_passwd", "-b", str(passwords), "node", "secret"]
    await asyncio.to_thread(subprocess.run, line, check=True, capture_output=True)
    (folder / "right").write_text("secret\nnot this\n")
    (folder / "wrong").write_text("wrong\n")
    broker = Mosquitto(
        folder, f"password_file {passwords}", "allow_anonymous false", f"cafile {files.ca}",
        f"certfile {files.certificate}", f"keyfile {files.key}", "require_certificate true",
    )  # fmt: skip
    broker.start()
    secure = {
        "username": '"node"', "tls": "true", "ca": f'"{files.ca}"', "certificate": f'"{files.certificate}"',
        "key": f'"{files.key}"', "version": f'"{version}"', "password_file": f'"{folder}/right"',
    }  # fmt: skip
    give = 'give = [{ keys = "veh/*/n", topic = "n" }]'
    try:
        async with opened(house, broker.port, give, **secure) as node:
            await connected(node)
            node.publish("veh/v/n", 1)
            await until(lambda: node.statistics().get("mqtt_confirmed") == 1, "it comes")
        assert finding(house) == ("ok", f"box: 127.0.0.1 port {broker.port} answers")
        wrong = Certificates(tmp_path)
        for changed, said in (
            ({"password_file": f'"{folder}/wrong"'}, "refuses this node"),
            ({"ca": f'"{wrong.ca}"'}, "certificate"),
            ({"host": '"localhost"'}, "certificate"),
        ):
            async with opened(house, broker.port, give, **{**secure, **changed}) as node:
                await until(lambda said=said: said in troubles(node), lambda: troubles(node))
            status, why = finding(house)
            assert (status, said in why) == ("fail", True), why
    finally:
        broker.stop()


class Certificates:
    """An authority, and a certificate for 127.0.0.1, as server and as client."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.certificate, self.key = folder / "ca.pem", folder / "own.pem", folder / "own.key"
        authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        now = datetime.now(UTC)

        def signed(name: x509.Name, key: ec.EllipticCurvePrivateKey, is_authority: bool) -> bytes:
            builder = x509.CertificateBuilder(
                issuer, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1),
                now + timedelta(days=1),
            )  # fmt: skip
            builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            if not is_authority:
                builder = builder.add_extension(address, critical=False)
            return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        self.ca.write_bytes(signed(issuer, authority, True))
        self.certificate.write_bytes(signed(subject, own, False))
        self.key.write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def finding(house: House) -> tuple[str, str]:
    """What the doctor says of the broker in the configuration that was opened last."""
    found = [each for each in examine(house.home("v") / "node.toml") if each.check == "mqtt"]
    assert len(found) == 1, found
    return found[0].status, found[0].message


def test_doctor_names_a_broker_that_is_absent_silent_or_none(house: House) -> None:
    """Each with a way out."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        write(house, port, 'give = [{ keys = "veh/*/n", topic = "n" }]')
        status, why = finding(house)
        assert (status, "does not answer" in why) == ("warn", True), why
    status, why = finding(house)
    assert (status, "is it running" in why) == ("warn", True), why
    write(house, port, 'give = [{ keys = "veh/*/n", topic = "n" }]', username='"u"', password_file='"absent"')
    status, why = finding(house)
    assert (status, "can't be read" in why) == ("fail", True), why
