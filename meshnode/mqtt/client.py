"""What the node asks of paho, its MQTT client. The only module that imports it.

paho keeps the state of a session over its connections, with reason codes and both ends of quality of service 2. It
calls its callbacks on a thread of its own, some of them while it holds a lock that ``publish`` takes, too. So nobody
may call paho while holding a lock that a callback takes.

:class:`Client` adds what paho lacks: it goes on after bytes from a broker that paho can't read (paho's thread would end
and nobody would notice), it ends in a bounded time, whatever the broker does, and a message that was half confirmed
stays so over failed attempts to connect.
"""

import contextlib
import hashlib
import logging
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MessageState, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from meshnode.mqtt.messages import MAX_PAYLOAD_BYTES, Message
from meshnode.mqtt.section import Broker
from protocols.base.errors import ConfigError, SourceUnavailable

MAX_UNDER_WAY: Final = 20
"""How many messages may wait for their confirmation: what brokers take by default."""
GONE: Final = 0x92
"""The reason "packet identifier not found": the broker had confirmed the message before the connection was lost."""
NO_CONNECTION: Final = MQTTErrorCode.MQTT_ERR_NO_CONN
MAX_SESSION_NAME: Final = 19
"""Without its end. Brokers need not take more than 23 characters."""
_MAX_HEADER_BYTES: Final = 70_000
"""A topic has 65,535 at most."""
_SESSION_S: Final = 86_400
"""How long a broker keeps what comes for a node that is away: a day."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1, 30
"""Pauses between attempts to connect."""
_CONNECT_S: Final = 5.0
_END_S: Final = 1.0
"""How long the client's thread may take to end in order, and again when its connection is cut."""
_log = logging.getLogger(__name__)


class BrokerAbsent(SourceUnavailable):
    """Nobody answers there now."""


class SessionRemains(OSError):
    """An earlier session could not be forgotten; says why."""


class _TlsSocket(ssl.SSLSocket):
    """paho leaves a socket open whose handshake failed."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _Ending(Exception):
    """The client ends, so it must not connect."""


class Client(paho.Client):
    """See the module."""

    def __init__(self, broker: Broker, folder: Path, client_id: str, *, keeps: bool) -> None:
        """``keeps``: the session outlasts connections.

        :raises ConfigError: a file is missing or wrong.
        """
        self.is_ending = threading.Event()
        self._has_ended = threading.Event()
        self.why_not_connected = ""
        self.is_session_left = False
        self.broken: Callable[[str], object] = _log.warning
        is_new = broker.version == "5"
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if is_new else not keeps,
            protocol=paho.MQTTv5 if is_new else paho.MQTTv311,
        )
        self.connect_timeout = _CONNECT_S
        self.max_inflight_messages_set(MAX_UNDER_WAY)
        self.max_queued_messages_set(2 * MAX_UNDER_WAY)
        self.reconnect_delay_set(_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S)
        if broker.username is not None:
            self.username_pw_set(broker.username, _password(broker, folder))
        if broker.tls:
            self.tls_set_context(_tls(broker, folder))

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """What paho's thread runs. An error in it must not end it."""
        try:
            while True:
                try:
                    return super().loop_forever(timeout, retry_first_connection)
                except _Ending:
                    return MQTTErrorCode.MQTT_ERR_SUCCESS
                except Exception as error:  # noqa: BLE001 - whatever a broker sent
                    self.broken(f"sent what can't be read: {type(error).__name__}: {error}")
                if self.is_ending.wait(_SHORTEST_PAUSE_S):
                    return MQTTErrorCode.MQTT_ERR_SUCCESS
                with contextlib.suppress(OSError):  # the loop tries again
                    self.reconnect()
        finally:
            self._has_ended.set()

    def reconnect(self) -> MQTTErrorCode:
        """As that of paho, unless the client ends. :raises OSError: the broker can't be reached."""
        if self.is_ending.is_set():
            raise _Ending
        self._remember_released()
        try:
            return super().reconnect()
        except OSError as error:
            self.why_not_connected, self.is_session_left = str(error), isinstance(error, SessionRemains)
            raise

    def _remember_released(self) -> None:
        """After a reconnect paho sends PUBREL again, but forgets that if the first attempt to connect fails. It would
        publish the message as a new one, and a broker that had the first PUBREL would pass it on twice."""
        with self._out_message_mutex:
            for message in self._out_messages.values():
                if message.state == MessageState.MQTT_MS_RESEND_PUBREL:
                    message.state = MessageState.MQTT_MS_WAIT_FOR_PUBCOMP

    def end(self) -> None:
        """Say goodbye and end the thread, in three seconds at most. A thread that waits for an answer to its attempt to
        connect ends after this attempt."""
        self.is_ending.set()
        self.disconnect()
        if self._has_ended.wait(_END_S):
            return
        connection = self.socket()
        if isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._has_ended.wait(_END_S)


def begin(client: Client, broker: Broker) -> None:
    """Connect from now on, to the session that the broker has, or to a new one. It outlasts its connections."""
    if broker.version == "5":
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = _SESSION_S
        properties.MaximumPacketSize = MAX_PAYLOAD_BYTES + _MAX_HEADER_BYTES
        client.connect_async(broker.host, broker.number, broker.keepalive_s, clean_start=False, properties=properties)
    else:
        client.connect_async(broker.host, broker.number, broker.keepalive_s)
    client.loop_start()


