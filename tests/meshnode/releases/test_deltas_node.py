"""A changed model on its way to a running node that has the one before."""

import contextlib
from pathlib import Path

import pytest

import meshnode
from benchmarks.deltas import MAX_SHARE, SMALL, changed, made_up
from cloud_relay.releases.ordering import start
from cloud_relay.releases.publishing import publish
from meshnode.inference.section import ModelSection
from meshnode.releases.section import ReleasesSection
from tests.tools.mesh_fixture import House, given_house
from tests.tools.release_fixture import Publisher, given_publisher
from tests.tools.updated_fixture import relay_of, shows

__all__ = ["given_house", "given_publisher"]
pytestmark = pytest.mark.processes


def order(publisher: Publisher, model: Path, counter: int) -> int:
    """Publish a model and have all nodes serve it. Returns its size."""
    with publisher.changing() as repository:
        made = publish(repository, model, name="wide")
        start(repository, made.path, made.counter)
    assert made.counter == counter
    return made.size_bytes


@pytest.mark.parametrize("restarts", [False, True])
async def test_few_changed_weights_come_as_a_delta_and_serve(
    house: House, publisher: Publisher, tmp_path: Path, restarts: bool
) -> None:
    """5 % of the weights, at most 6 % of the bytes, all metadata included; and after a restart in between too."""
    model, factory = made_up(tmp_path / "wide.onnx", 4, 512), made_up(tmp_path / "factory.onnx", 1, 512)
    order(publisher, model, 1)
    with relay_of(house, publisher) as (address, service):
        config = house.config(
            f"delta-{int(restarts)}", role="vehicle", models={"wide": ModelSection(path=factory)}
        ).with_sections(ReleasesSection(root=publisher.root_path, relay=address))

        async with contextlib.AsyncExitStack() as life:
            node = await life.enter_async_context(meshnode.open(config))
            await shows(node, 1)
            if restarts:
                await life.aclose()
                node = await life.enter_async_context(meshnode.open(config))
                await shows(node, 1)
            before = service.statistics()["chunk_bytes"]
            model.write_bytes(changed(model.read_bytes(), SMALL, 3))
            size_bytes = order(publisher, model, 2)
            await shows(node, 2)
    assert service.statistics()["chunk_bytes"] - before <= MAX_SHARE * size_bytes
