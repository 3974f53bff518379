"""What a session does with a broker that repeats, forgets, or goes between the two halves of quality of service 2.

The broker is a script: this thread speaks its side of MQTT 5 packet by packet, and loses exactly what a test is about.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from meshnode.mqtt import client
from meshnode.mqtt.messages import Message
from meshnode.mqtt.section import Broker, GivenReadings, TakenTopics
from meshnode.mqtt.session import BrokerSession
from tests.tools.eventually import eventually

CONNECT, CONNACK, PUBLISH, PUBREC, PUBREL, PUBCOMP = 0x10, 0x20, 0x30, 0x50, 0x62, 0x70
SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT = 0x82, 0x90, 0xC0, 0xE0
CLEAN_START = 0x02
CONNECT_FLAGS_AT = 7
PUBLISH_DUP, PUBLISH_QOS_2, PUBLISH_RETAINED = 0x08, 0x04, 0x01


class Connection:
    """One connection of a client, seen from the broker."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.settimeout(30)
        self._file = connected.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """It is lost: the client is told nothing."""
        self._file.close()
        self._socket.close()

    def next(self) -> tuple[int, bytes]:
        """First byte and content of the next packet that is no ping."""
        while True:
            kind, size = self._file.read(2)
            assert size < 0x80, "the tests send nothing larger"
            content = self._file.read(size)
            if kind != PINGREQ:
                return kind, content
            self._socket.sendall(b"\xd0\x00")

    def expect(self, expected: int) -> bytes:
        """The content of the next packet, which is of this kind."""
        kind, content = self.next()
        assert kind == expected, (hex(kind), content)
        return content

    def numbers(self, expected: int, count: int) -> list[int]:
        """The numbers of as many packets of one kind."""
        return [int.from_bytes(self.expect(expected)[:2]) for _ in range(count)]

    def answer(self, kind: int, content: bytes) -> None:
        self._socket.sendall(bytes((kind, len(content))) + content)

    def answer_each(self, kind: int, numbers: list[int]) -> None:
        for number in numbers:
            self.answer(kind, number.to_bytes(2))

    def accept(self, is_known: bool) -> int:
        """Take the client in; says with which flags it came."""
        flags = self.expect(CONNECT)[CONNECT_FLAGS_AT]
        self.answer(CONNACK, bytes((is_known, 0, 0)))
        return flags

    def accept_taker(self, is_known: bool) -> None:
        """The client subscribes to one topic."""
        self.accept(is_known)
        self.answer(SUBACK, self.expect(SUBSCRIBE)[:2] + b"\x00\x02")

    def publish(self, number: int, payload: str, dup: bool = False) -> None:
        first = PUBLISH | PUBLISH_QOS_2 | (PUBLISH_DUP if dup else 0)
        self.answer(first, b"\x00\x01n" + number.to_bytes(2) + b"\x00" + payload.encode())

    def complete(self, numbers: list[int]) -> None:
        """The handshake of messages that were published, up to what the client says last."""
        assert self.numbers(PUBREC, len(numbers)) == numbers
        self.answer_each(PUBREL, numbers)
        assert self.numbers(PUBCOMP, len(numbers)) == numbers


