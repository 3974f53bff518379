"""Records to a real mosquitto: a broker that goes away and comes back, and one that keeps a topic to itself."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import paho.mqtt.client as paho
import pytest
from msgspec import Raw
from paho.mqtt.enums import CallbackAPIVersion

from cloud_relay.query.selection import Query
from cloud_relay.sinks.contract import DeliveryRefused, Portion
from cloud_relay.sinks.stores.sqlite import RecordReader
from cloud_relay.sinks.targets import mqtt
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.records import Acknowledgement, Batch, Record
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import reading
from tests.tools.sink_fixture import SinkBench, given_quick_pauses
from tests.tools.sink_servers import Mosquitto

__all__ = ["given_quick_pauses"]
pytestmark = pytest.mark.processes


def table(port: int, more: str = "") -> str:
    return f'name = "out"\nkind = "mqtt"\nurl = "mqtt://127.0.0.1:{port}"\n{more}'


@contextmanager
def subscribed(port: int) -> Iterator[list[paho.MQTTMessage]]:
    """What another client of the broker gets."""
    found: list[paho.MQTTMessage] = []
    ready = Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_connect = lambda *_: client.subscribe("#", qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _, __, message: found.append(message)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert ready.wait(30)
        yield found
    finally:
        client.disconnect()
        client.loop_stop()
        if (left := client.socket()) is not None:
            left.close()


def test_records_arrive_at_their_topics_with_ids(tmp_path: Path) -> None:
    """A subscriber has to know which record a message is, without knowing our store."""
    with Mosquitto(tmp_path) as broker, closing(SinkBench(tmp_path, table(broker.port))) as bench:
        bench.store(1, 300)
        with subscribed(broker.port) as found, bench.running() as sinks:
            bench.delivered_all(sinks)
            eventually(lambda: len(found) == 300, lambda: f"{len(found)} came")
    assert {message.topic for message in found} == {"mesh/veh/v-1/speed"}
    ids = [json.loads(message.payload)["id"] for message in found]
    assert ids == [f"v-1/{number}" for number in range(1, 301)]
    assert found[0].properties is not None
    assert found[0].properties.UserProperty == [("id", "v-1/1")]
    assert found[0].qos == 1


def test_broker_that_goes_away_and_returns_gets_everything(tmp_path: Path) -> None:
    """What was stored while it was away must arrive, and what it had not confirmed comes again."""
    with Mosquitto(tmp_path) as broker, closing(SinkBench(tmp_path, table(broker.port))) as bench:
        bench.store(1, 20)
        with bench.running() as sinks:
            bench.delivered_all(sinks)
            broker.stop()
            bench.store(21, 60)
            eventually(lambda: sinks.statistics()["out"]["failures"] >= 2, lambda: str(sinks.statistics()))
            assert sinks.statistics()["out"]["backlog"] == 40
            broker.start()
            counted = bench.delivered_all(sinks)
    assert counted["delivered"] == 60


def test_message_that_the_broker_keeps_out_is_refused_and_the_rest_arrives(tmp_path: Path) -> None:
    """It says so in its answer and goes on; such a record would count as delivered for whoever does not look."""
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite mesh/veh/#\n")
    lines = ("allow_anonymous true", f"acl_file {acl}")
    with Mosquitto(tmp_path, *lines) as broker, closing(SinkBench(tmp_path, table(broker.port))) as bench:
        bench.store(1, 9)
        bench.store(10, 10, key="rsu/north/hazard")
        bench.store(11, 20)
        with bench.running() as sinks:
            counted = bench.delivered_all(sinks)
    assert (counted["delivered"], counted["refused"], counted["failures"]) == (19, 1, 0)
    assert "Not authorized" in json.loads(bench.refused())["reason"]


def test_rule_that_no_topic_can_have_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    """Its name is the node's choice, and a broker ends the connection for a control character, each time."""
    more = 'topic = "mesh/{rule}"'
    with Mosquitto(tmp_path) as broker, closing(SinkBench(tmp_path, table(broker.port, more))) as bench:
        records = (Record(1, "a\x01b", Raw(encode_reading(reading(1)))),)
        assert isinstance(bench.relay.send(Batch(MAJOR, MINOR, "v-1", 1, 2, records, ())), Acknowledgement)
        bench.store(2, 9)
        with subscribed(broker.port) as found, bench.running() as sinks:
            counted = bench.delivered_all(sinks)
            eventually(lambda: len(found) == 9, lambda: f"{len(found)} came")
    assert (counted["delivered"], counted["refused"], counted["failures"]) == (9, 0, 0)
    assert {message.topic for message in found} == {"mesh/a_b", "mesh/r"}


def test_wrong_password_is_waited_for_and_shown_in_no_message(tmp_path: Path) -> None:
    """A person can mend it; nothing may be given up meanwhile."""
    (tmp_path / "password").write_text("hunter2-secret")
    lines = ("allow_anonymous false", "password_file " + str(tmp_path / "users"))
    (tmp_path / "users").write_text("")
    (tmp_path / "users").chmod(0o600)
    more = 'user = "relay"\npassword = { file = "password" }'
    with Mosquitto(tmp_path, *lines) as broker, closing(SinkBench(tmp_path, table(broker.port, more))) as bench:
        bench.store(1, 3)
        with bench.running() as sinks:
            told = eventually(lambda: sinks.statistics()["out"]["error"])
            assert "Not authorized" in told
            assert "hunter2" not in told
            assert sinks.statistics()["out"]["position"] == 0


@pytest.mark.parametrize(("key", "topic"), [("veh/a b/x", "m/veh/a b/x/r"), ("veh/1+1/x", "m/veh/1_1/x/r")])
def test_topic_is_made_of_what_the_record_has(key: str, topic: str, tmp_path: Path) -> None:
    """A key with what MQTT keeps for itself must not end the connection."""
    with closing(SinkBench(tmp_path)) as bench:
        bench.store(1, 1, key=key)
        with closing(RecordReader(bench.relay.path, Query())) as reader:
            ((_, record),) = reader.extend(Portion(1, 0, []), 10, None).portion.records
    assert mqtt.topic_of("m/{key}/{rule}", record) == topic
    record.fields["rule"] = "a\x01\x7f\uffff+b"
    assert mqtt.topic_of("m/{rule}", record) == "m/a____b"
    record.fields["rule"] = "x" * 70_000
    with pytest.raises(DeliveryRefused):
        mqtt.topic_of("m/{rule}", record)
