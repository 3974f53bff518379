"""Between payloads and values, readings and messages."""

import math
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from meshnode.http.reading_json import reading_form
from meshnode.mqtt.section import GivenReadings, TakenTopics
from meshnode.mqtt.topics import MAX_TOPIC_BYTES, Template, expression_matcher, filter_matcher, wildcards_in
from protocols.wire.readings import Reading

MAX_PAYLOAD_BYTES: Final = 1 << 20
"""A larger message is no reading, and a larger reading no message: many brokers end the connection for less."""


class PayloadUnusable(ValueError):
    """A message that is no reading; says why."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be sent."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    lifespan_ms: int
    """0: for ever."""
    properties: tuple[tuple[str, str], ...]
    """Names and values that travel beside the payload: origin and sequence say which reading it is."""

    @property
    def most_bytes(self) -> int:
        """What its packet has at most."""
        names = sum(len(name.encode()) + len(value.encode()) + 5 for name, value in self.properties)
        return len(self.topic.encode()) + len(self.payload) + names + 32


class Taking:
    """From messages to readings, by one entry of the configuration."""

    def __init__(self, section: TakenTopics) -> None:
        self.section = section
        self._matcher = filter_matcher(section.topic)
        self._template = Template(section.key, wildcards_in(section.topic), frozenset({"node"}))

    def key(self, topic: str, node: str) -> str | None:
        """The key for a topic; None: it is of another filter."""
        found = self._matcher.found(topic)
        return None if found is None else self._template.filled(found, {"node": node})

    def value(self, payload: bytes) -> Any:
        """The value of a payload. :raises PayloadUnusable: it is none."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadUnusable(f"it has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}")
        if self.section.format == "bytes":
            return bytes(payload)
        try:
            if self.section.format == "text":
                return payload.decode("utf-8")
            value = msgspec.json.decode(payload)
        except (ValueError, RecursionError) as error:
            raise PayloadUnusable(f"it is no {self.section.format}: {error}") from error
        for name in filter(None, self.section.field.split(".")):
            if not isinstance(value, dict) or name not in value:
                raise PayloadUnusable(f"it has no field {self.section.field!r}")
            value = value[name]
        if isinstance(value, float) and not math.isfinite(value):
            raise PayloadUnusable(f"its value is {value}")
        return value


class Giving:
    """From readings to messages, by one entry of the configuration."""

    def __init__(self, section: GivenReadings) -> None:
        self.section = section
        self._matcher = expression_matcher(section.keys)
        self._template = Template(section.topic, wildcards_in(section.keys), frozenset({"node", "key", "origin"}))

    def message(self, reading: Reading, node: str) -> Message:
        """The message of a reading.

        :raises ValueUnsupported: its value has no JSON. :raises ValueError: its topic can't be one.
        """
        found = self._matcher.found(reading.key)
        assert found is not None, "it was subscribed to"
        topic = self._template.filled(found, {"node": node, "key": reading.key, "origin": reading.origin})
        if "+" in topic or "#" in topic or "\0" in topic or not 0 < len(topic.encode()) <= MAX_TOPIC_BYTES:
            raise ValueError(f"{topic[:80]!r} is no topic")
        form = reading_form(reading)
        payload = msgspec.json.encode(form if self.section.format == "reading" else form["value"])
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"its payload has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}")
        properties = (("origin", reading.origin), ("sequence", str(reading.sequence)))
        return Message(topic, payload, self.section.qos, self.section.retain, reading.lifespan_ms, properties)