def forget_session(broker: Broker, folder: Path, client_id: str) -> None:
    """Have the broker forget an earlier session. Version 3.1.1 has no other way to begin one that is then kept, and in
    version 5 mosquitto keeps none over its restarts that began with a clean start.

    :raises SessionRemains: the broker does not answer, or refuses; try again.
    """
    try:
        knock(broker, folder, client_id, _CONNECT_S)
    except (SourceUnavailable, ConfigError) as error:
        raise SessionRemains(str(error)) from error


def subscribe(client: Client, broker: Broker, has_numbers: bool) -> dict[int, tuple[str, ...]]:
    """Ask for what is taken; returns the filters that each packet asks for, by its number.

    A filter of several entries is asked for once, at their highest quality of service. ``has_numbers``: the broker can
    say for which subscription it sends a message.
    """
    filters: dict[str, int] = {}
    for entry in broker.take:
        filters[entry.topic] = max(entry.qos, filters.get(entry.topic, 0))
    if broker.version != "5":
        number = client.subscribe(list(filters.items()))[1]
        return {} if number is None else {number: tuple(filters)}
    asked: dict[int, tuple[str, ...]] = {}
    for each, qos in filters.items():
        properties: Any = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
        if has_numbers:
            properties.SubscriptionIdentifier = subscription_number(each)
        number = client.subscribe(each, options=SubscribeOptions(qos=qos), properties=properties)[1]
        if number is not None:
            asked[number] = (each,)
    return asked


def subscription_number(topic_filter: str) -> int:
    """Which subscription a broker sends a message for. It is the same after a restart with another configuration, as a
    broker keeps the subscriptions of a session."""
    return 1 + zlib.crc32(topic_filter.encode()) % 268_435_455


def publish_properties(broker: Broker, message: Message, ends_ns: int) -> Properties | None:
    """Which reading it is, and for how long a broker may keep it."""
    if broker.version != "5":
        return None
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = list(message.properties)
    if ends_ns:
        properties.MessageExpiryInterval = max(1, -(-(ends_ns - time.monotonic_ns()) // 1_000_000_000))
    return properties  # type: ignore[no-any-return]


def knock(broker: Broker, folder: Path, client_id: str, timeout_s: float) -> None:
    """Connect once, with a session that ends with the connection, and leave.

    :raises BrokerAbsent: nobody answers. :raises SourceUnavailable: the broker refuses, or is another. Both say what
        to do. :raises ConfigError: a file is missing or wrong.
    """
    at = f"the broker {broker.name} at {broker.host}:{broker.number}"
    client = Client(broker, folder, client_id, keeps=False)
    answered = threading.Event()
    answers: list[Any] = []

    def on_connect(_client: Any, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        answers.append(reason)
        answered.set()

    client.on_connect = on_connect
    client.broken = lambda _why: None
    client.connect_timeout = timeout_s
    try:
        client.connect(broker.host, broker.number, broker.keepalive_s)
    except ssl.SSLCertVerificationError as error:
        raise SourceUnavailable(
            f"{at} has a certificate that is not accepted ({error.verify_message}): is 'ca' its authority, and is "
            "'host' a name in it?"
        ) from error
    except (OSError, ValueError) as error:
        raise BrokerAbsent(
            f"{at} can't be reached ({error}): is it running, and are 'host', 'port' and 'tls' right?"
        ) from error
    client.loop_start()
    is_answered = answered.wait(timeout_s)
    client.end()
    if not is_answered:
        raise BrokerAbsent(
            f"{at} does not answer within {timeout_s:g} s: does it speak MQTT {broker.version}, and is 'tls' right?"
        )
    if answers[0].is_failure:
        raise SourceUnavailable(
            f"{at} refuses this node ({answers[0]}): correct 'username' and 'password_file', or give this user "
            "the right"
        )


def session_name(broker: Broker, node: str, end: str) -> str:
    """The name of a session, with ``end`` at its end. A broker ends the connection of a client when another comes by
    its name, so nodes whose ids begin alike must not get the same one."""
    name = broker.client_id or f"mesh-{node}"
    if len(name) > MAX_SESSION_NAME:
        name = f"{name[: MAX_SESSION_NAME - 9]}-{hashlib.sha256(node.encode()).hexdigest()[:8]}"
    return name + end


def _password(broker: Broker, folder: Path) -> str | None:
    if broker.password_file is None:
        return None
    path = folder / broker.password_file
    try:
        return path.read_text("utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"[[mqtt]] {broker.name}: the password_file {path} can't be read: {error}") from error


def _tls(broker: Broker, folder: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if broker.ca is None else str(folder / broker.ca))
        context.sslsocket_class = _TlsSocket
        if broker.certificate is not None and broker.key is not None:
            context.load_cert_chain(folder / broker.certificate, folder / broker.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[[mqtt]] {broker.name}: 'ca', 'certificate' or 'key' can't be used: {error}") from error
    return context