class Script:
    """A broker, and the session of a node with it."""

    def __init__(self, folder: Path, take: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.heard: list[str] = []
        entries: Any = {"take": (TakenTopics(topic="n", key="n", qos=2),)} if take else {}
        entries = entries or {"give": (GivenReadings(keys="n", topic="n", qos=2),)}
        broker = Broker(name="box", host="127.0.0.1", port=self._listener.getsockname()[1], **entries)
        received = (lambda _topic, payload, *_: self.heard.append(payload.decode())) if take else None
        self.session = BrokerSession(broker, folder, "v", received, lambda _why: None)
        self.session.start()

    def connection(self) -> Connection:
        """The next one."""
        return Connection(self._listener.accept()[0])

    def forget_earlier(self) -> None:
        """A session that gives begins with this."""
        with self.connection() as knocking:
            assert knocking.accept(False) & CLEAN_START
            assert knocking.next()[0] == DISCONNECT

    def close(self) -> None:
        self._listener.close()
        self.session.close()


def test_nodes_with_long_ids_have_sessions_of_their_own() -> None:
    """A broker ends the connection of whoever has the name of a newcomer: two such nodes would do nothing else."""
    broker = Broker(name="box", host="h")
    names = {
        client.session_name(broker, node, end)
        for node in ("veh-1", "vehicle-of-the-works-1", "vehicle-of-the-works-2", "v" * 63)
        for end in ("-in", "-out")
    }
    assert len(names) == 8
    assert max(map(len, names)) <= 23, "a broker need not take more"
    assert client.session_name(broker, "veh-1", "-in") == "mesh-veh-1-in"


@pytest.fixture(autouse=True)
def given_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on how long the client waits before it connects again."""
    monkeypatch.setattr(client, "_SHORTEST_PAUSE_S", 0.05)


@pytest.fixture(name="taking")
def given_taking(tmp_path: Path) -> Iterator[Script]:
    with contextlib.closing(Script(tmp_path, take=True)) as script:
        yield script


@pytest.fixture(name="giving")
def given_giving(tmp_path: Path) -> Iterator[Script]:
    with contextlib.closing(Script(tmp_path, take=False)) as script:
        yield script


def test_broker_that_publishes_again_what_was_confirmed_is_heard_once(taking: Script) -> None:
    """As mosquitto does after a restart with more messages under way than it restores as such. A message whose first
    sending was lost has the same flag, and one that is equal to an earlier one has another number."""
    numbers = list(range(1, 26))
    with taking.connection() as first:
        first.accept_taker(False)
        for number in numbers:
            first.publish(number, "same" if number > 20 else str(number))
        first.complete(numbers)
    again = [21, 22, 23, 24, 25]
    for _ in range(2):
        with taking.connection() as later:
            later.accept_taker(True)
            for number in again:
                later.publish(number, "same", dup=True)
            later.complete(again)
    with taking.connection() as last:
        last.accept_taker(True)
        last.publish(25, "same", dup=True)
        last.publish(26, "same", dup=True)
        last.publish(27, "same")
        last.publish(5, "other", dup=True)
        last.complete([25, 26, 27, 5])
    expected = [str(number) for number in range(1, 21)] + ["same"] * 7 + ["other"]
    assert taking.heard == expected, "PUBCOMP comes after the message was handed on"
    assert taking.session.counts["repeated"] == 11


def test_broker_that_begins_a_new_session_is_believed(taking: Script) -> None:
    """It numbers from 1 again, and some of that may be lost at first."""
    numbers = list(range(1, 26))
    with taking.connection() as first:
        first.accept_taker(False)
        for number in numbers:
            first.publish(number, "same")
        first.complete(numbers)
    with taking.connection() as second:
        second.accept_taker(False)
        second.publish(1, "same", dup=True)
        second.complete([1])
    assert len(taking.heard) == 26
    assert taking.session.counts["sessions_lost"] == 1


def test_retained_message_is_taken_after_a_reconnect_if_the_broker_kept_nothing_else(taking: Script) -> None:
    """What was published meanwhile comes by itself, but at quality of service 0 a broker keeps nothing for a session:
    the retained message alone tells what has changed."""

    def at_quality_0(connection: Connection, payload: bytes) -> None:
        connection.answer(PUBLISH | PUBLISH_RETAINED, b"\x00\x01n\x00" + payload)

    with taking.connection() as first:
        first.accept_taker(False)
        at_quality_0(first, b"shut")
        eventually(lambda: taking.heard == ["shut"], "it is the first")
    with taking.connection() as later:
        later.accept_taker(True)
        later.answer(PUBLISH | PUBLISH_QOS_2 | PUBLISH_RETAINED, b"\x00\x01n\x00\x01\x00shut")
        later.complete([1])
        at_quality_0(later, b"open")
        eventually(lambda: len(taking.heard) > 1, "the new state")
    assert taking.heard == ["shut", "open"]
    assert taking.session.counts["retained_skipped"] == 1


def given_message(giving: Script, first: Connection) -> int:
    """The number of a message that the node gave, of which the first half is confirmed, and which is released."""
    assert not first.accept(False) & CLEAN_START, "mosquitto keeps no session over its restarts that began with this"
    giving.session.offer(Message("n", b"1", 2, False, 0, ()))
    number = first.expect(PUBLISH | PUBLISH_QOS_2)[3:5]
    first.answer(PUBREC, number)
    assert first.expect(PUBREL) == number
    return int.from_bytes(number)


def test_released_message_is_not_published_again_after_failed_attempts(giving: Script) -> None:
    """The broker has passed it on perhaps. A client that forgets this while the broker is away gives it twice."""
    giving.forget_earlier()
    with giving.connection() as first:
        number = given_message(giving, first)
    for _ in range(2):
        giving.connection().__exit__()
    with giving.connection() as last:
        last.accept(True)
        assert last.numbers(PUBREL, 1) == [number]
        last.answer_each(PUBCOMP, [number])
        eventually(lambda: giving.session.counts["confirmed"] == 1)


def test_broker_that_forgot_the_session_is_given_what_it_had_not_confirmed(giving: Script) -> None:
    """The second half alone would leave the message nowhere, and be counted as confirmed."""
    giving.forget_earlier()
    with giving.connection() as first:
        given_message(giving, first)
        giving.session.offer(Message("n", b"2", 2, False, 0, ()))
        first.expect(PUBLISH | PUBLISH_QOS_2)
    with giving.connection() as second:
        second.accept(False)
        packets = [second.expect(PUBLISH | PUBLISH_QOS_2) for _ in range(2)]
        assert [packet[-1:] for packet in packets] == [b"1", b"2"], "in their order, and not as repetitions"
        numbers = [int.from_bytes(packet[3:5]) for packet in packets]
        second.answer_each(PUBREC, numbers)
        assert second.numbers(PUBREL, 2) == numbers
        second.answer_each(PUBCOMP, numbers)
        eventually(lambda: giving.session.counts["confirmed"] == 2)
    assert giving.session.counts["sessions_lost"] == 1
