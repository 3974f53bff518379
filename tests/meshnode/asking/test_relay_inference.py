"""The relay computes for nodes: real nodes, a real relay, real models in worker processes of their own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

import meshnode
from meshnode.records.section import RelaySection
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.relay_fixture import RelayProcess
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house"]
pytestmark = pytest.mark.processes
ONES = np.ones((2, 4), "f4")


@pytest.fixture(name="relay", scope="module")
def given_relay(house: House) -> Iterator[RelayProcess]:
    folder = house.folder
    write_model(folder / "double.onnx", ["batch", 4], "Add")
    (folder / "relay.toml").write_text(
        '[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n[models.double]\npath = "double.onnx"\n'
    )
    with RelayProcess(folder, house.mesh) as relay:
        yield relay


@asynccontextmanager
async def node(house: House, relay: RelayProcess, name: str, *infer: str, **of: Any) -> AsyncIterator[meshnode.Node]:
    config = house.config(name, **of).with_sections(RelaySection(address=relay.address, infer=infer))
    async with meshnode.open(config) as opened:
        yield opened


async def offered(vehicle: meshnode.Node, model: str = "double") -> None:
    def known() -> bool:
        return vehicle.driver.look(lambda engine, _: engine.inference.digest_of(model)) is not None

    await until(known, f"somebody offers {model}")


async def test_node_without_the_model_gets_its_answer_from_the_relay(house: House, relay: RelayProcess) -> None:
    """The reason to ask the relay: nobody in the neighbourhood has the model."""
    async with node(house, relay, "veh-1", "double") as vehicle:
        await offered(vehicle)
        result = await vehicle.infer("double", {"x": ONES}, deadline_ms=20_000)
        assert np.array_equal(result.outputs["y"], 2 * ONES)
        assert result.ran_on == "relay/relay-1"
        assert vehicle.statistics()["inference_run_at_relay"] == 1
