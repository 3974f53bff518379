"""A changed model on its way to a running node that has the one before."""

import contextlib
from pathlib import Path

import pytest

import meshnode
from benchmarks.deltas import MAX_SHARE, SMALL, changed, made_up
from cloud_relay.releases.ordering import start
from cloud_relay.releases.publishing import publish
from cloud_relay.releases.serving import ReleaseService
from cloud_relay.server import THREADS
from meshnode.config.sections import IdentitySection
from meshnode.identity import issue
from meshnode.inference.section import ModelSection
from meshnode.links.nng.library import open_responder
from meshnode.links.transport import Address
from meshnode.releases.running import RunningReleases
from meshnode.releases.section import ReleasesSection
from protocols.access import AccessTable
from protocols.base.ids import MeshName, Role
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.release_fixture import Publisher

__all__ = ["given_house"]
pytestmark = pytest.mark.processes


def order(publisher: Publisher, model: Path, counter: int) -> int:
    """Publish a model and have all nodes serve it. Returns its size."""
    with publisher.changing() as repository:
        made = publish(repository, model, name="wide")
        start(repository, made.path, made.counter)
    assert made.counter == counter
    return made.size_bytes


@pytest.mark.parametrize("restarts", [False, True])
async def test_few_changed_weights_come_as_a_delta_and_serve(house: House, tmp_path: Path, restarts: bool) -> None:
    """5 % of the weights, at most 6 % of the bytes, all metadata included; and after a restart in between too."""
    publisher, model = Publisher(tmp_path / "repository"), made_up(tmp_path / "wide.onnx", 4, 512)
    factory = made_up(tmp_path / "factory.onnx", 1, 512)
    order(publisher, model, 1)
    issue(house.folder / "authority", Role.RELAY, "relay-1", house.folder / "relay-1")
    credentials = IdentitySection.in_folder(house.folder / "relay-1", "relay-1").credentials
    service = ReleaseService(publisher.folder, AccessTable())
    with contextlib.closing(
        open_responder(credentials, "127.0.0.1", 0, MeshName(house.mesh), service.answer, THREADS)
    ) as responder, contextlib.closing(service):  # fmt: skip
        config = house.config(
            f"delta-{int(restarts)}", role="vehicle", models={"wide": ModelSection(path=factory)}
        ).with_sections(ReleasesSection(root=publisher.root_path, relay=Address("127.0.0.1", responder.port)))

        async def serves(node: meshnode.Node, counter: int) -> None:
            releases = node.part(RunningReleases)
            await until(lambda: releases.view()["paths"][0]["serving"] == counter, lambda: str(releases.view()))

        async with contextlib.AsyncExitStack() as life:
            node = await life.enter_async_context(meshnode.open(config))
            await serves(node, 1)
            if restarts:
                await life.aclose()
                node = await life.enter_async_context(meshnode.open(config))
                await serves(node, 1)
            before = service.statistics()["chunk_bytes"]
            model.write_bytes(changed(model.read_bytes(), SMALL, 3))
            size_bytes = order(publisher, model, 2)
            await serves(node, 2)
    assert service.statistics()["chunk_bytes"] - before <= MAX_SHARE * size_bytes
