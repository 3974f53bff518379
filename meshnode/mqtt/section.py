"""The section of MQTT: brokers, which of their topics become readings, and which readings become messages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from meshnode.config.kinds import Expression
from meshnode.config.parsing import Problem, Section, shown
from meshnode.config.sections import PartSection
from meshnode.mqtt.topics import Template, filter_matcher, wildcards_in

_TEXT: Final = Meta(min_length=1, max_length=1_000)
Level = Annotated[int, Meta(ge=0, le=2)]


def _check_filter(value: str) -> str | None:
    try:
        filter_matcher(value)
    except ValueError as error:
        return str(error)
    return None


class TakenTopics(Section, frozen=True, kw_only=True):
    """Topics whose messages become readings of this node."""

    topic: Annotated[
        str, _TEXT, Meta(description="Topic filter: `sensors/+/temperature`.", extra={"check": _check_filter})
    ]  # fmt: skip
    key: Annotated[
        str, _TEXT,
        Meta(description="The key, with `{1}`, `{2}` … for what the wildcards stood for and `{node}` for this node."),
    ]  # fmt: skip
    format: Annotated[
        Literal["json", "text", "bytes"],
        Meta(description="What a payload is: a value in JSON, a text, or bytes."),
    ] = "json"
    field: Annotated[
        str, Meta(max_length=200, description="The field of a JSON object that is the value: `data.celsius`.")
    ] = ""
    qos: Annotated[Level, Meta(description="The quality of service that is asked for.")] = 1
    retained: Annotated[
        bool, Meta(description="Whether what the broker kept from before counts: nobody knows how old it is.")
    ] = False
    unit: Annotated[str, Meta(min_length=1, max_length=32, description="The unit's UCUM symbol.")] = "1"
    quality: Annotated[float, Meta(ge=0, le=1, description="The quality of the readings.")] = 1.0
    priority: Annotated[int, Meta(ge=0, le=7, description="7 is the most urgent.")] = 3
    lifespan_ms: Annotated[
        int, Meta(ge=0, le=86_400_000, description="A reading is worthless after this; 0: never.")
    ] = 0  # fmt: skip


class GivenReadings(Section, frozen=True, kw_only=True):
    """Readings that become messages."""

    keys: Annotated[Expression, Meta(description="Key expression of the readings.")]
    topic: Annotated[
        str, _TEXT,
        Meta(description="The topic, with `{key}`, `{origin}`, `{node}`, and `{1}` … for the wildcards of `keys`."),
    ]  # fmt: skip
    format: Annotated[
        Literal["reading", "value"],
        Meta(description="What is sent: the reading with its context, or its value alone. Both are JSON."),
    ] = "reading"
    qos: Annotated[Level, Meta(description="The quality of service: 2 is exactly once.")] = 1
    retain: Annotated[bool, Meta(description="Whether the broker keeps the newest for who asks later.")] = False


class Broker(Section, frozen=True, kw_only=True):
    """A broker. What is sent to it leaves the mesh, and no rule of egress is asked."""

    name: Annotated[str, Meta(min_length=1, max_length=60, description="Unique name of the broker.")]
    host: Annotated[str, _TEXT, Meta(description="Its host.")]
    port: Annotated[
        int | None, Meta(ge=1, le=65_535, description="Its port.", extra={"default": "8883 with TLS, else 1883"})
    ] = None
    version: Annotated[Literal["5", "3.1.1"], Meta(description="The version of MQTT.")] = "5"
    client_id: Annotated[
        str | None,
        Meta(
            min_length=1, max_length=19, description="Name of the sessions, to which `-in` and `-out` are added.",
            extra={"default": "`mesh-` and the id of the node"},
        ),
    ] = None  # fmt: skip
    username: Annotated[str | None, Meta(max_length=200, description="Name of a user.")] = None
    password_file: Annotated[Path | None, Meta(description="A file whose first line is the password.")] = None
    tls: Annotated[
        bool, Meta(description="Whether the connection is TLS. The broker's certificate must name its host.")
    ] = False
    ca: Annotated[
        Path | None,
        Meta(description="The authority of the broker's certificate.", extra={"default": "those of the system"}),
    ] = None  # fmt: skip
    certificate: Annotated[Path | None, Meta(description="A certificate of this node for the broker.")] = None
    key: Annotated[Path | None, Meta(description="The private key of that certificate.")] = None
    keepalive_s: Annotated[
        int, Meta(ge=2, le=3_600, description="A broker that says nothing for 1.5 times as long is gone.")
    ] = 15
    max_waiting: Annotated[
        int, Meta(ge=1, le=100_000, description="How many messages may wait for the broker; the oldest give way.")
    ] = 10_000
    take: Annotated[tuple[TakenTopics, ...], Meta(max_length=64, description="Topics that become readings.")] = ()
    give: Annotated[tuple[GivenReadings, ...], Meta(max_length=64, description="Readings that become messages.")] = ()

    @property
    def number(self) -> int:
        """The port."""
        return self.port or (8883 if self.tls else 1883)


class MqttSection(PartSection, frozen=True, kw_only=True):
    """The brokers of a node."""

    table: ClassVar[str] = "mqtt"
    listed: ClassVar[str | None] = "brokers"

    brokers: Annotated[tuple[Broker, ...], Meta(max_length=8, description="The brokers.")] = ()

    def conflicts(self) -> Iterator[Problem]:
        """Names that are used twice, templates with unknown places, and secrets without their partner."""
        seen: set[str] = set()
        sessions: set[tuple[str, int, str | None]] = set()
        for index, broker in enumerate(self.brokers):
            at = f"[{index}]"
            if broker.name in seen:
                yield Problem(f"{at}.name", shown(broker.name), "is used twice: give each broker its own name")
            seen.add(broker.name)
            session = broker.host, broker.number, broker.client_id
            if session in sessions:
                why = "is the broker of another table, too, and ends a session for one of its name: give each its own"
                yield Problem(f"{at}.host", shown(broker.host), f"{why} 'client_id'")
            sessions.add(session)
            for number, taken in enumerate(broker.take):
                yield from _template(f"{at}.take[{number}].key", taken.key, taken.topic, frozenset({"node"}))
            for number, given in enumerate(broker.give):
                names = frozenset({"node", "key", "origin"})
                yield from _template(f"{at}.give[{number}].topic", given.topic, given.keys, names)
                if "+" in given.topic or "#" in given.topic:
                    yield Problem(f"{at}.give[{number}].topic", shown(given.topic), "has a wildcard: name one topic")
            if (broker.certificate is None) != (broker.key is None):
                yield Problem(f"{at}.certificate", shown(str(broker.certificate)), "needs 'key', and 'key' needs it")
            if broker.password_file is not None and broker.username is None:
                yield Problem(f"{at}.password_file", shown(str(broker.password_file)), "needs 'username'")
            for option in ("ca", "certificate"):
                if getattr(broker, option) is not None and not broker.tls:
                    yield Problem(f"{at}.{option}", shown(str(getattr(broker, option))), "needs 'tls = true'")


def _template(at: str, text: str, pattern: str, names: frozenset[str]) -> Iterator[Problem]:
    try:
        Template(text, wildcards_in(pattern), names)
    except ValueError as error:
        yield Problem(at, shown(text), str(error))
