"""A changed model on its way to a running node that has the one before."""

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


async def test_few_changed_weights_come_as_a_delta_and_serve(
    house: House, publisher: Publisher, tmp_path: Path
) -> None:
    """5 % of the weights, at most 6 % of the bytes, all metadata included; and once more after a restart."""
    model, factory = made_up(tmp_path / "wide.onnx", 4, 512), made_up(tmp_path / "factory.onnx", 1, 512)
    order(publisher, model, 1)
    with relay_of(house, publisher) as (address, service):
        config = house.config("delta-1", role="vehicle", models={"wide": ModelSection(path=factory)}).with_sections(
            ReleasesSection(root=publisher.root_path, relay=address)
        )
        for earlier in (1, 2):
            async with meshnode.open(config) as node:
                await shows(node, earlier)
                before = service.statistics()["chunk_bytes"]
                model.write_bytes(changed(model.read_bytes(), SMALL, earlier))
                size_bytes = order(publisher, model, earlier + 1)
                await shows(node, earlier + 1)
                assert service.statistics()["chunk_bytes"] - before <= MAX_SHARE * size_bytes
