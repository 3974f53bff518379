"""Records to an MQTT 5 broker, one message each, with QoS 1.

The payload is the record as JSON; the identity stands in it and in the user property ``id``. A message is confirmed by
the PUBACK of the broker with a reason below 0x80. Some reasons are about the message (its topic, its form, its rights)
and refuse the record; all others, and a connection that ends, have it sent again.

paho-mqtt is used directly and not through aiomqtt, which does not tell the reason of a PUBACK: a message that the
broker's access list kept out would count as delivered.
"""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from cloud_relay.query.searching import StoredRecord
from cloud_relay.sinks.contract import DeliveryFailed, DeliveryRefused, Portion, SinkTarget, identity_of, sent_form
from cloud_relay.sinks.settings import SinkSettings

DEFAULT_PORT: Final = 1883
DEFAULT_TLS_PORT: Final = 8883
KEEPALIVE_S: Final = 30
REFUSING: Final = frozenset((0x87, 0x90, 0x95, 0x99))
"""Not authorized (for this topic), topic name invalid, packet too large, payload format invalid."""
_FAILING: Final = 0x80
_NO_TOPIC: Final = frozenset("+#")
_MAX_TOPIC_BYTES: Final = 65_535


class MqttTarget(SinkTarget):
    """One connection. paho reads and writes it on a thread of its own and tells this event loop what came."""

    most_records = 256

    def __init__(self, settings: SinkSettings) -> None:
        self._settings = settings
        self._client: paho.Client | None = None
        self._confirmed: dict[int, asyncio.Future[int]] = {}
        """By the number of the message: the reason of the broker's answer."""

    async def open(self) -> None:
        """Connect, and wait until the broker accepts it."""
        settings, loop = self._settings, asyncio.get_running_loop()
        host, port = settings.hosts(DEFAULT_PORT if settings.tls is None else DEFAULT_TLS_PORT)[0]
        connected: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        client = self._client = paho.Client(
            CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        if settings.own["user"] or "password" in settings.secrets:
            password = settings.secrets.get("password")
            client.username_pw_set(settings.own["user"], None if password is None else password.read())
        if settings.tls is not None:
            client.tls_set_context(settings.tls.context())

        def told(change: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(change)

        def on_connect(_: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
            told(lambda: _settle(connected, reason.value, str(reason)))

        def on_connect_fail(*_: Any) -> None:
            told(lambda: _settle(connected, _FAILING, "nothing listens there, or TLS failed"))

        def on_disconnect(_: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
            said = str(reason)
            told(lambda: _settle(connected, _FAILING, said))
            told(lambda: _settle(self._lost, _FAILING, said))

        def on_publish(_: Any, __: Any, number: int, reason: ReasonCode, ____: Any) -> None:
            told(lambda: self._answered(number, reason.value))

        client.on_connect, client.on_connect_fail = on_connect, on_connect_fail
        client.on_disconnect, client.on_publish = on_disconnect, on_publish
        client.connect_timeout = min(settings.timeout_s, 10.0)
        client.connect_async(host, port, KEEPALIVE_S)
        client.loop_start()
        await connected

    async def send(self, portion: Portion) -> None:
        """Publish all records and wait for the answer to each."""
        client = self._client
        assert client is not None
        self._confirmed.clear()
        answers: list[asyncio.Future[int]] = []
        for _, record in portion.records:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = [("id", identity_of(record))]
            properties.ContentType = "application/json"
            payload = msgspec.json.encode(sent_form(record))
            try:
                sent = client.publish(topic_of(self._settings.own["topic"], record), payload, 1, properties=properties)
            except ValueError as error:
                raise DeliveryRefused(f"MQTT can't carry it: {error}") from error
            if sent.rc != paho.MQTT_ERR_SUCCESS:
                raise DeliveryFailed(f"the broker is not connected: {paho.error_string(sent.rc)}")
            answers.append(self._confirmed.setdefault(sent.mid, asyncio.get_running_loop().create_future()))
        all_answered = asyncio.gather(*answers)
        all_answered.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # else asyncio complains
        try:
            await asyncio.wait((all_answered, self._lost), return_when=asyncio.FIRST_COMPLETED)
            if not all_answered.done():
                self._lost.result()
            _judge(all_answered.result())
        finally:
            all_answered.cancel()

    async def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            if (left := self._client.socket()) is not None:  # its thread ends without closing it
                left.close()
            self._client = None

    def _answered(self, number: int, reason: int) -> None:
        answer = self._confirmed.setdefault(number, asyncio.get_running_loop().create_future())
        if not answer.done():
            answer.set_result(reason)


def topic_of(template: str, record: StoredRecord) -> str:
    """The topic of a record: placeholders are replaced by its key, origin and rule. What MQTT keeps for itself is
    written as an underscore, and so is what can't be printed: brokers end the connection for it (MQTT 5, 1.5.4).

    :raises DeliveryRefused: it would be too long.
    """
    names = {
        name: "".join("_" if each in _NO_TOPIC or not each.isprintable() else each for each in record.fields[name])
        for name in ("key", "origin", "rule")
    }
    topic = re.sub(r"\{(\w+)\}", lambda found: names[found[1]], template)
    if len(topic.encode()) > _MAX_TOPIC_BYTES:
        raise DeliveryRefused(f"its topic would have {len(topic)} characters")
    return topic


def _judge(reasons: list[int]) -> None:
    """What the answers to all messages mean together. One that failed is more urgent than one that was refused."""
    bad = sorted({reason for reason in reasons if reason >= _FAILING}, key=lambda reason: (reason in REFUSING, reason))
    if bad:
        said = ReasonCode(PacketTypes.PUBACK, identifier=bad[0]) if bad[0] in REFUSING else f"reason {bad[0]:#x}"
        error = DeliveryRefused if bad[0] in REFUSING else DeliveryFailed
        raise error(f"the broker answers: {said}")


def _settle(future: "asyncio.Future[None]", reason: int, said: str) -> None:
    if future.done():
        return
    if reason < _FAILING:
        future.set_result(None)
    else:
        future.set_exception(DeliveryFailed(f"the broker can't be used: {said}"))
        future.exception()  # nobody may be waiting for it
