"""Whole nodes that get releases of ``adder``, and a relay's door through which releases come."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import meshnode
from cloud_relay.releases.serving import ReleaseService
from cloud_relay.server import THREADS
from meshnode.config.sections import IdentitySection, NodeConfig
from meshnode.identity import issue
from meshnode.inference.section import ModelSection
from meshnode.links.nng.library import open_responder
from meshnode.links.transport import Address
from meshnode.releases.running import RunningReleases
from meshnode.releases.section import ReleasesSection
from protocols.access import AccessTable
from protocols.base.ids import MeshName, Role
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House
from tests.tools.release_fixture import Publisher
from tests.tools.released_fixture import NAME, adder


def publish(
    publisher: Publisher, counter: int, serial: int, padding_bytes: int = 0, content: bytes | None = None, **order: Any
) -> None:
    """Release ``counter`` of ``adder``, and order every node to serve it."""
    content = adder(counter, padding_bytes) if content is None else content
    publisher.roll_out(serial, counter, NAME, content, **order)


def config_of(
    house: House, node: str, publisher: Publisher, factory: Path, *seeds: int, role: str = "vehicle", **section: Any
) -> NodeConfig:
    config = house.config(node, *seeds, role=role, models={NAME: ModelSection(path=factory)})
    return config.with_sections(ReleasesSection(root=publisher.root_path, **section))


async def added(node: meshnode.Node) -> float:
    """What ``adder`` adds to zero now."""
    result = await node.infer(NAME, {"x": np.zeros((1, 2), "f4")}, deadline_ms=20_000)
    return float(result.outputs["y"][0, 0])


async def shows(node: meshnode.Node, counter: int) -> None:
    """Wait until a release of the only path serves. It is tried in idle time first, of which there may be none."""
    releases = node.part(RunningReleases)
    await until(lambda: releases.view()["paths"][0]["serving"] == counter, lambda: str(releases.view()), 90.0)


async def serves(node: meshnode.Node, counter: int) -> None:
    """Wait until a release of ``adder`` serves, and see that it answers."""
    await shows(node, counter)
    answered = await added(node)
    assert answered == counter, f"release {counter} serves, and {answered} was added"


@contextlib.contextmanager
def relay_of(house: House, publisher: Publisher) -> Iterator[tuple[Address, ReleaseService]]:
    """The door of a relay with these releases, and what answers behind it."""
    issue(house.folder / "authority", Role.RELAY, "relay-1", house.folder / "relay-1")
    credentials = IdentitySection.in_folder(house.folder / "relay-1", "relay-1").credentials
    service = ReleaseService(publisher.folder, AccessTable())
    with contextlib.closing(
        open_responder(credentials, "127.0.0.1", 0, MeshName(house.mesh), service.answer, THREADS)
    ) as responder, contextlib.closing(service):  # fmt: skip
        yield Address("127.0.0.1", responder.port), service
