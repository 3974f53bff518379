"""A broker that lets everybody in, and nodes with one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import meshnode as mesh
from benchmarks.mosquitto import Mosquitto
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House


@pytest.fixture(name="broker")
def given_broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that lets everybody in."""
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder)
    broker.start()
    yield broker
    broker.stop()


def write(house: House, port: int, *entries: str, **broker: str) -> Path:
    """The configuration of a node with a broker."""
    options = {"name": '"box"', "host": '"127.0.0.1"', "port": str(port), "keepalive_s": "60", **broker}
    lines = [f"{option} = {value}" for option, value in options.items()]
    return house.file("v", "[[mqtt]]\n" + "\n".join([*lines, *entries]) + "\n", mdns=False)


def opened(house: House, port: int, *entries: str, **broker: str) -> Any:
    """A node with a broker."""
    return mesh.open(write(house, port, *entries, **broker))


def troubles(node: Any) -> str:
    return "; ".join(trouble.why for trouble in node.troubles.current() if trouble.part == "mqtt")


async def connected(node: Any) -> None:
    await until(lambda: node.statistics()["mqtt_connected"], lambda: troubles(node))
