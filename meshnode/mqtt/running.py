"""Brokers at work: sessions with each, readings to it and messages from it.

A message that becomes a reading has ``mqtt NAME`` first in its lineage, and is not sent to the same broker again.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from meshnode.mqtt.messages import Giving, PayloadUnusable, Taking
from meshnode.mqtt.section import Broker, MqttSection
from meshnode.mqtt.session import BrokerSession
from meshnode.running import Host, RunningPart
from protocols.base.errors import MeshError
from protocols.wire.readings import Provenance, Reading


class Bridge:
    """A node and one broker."""

    def __init__(self, host: Host, broker: Broker) -> None:
        """:raises ConfigError: a file of the broker is missing or wrong, or the extra is not installed."""
        self._host, self.broker = host, broker
        self._mark = f"mqtt {broker.name}"
        self._taking = [Taking(section) for section in broker.take]
        self._giving = [Giving(section) for section in broker.give]
        self.counts: Counter[str] = Counter()
        self._whys: dict[str, str] = {}
        self._telling = threading.Lock()
        self.sessions: Final[list[BrokerSession]] = []
        if broker.give:
            self._out = BrokerSession(broker, host.folder, host.id, None, partial(self._tell, "out"))
            self.sessions.append(self._out)
        if broker.take:
            self.sessions.append(BrokerSession(broker, host.folder, host.id, self._received, partial(self._tell, "in")))

    def start(self, closing: AsyncExitStack) -> None:
        """Connect, and hand readings over from now on."""
        for session in self.sessions:
            session.start()
        for giving in self._giving:
            given = partial(self._given, giving)
            closing.callback(self._host.subscribe(giving.section.keys, callback=given, history=False).close)

    @property
    def waiting(self) -> int:
        """How many messages wait for the broker."""
        return sum(session.waiting for session in self.sessions)

    @property
    def is_connected(self) -> bool:
        """Whether all sessions have a connection."""
        return all(session.is_connected for session in self.sessions)

    def statistics(self) -> Counter[str]:
        """What became of messages of both directions."""
        return sum((session.counts for session in self.sessions), self.counts)

    # --- out, on the threads of the links --------------------------------------------------------------------------
    def _given(self, giving: Giving, reading: Reading) -> None:
        if self._mark in reading.how.lineage:
            return
        try:
            message = giving.message(reading, self._host.id)
        except (MeshError, ValueError) as error:
            self._count("unsupported")
            self._tell("unsupported", f"a reading on {reading.key[:80]} can't be sent: {error}")
        else:
            self._out.offer(message)

    # --- in, on the client's thread --------------------------------------------------------------------------------
    def _received(self, topic: str, payload: bytes, retained: bool, filters: Collection[str]) -> None:
        for taking in self._taking:
            section = taking.section
            if section.topic not in filters or (key := taking.key(topic, self._host.id)) is None:
                continue
            if retained and not section.retained:
                self._count("retained_skipped")
                continue
            how = Provenance(self._mark, section.unit, section.quality, "", (self._mark,))
            try:
                publisher = self._host.kept_publisher(key, how, section.priority, section.lifespan_ms)
                publisher.put(taking.value(payload))
            except (MeshError, PayloadUnusable) as error:
                self._count("unusable")
                self._tell("unusable", f"a message on {topic[:80]} is no reading: {error}")
            else:
                self._count("received")
                self._tell("unusable", "")

    def _count(self, name: str) -> None:
        with self._telling:
            self.counts[name] += 1

    # --- what does not work ----------------------------------------------------------------------------------------
    def _tell(self, kind: str, why: str) -> None:
        """Something does not work; an empty text: it does again."""
        with self._telling:
            if self._whys.get(kind, "") == why:
                return
            self._whys[kind] = why
            told = dict.fromkeys(filter(None, self._whys.values()))  # both directions may say the same
            if told:
                self._host.troubles.begin("mqtt", self.broker.name, "; ".join(told))
            else:
                self._host.troubles.end("mqtt", self.broker.name)


class RunningMqtt(RunningPart):
    """See the module."""

    gauges = frozenset({"mqtt_waiting", "mqtt_connected"})

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._bridges = [Bridge(host, broker) for broker in host.config.of(MqttSection).brokers]

    async def serve(self, closing: AsyncExitStack) -> None:
        """Connect to all brokers. A broker that is not there keeps no node from opening."""
        closing.push_async_callback(self._close)
        for bridge in self._bridges:
            bridge.start(closing)

    async def _close(self) -> None:
        """Close all sessions at the same time, as each may wait for a broker that does not answer."""
        threads = [
            threading.Thread(target=session.close, name="mqtt-close")
            for bridge in self._bridges
            for session in bridge.sessions
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)

    def statistics(self) -> Mapping[str, int]:
        """Messages by what became of them, how many wait, and how many brokers are connected."""
        if not self._bridges:
            return {}
        total: Counter[str] = Counter()
        for bridge in self._bridges:
            total.update({f"mqtt_{name}": count for name, count in bridge.statistics().items()})
        waiting = sum(bridge.waiting for bridge in self._bridges)
        return total | {"mqtt_waiting": waiting, "mqtt_connected": sum(bridge.is_connected for bridge in self._bridges)}

    def node_view(self) -> Mapping[str, Any]:
        """``mqtt``: each broker, whether it is connected, and what became of its messages."""
        return {
            "mqtt": {
                bridge.broker.name: {
                    "connected": bridge.is_connected,
                    "waiting": bridge.waiting,
                    **bridge.statistics(),
                }
                for bridge in self._bridges
            }
        }
