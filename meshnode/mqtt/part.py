"""MQTT as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.mqtt.running import RunningMqtt

    return RunningMqtt(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.mqtt.section import MqttSection

    return (MqttSection,)


MQTT: Final = Part("mqtt", _start, _sections)
