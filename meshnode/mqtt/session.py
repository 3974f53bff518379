"""One session with a broker, which outlasts its connections. A broker that a node takes from and gives to has two.

The client of paho keeps connecting and has the state of the session: what was sent with a quality of service above 0
and is not confirmed goes out again after a reconnect under the same number, so that a broker that kept its part has it
once. What waits is ours. It is bounded, the oldest give way, and what has outlived its lifespan is left out at the
moment at which it would be sent. So the client is given a few messages only, and only while it is connected.

A session in which a node takes is older than the process: the broker keeps what comes meanwhile. One in which it gives
begins with the process: numbers begin anew, too, and a broker would take a message for an earlier one of its number. So
the node has the broker forget the earlier session, and then connects as to one that is kept: mosquitto does not write a
session down whose connection asked for a clean start.

A broker that has forgotten the session is given again what it had not confirmed, as new messages: it has some of them
perhaps, but the second half of quality of service 2 alone would give it none.

Invariants:
- a message is given to the client once. From then on it belongs to the session;
- at most ``MAX_UNDER_WAY`` messages are not confirmed;
- nobody who offers a message waits;
- nobody calls the client while holding ``_changed``: the client calls back while it holds a lock that its ``publish``
  takes. So a message may be confirmed before its number is noted; such numbers are kept in ``_early``, and those that
  are to be given again in ``_dropped``.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.mqtt.delivered import Delivered
from meshnode.mqtt.messages import Message
from meshnode.mqtt.section import Broker
from protocols.base.errors import ConfigError
from protocols.base.limits import MS

if TYPE_CHECKING:
    from meshnode.mqtt.client import Client

_LOOK_S: Final = 1.0
"""How often what waits is looked through for what has expired."""
_GOODBYE_S: Final = 2.0
"""How long a node that closes waits for what is under way."""
_log = logging.getLogger(__name__)


Received = Callable[[str, bytes, bool, Collection[str]], None]
"""Called on the client's thread with topic, payload, whether the message was retained, and the filters for which the
broker sends it: to filters that overlap, a broker may send a message once for each."""


class _Waiting(NamedTuple):
    ends_ns: int  # 0: never
    message: Message


class _UnderWay(NamedTuple):
    taken: _Waiting
    connection: int  # the number of the connection on which it was sent first

    @property
    def qos(self) -> int:
        return self.taken.message.qos


class BrokerSession:
    """See the module."""

    def __init__(
        self, broker: Broker, folder: Path, node: str, received: Received | None, state: Callable[[str], None]
    ) -> None:
        """``received``: the node takes in this session; None: it gives. ``state`` is told why there is no connection;
        an empty text: there is one.

        :raises ConfigError: a file is missing or wrong, or the extra is not installed.
        """
        try:
            from meshnode.mqtt import client
        except ImportError as error:
            raise ConfigError("[[mqtt]] needs paho-mqtt: pip install 'meshnode[mqtt]'") from error
        self._paho = client
        self.counts: Counter[str] = Counter()
        self._broker, self._folder, self._received, self._state = broker, folder, received, state
        self._waiting: deque[_Waiting] = deque()
        self._under_way: dict[int, _UnderWay] = {}
        self._early: set[int] = set()
        self._dropped: set[int] = set()
        self._delivered = Delivered()
        self._filters = {entry.topic for entry in broker.take}
        self._asked: dict[int, tuple[str, ...]] = {}
        """Subscriptions that are not confirmed, by the number of their packet."""
        self._refused: list[str] = []
        self._is_subscribed = self._was_subscribed = False
        self._most_under_way, self._most_bytes, self._highest_qos = client.MAX_UNDER_WAY, 0, 2
        self._connection = 0
        self._changed = threading.Condition()
        self._connected = self._closing = self._has_complained = False
        self._client_id = client.session_name(broker, node, "-out" if received is None else "-in")
        self._client: Client = client.Client(broker, folder, self._client_id, keeps=True)
        self._is_forgotten = received is not None
        self._client.broken = lambda why: self._state(f"{self.name} {why}")
        self._client.on_pre_connect = self._on_pre_connect
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        self._pump = threading.Thread(target=self._run, name=f"mqtt-{broker.name}", daemon=True)

    @property
    def name(self) -> str:
        """What people call the broker."""
        return f"the broker {self._broker.name} at {self._broker.host}:{self._broker.number}"

    @property
    def waiting(self) -> int:
        """How many messages wait for the broker."""
        return len(self._waiting)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, and the broker has noted the topics that are taken."""
        return self._connected

    def start(self) -> None:
        """Connect now, and again whenever the connection is lost."""
        self._state(f"{self.name} has not answered yet")
        self._paho.begin(self._client, self._broker)
        self._pump.start()

    def offer(self, message: Message) -> None:
        """Send it when its turn has come. It never waits; with too many waiting, the oldest gives way."""
        ends_ns = time.monotonic_ns() + message.lifespan_ms * MS if message.lifespan_ms else 0
        with self._changed:
            if len(self._waiting) >= self._broker.max_waiting:
                self._waiting.popleft()
                self.counts["gave_way"] += 1
            self._waiting.append(_Waiting(ends_ns, message))
            self._changed.notify_all()

    def close(self) -> None:
        """Send what waits if there is a connection, for two seconds at most, and end. Idempotent."""
        with self._changed:
            if self._closing:
                return
            self._changed.wait_for(
                lambda: not self._connected or not (self._waiting or self._under_way), timeout=_GOODBYE_S
            )
            self._closing = True
            self.counts["left_behind"] += len(self._waiting) + len(self._under_way)
            self._waiting.clear()
            self._changed.notify_all()
        if self._pump.is_alive():
            self._pump.join()
            self._client.end()

    # --- the thread that sends -------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not self._may_send():
                    self._changed.wait(_LOOK_S if any(each.ends_ns for each in self._waiting) else None)
                    self._leave_expired_out()
                if self._closing:
                    return
                taken, connection = self._waiting.popleft(), self._connection
            if taken.ends_ns and taken.ends_ns <= time.monotonic_ns():
                self._count("expired")
            elif why := self._why_not(taken.message):
                self._count("unsendable")
                self._complain(f"{self.name} {why}")
            else:
                self._send(taken, connection)

    def _may_send(self) -> bool:
        return self._connected and bool(self._waiting) and len(self._under_way) < self._most_under_way

    def _why_not(self, message: Message) -> str:
        """Why a message must not be sent: the broker would end the connection, again and again."""
        if message.qos > self._highest_qos:
            return f"takes no quality of service above {self._highest_qos}: lower the 'qos' of {message.topic[:80]}"
        if self._most_bytes and message.most_bytes > self._most_bytes:
            return f"takes packets of {self._most_bytes} bytes: a reading for {message.topic[:80]} is larger"
        return ""

    def _send(self, taken: _Waiting, connection: int) -> None:
        message = taken.message
        properties = self._paho.publish_properties(self._broker, message, taken.ends_ns)
        try:
            info = self._client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        except ValueError as error:
            self._count("unsendable")
            self._complain(f"a reading for {message.topic[:80]} can't be sent: {error}")
            return
        is_kept = info.rc == 0 or (message.qos > 0 and info.rc == self._paho.NO_CONNECTION)
        with self._changed:
            if not is_kept:  # it is not with the client: the connection is lost, or its number is in use
                self._waiting.appendleft(taken)
                if info.rc == self._paho.NO_CONNECTION and connection == self._connection:
                    self._connected = False
                return
            self.counts["sent"] += 1
            if info.mid in self._early:
                self._early.discard(info.mid)
            elif info.mid in self._dropped:
                self._dropped.discard(info.mid)
                self._waiting.appendleft(taken)
            elif message.qos or connection == self._connection:
                self._under_way[info.mid] = _UnderWay(taken, connection)
            else:
                self.counts["lost"] += 1

    def _leave_expired_out(self) -> None:
        now_ns = time.monotonic_ns()
        kept = deque(each for each in self._waiting if not each.ends_ns or each.ends_ns > now_ns)
        self.counts["expired"] += len(self._waiting) - len(kept)
        self._waiting = kept

    def _complain(self, why: str) -> None:
        """Say what became of a message; the next one that is confirmed ends it."""
        self._has_complained = True
        self._state(why)

    def _count(self, name: str) -> None:
        with self._changed:
            self.counts[name] += 1

    # --- the client's thread ---------------------------------------------------------------------------------------
    def _on_pre_connect(self, _client: Any, _data: object) -> None:
        if not self._is_forgotten:
            self._paho.forget_session(self._broker, self._folder, self._client_id)
            self._is_forgotten = True

    def _on_connect_fail(self, _client: Any, _data: object) -> None:
        why = self._client.why_not_connected
        if not self._client.is_session_left:
            why = f"{self.name} can't be reached ({why}): is it running, and are 'host', 'port' and 'tls' right?"
        self._state(why)

    def _on_connect(self, client: Any, _data: object, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._state(
                f"{self.name} refuses this node ({reason}): correct 'username' and 'password_file', or give this user "
                "the right"
            )
            return
        self._was_subscribed = self._is_subscribed = self._is_subscribed and flags.session_present
        if self._received is not None:  # again each time: a broker may have lost what is newer than the session
            self._refused = []
            has_numbers = getattr(properties, "SubscriptionIdentifierAvailable", 1) == 1
            self._asked = self._paho.subscribe(client, self._broker, has_numbers)
        self._state("")
        dropped: list[int] = []
        if not flags.session_present:
            self._delivered.forget()
            dropped = [message.mid for message in client.drop_out_messages()]
        with self._changed:
            self.counts["connections"] += 1
            self._connection += 1
            if self._connection > 1 and not flags.session_present:
                self.counts["sessions_lost"] += 1
            self._give_again(dropped)
            self._most_under_way = min(self._paho.MAX_UNDER_WAY, getattr(properties, "ReceiveMaximum", 65_535))
            self._most_bytes = getattr(properties, "MaximumPacketSize", 0)
            self._highest_qos = getattr(properties, "MaximumQoS", 2)
            lost = [mid for mid, each in self._under_way.items() if not each.qos]
            for mid in lost:
                del self._under_way[mid]
            self.counts["lost"] += len(lost)
            self._connected = self._received is None  # one that takes, when it is subscribed
            self._changed.notify_all()

    def _give_again(self, dropped: list[int]) -> None:
        for mid in reversed(dropped):
            sent = self._under_way.pop(mid, None)
            if sent is None:
                self._dropped.add(mid)
            else:
                self._waiting.appendleft(sent.taken)

    def _on_disconnect(self, _client: Any, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        with self._changed:
            was_connected, self._connected = self._connected, False
            self._changed.notify_all()
        if was_connected and not self._closing:
            self._state(f"{self.name} has gone: {reason}")

    def _on_subscribe(self, _client: Any, _data: object, mid: int, reasons: Any, _properties: object) -> None:
        asked = self._asked.pop(mid, ())
        self._refused += [each for each, reason in zip(asked, reasons, strict=False) if reason.is_failure]
        if not asked or self._asked:
            return
        if self._refused:
            topics = ", ".join(self._refused)
            self._state(f"{self.name} refuses the topics {topics}: give this user the right to read them")
        self._is_subscribed = not self._refused
        with self._changed:
            self._connected = True

    def _on_publish(self, _client: Any, _data: object, mid: int, reason: Any, _properties: object) -> None:
        with self._changed:
            sent = self._under_way.pop(mid, None)
            if sent is None:
                self._early.add(mid)
            was_confirmed = reason.value == self._paho.GONE and sent is not None and sent.connection < self._connection
            is_refused = reason.is_failure and not was_confirmed
            self.counts["refused" if is_refused else "confirmed"] += 1
            self._changed.notify_all()
        if is_refused:
            self._complain(f"{self.name} refuses messages ({reason}): give this user the right to write them")
        elif self._has_complained:
            self._has_complained = False
            self._state("")

    def _on_message(self, _client: Any, _data: object, message: Any) -> None:
        if self._received is None:
            return  # nobody asked for it
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._count("unusable")
            return
        if message.qos == 2 and self._delivered.is_repeated(message.mid, message.dup, topic, message.payload):
            self._count("repeated")
            return
        if message.retain and message.qos and not message.dup and self._was_subscribed:
            self._count("retained_skipped")  # again because of the subscription, and its changes were kept for us
            return
        try:
            self._received(topic, message.payload, bool(message.retain), self._meant(message))
        except Exception:  # noqa: BLE001 - the client's thread must go on
            _log.exception("a message of %s was not handled: this is a bug of the node", self.name)

    def _meant(self, message: Any) -> Collection[str]:
        numbers = getattr(message.properties, "SubscriptionIdentifier", None)
        if numbers is None:
            return self._filters
        return {each for each in self._filters if self._paho.subscription_number(each) in numbers}
