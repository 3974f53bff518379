"""Releases at whole nodes: from a USB stick, from a neighbour and from the relay to a model that serves."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meshnode
from cloud_relay.releases.publishing import revoke
from meshnode.local.section import socket_of
from meshnode.releases.audit import check_audit
from meshnode.releases.running import RunningReleases
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.incoming import put_in, take_in
from protocols.base.ids import NodeId
from protocols.base.time import NEVER
from protocols.links.room import Rate
from protocols.releases.catalogue import Gates
from protocols.releases.events import ReleaseState
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.release_fixture import Publisher, given_publisher
from tests.tools.released_fixture import MIB, NAME, PATH, adder, given_factory
from tests.tools.updated_fixture import added, config_of, publish, relay_of, serves

__all__ = ["given_factory", "given_house", "given_publisher"]
pytestmark = pytest.mark.processes


async def test_release_comes_on_a_stick_and_serves(house: House, publisher: Publisher, factory: Path) -> None:
    """A node that never had a network gets its update from whoever walks by."""
    publish(publisher, 1, 1)
    config = config_of(house, "stick-1", publisher, factory)
    async with meshnode.open(config) as node:
        assert await added(node) == 0.5
        put_in(publisher.folder, config.node.state_dir / "releases")
        node.part(RunningReleases).imported()
        await serves(node, 1)
    async with meshnode.open(config) as node:
        assert await added(node) == 1, "from the first request on"
        publish(publisher, 2, 2)
        put_in(publisher.folder, config.node.state_dir / "releases")
        node.part(RunningReleases).imported()
        await serves(node, 2)


async def test_application_hears_how_a_release_gets_on(house: House, publisher: Publisher, factory: Path) -> None:
    """A dashboard in a process of its own imports from ``meshnode`` what it wants to hear of."""
    config = config_of(house, "told-1", publisher, factory)
    events: list[Any] = []
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as application:
        application.on_event(events.append)
        publish(publisher, 1, 1)
        put_in(publisher.folder, config.node.state_dir / "releases")
        node.part(RunningReleases).imported()
        wanted = [
            meshnode.ReleaseState(PATH, 1, "serving"),
            meshnode.RolloutState(1, PATH, 1, "promoted", "no canaries"),
        ]
        await until(lambda: all(event in events for event in wanted), lambda: str(events))


async def test_release_spreads_to_a_neighbour_though_its_pieces_have_to_wait_for_room(
    house: House, publisher: Publisher, factory: Path
) -> None:
    """The relay is gone: one node that has a release is enough. Pieces that give way to readings must not be forgotten
    in their lanes."""
    publish(publisher, 1, 1, padding_bytes=60_000)
    one = config_of(house, "spread-1", publisher, factory, role="rsu")
    put_in(publisher.folder, one.node.state_dir / "releases")
    async with meshnode.open(one) as rsu:
        await serves(rsu, 1)
        room = rsu.driver.engine.lanes.room
        rate = room.of_node[NodeId("spread-2")] = Rate()
        rate.limited, rate.bytes_per_s = True, 60_000.0  # little enough that the limit is not lifted at once
        async with meshnode.open(config_of(house, "spread-2", publisher, factory, rsu.port)) as vehicle:
            await until(lambda: room.next_turn_at() < NEVER, "a piece waits")
            await serves(vehicle, 1)
            assert vehicle.statistics()["releases_store_bytes"] > 60_000


async def test_release_comes_from_the_relay_as_soon_as_it_is_published(
    house: House, publisher: Publisher, factory: Path
) -> None:
    """Most releases come this way, at least to the first node."""
    publish(publisher, 1, 1)
    with relay_of(house, publisher) as (address, _):
        async with meshnode.open(config_of(house, "relayed-1", publisher, factory, relay=address)) as node:
            await serves(node, 1)
            publish(publisher, 2, 2)
            await serves(node, 2)
            assert node.part(RunningReleases).view()["relay"] == "connected"
            assert node.statistics()["releases_relay_gave"] > 0


async def test_release_that_is_not_good_is_refused_and_the_one_before_serves(
    house: House, publisher: Publisher, factory: Path
) -> None:
    """It is signed and complete, and still it does not run here."""
    config = config_of(house, "refusing-1", publisher, factory)
    publish(publisher, 1, 1)
    put_in(publisher.folder, config.node.state_dir / "releases")
    states: list[ReleaseState] = []
    async with meshnode.open(config) as node:
        node.on_event(lambda event: states.append(event) if isinstance(event, ReleaseState) else None)
        await serves(node, 1)
        publish(publisher, 2, 2, content=b"no model")
        put_in(publisher.folder, config.node.state_dir / "releases")
        node.part(RunningReleases).imported()
        await until(lambda: [state for state in states if "is not an ONNX file" in state.detail], lambda: str(states))
        await serves(node, 1)
    count, faults = check_audit(config.node.state_dir / "releases" / "audit.jsonl")
    assert (count > 5, faults) == (True, [])


async def test_canary_takes_back_what_does_not_answer_as_before_and_serves_what_does(
    house: House, publisher: Publisher, factory: Path
) -> None:
    """Signed, complete, quick and wrong: only live inputs show it. One that is right passes the same way."""
    config = config_of(house, "canary-1", publisher, factory)
    canary = {"canaries": (config.node.id,), "promote_quorum": 1, "halt_quorum": 1, "soak_s": 4}
    gates = Gates(min_agreement=0.9, min_runs=3, max_latency=0)  # this computer has other work
    states: list[str] = []
    async with meshnode.open(config) as node:
        node.on_event(lambda event: states.append(f"{event.counter} {event.state}") if isinstance(event, ReleaseState)
                      else None)  # fmt: skip

        async def live() -> None:
            while True:
                await node.infer(NAME, {"x": np.full((1, 2), 10, "f4")}, deadline_ms=20_000)
                await asyncio.sleep(0.02)

        asking = asyncio.create_task(live())
        try:
            publish(publisher, 9, 1, gates=gates, **canary)  # 19 in place of 10.5
            put_in(publisher.folder, config.node.state_dir / "releases")
            node.part(RunningReleases).imported()
            await until(lambda: "9 failed" in states, lambda: str(states))
            assert "9 serving" not in states
            assert await added(node) == 0.5
            publish(publisher, 10, 2, content=adder(0.6), gates=gates, **canary)
            put_in(publisher.folder, config.node.state_dir / "releases")
            node.part(RunningReleases).imported()
            await until(lambda: "10 healthy" in states or "10 serving" in states, lambda: str(states), 60.0)
        finally:
            asking.cancel()
        view = node.part(RunningReleases).view()["paths"][0]
        assert (view["serving"], view["measures"]["errors"]) == (10, 0)
        assert view["measures"]["agreed"] > 0


async def test_release_that_does_not_fit_is_a_trouble_and_the_model_goes_on(
    house: House, publisher: Publisher, factory: Path
) -> None:
    """A neighbour offers more than this node may keep. Its operator has to hear of it, and nobody else."""
    publish(publisher, 1, 1, padding_bytes=1_500_000)
    one = config_of(house, "roomy-1", publisher, factory, role="rsu")
    put_in(publisher.folder, one.node.state_dir / "releases")
    async with meshnode.open(one) as rsu:
        await serves(rsu, 1)
        small = config_of(house, "small-1", publisher, factory, rsu.port, store_mib=1)
        async with meshnode.open(small) as vehicle:
            await until(lambda: [each for each in vehicle.troubles.current() if each.part == "releases"],
                        lambda: str(vehicle.part(RunningReleases).view()))  # fmt: skip
            (trouble,) = (each for each in vehicle.troubles.current() if each.part == "releases")
            assert "Raise [releases] store_mib" in trouble.why
            assert not trouble.essential
            assert await added(vehicle) == 0.5
            assert vehicle.statistics()["releases_store_bytes"] < 1_000_000
            publish(publisher, 1, 1, padding_bytes=1_500_000, state="aborted")
            put_in(publisher.folder, one.node.state_dir / "releases")
            rsu.part(RunningReleases).imported()
            await until(lambda: not [each for each in vehicle.troubles.current() if each.part == "releases"],
                        lambda: str(vehicle.troubles.current()))  # fmt: skip


async def test_release_that_is_revoked_while_it_is_fetched_is_not_shown_as_being_fetched(
    house: House, publisher: Publisher, factory: Path
) -> None:
    """``meshnode models list --watch`` waited for it for ever."""
    publish(publisher, 1, 1, padding_bytes=300_000)
    config = config_of(house, "alone-1", publisher, factory)
    folder = config.node.state_dir / "releases"
    put_in(publisher.folder, folder)
    for chunk in (folder / "incoming").iterdir():
        if chunk.name != "current.bundle" and chunk.stat().st_size > 4_096:
            chunk.unlink()  # it has only what is small
    async with meshnode.open(config) as node:
        releases = node.part(RunningReleases)

        def shown() -> tuple[int, list[str]]:
            (path,) = releases.view()["paths"]
            return len(path["fetching"]), [order["step"] for order in path["orders"]]

        await until(lambda: shown() == (1, ["fetching"]), lambda: str(releases.view()))
        with publisher.changing() as repository:
            revoke(repository, PATH, 1)
        put_in(publisher.folder, folder)
        releases.imported()
        await until(lambda: shown() == (0, [""]), lambda: str(releases.view()))


async def test_damaged_chunk_is_fetched_again_before_a_release_is_given_up(
    house: House, publisher: Publisher, factory: Path
) -> None:
    """The disk of one node is no fault of a release: as a canary it must not report it as bad."""
    publish(publisher, 1, 1, padding_bytes=300_000)
    one = config_of(house, "sound-1", publisher, factory, role="rsu")
    put_in(publisher.folder, one.node.state_dir / "releases")
    async with meshnode.open(one) as rsu:
        await serves(rsu, 1)
        config = config_of(house, "forgetful-1", publisher, factory)
        put_in(publisher.folder, config.node.state_dir / "releases")
        store = ChunkStore(config.node.state_dir / "releases", 64 * MIB)
        store.open()
        take_in(config.node.state_dir / "releases", store, lambda bundle: bundle)
        (path,) = (path for path in (config.node.state_dir / "releases" / "contents").iterdir() if not path.suffix)
        data = bytearray(path.read_bytes())
        data[100_000] ^= 1
        path.write_bytes(data)
        put_in(publisher.folder, config.node.state_dir / "releases")
        for chunk in (config.node.state_dir / "releases" / "incoming").iterdir():
            if chunk.name != "current.bundle" and chunk.stat().st_size > 4_096:
                chunk.unlink()  # it has only what is small
        states: list[str] = []
        lone = config_of(house, "forgetful-1", publisher, factory, rsu.port)
        async with meshnode.open(lone) as vehicle:
            vehicle.on_event(lambda event: states.append(event.state) if isinstance(event, ReleaseState) else None)
            await serves(vehicle, 1)
            assert "failed" not in states
            assert vehicle.statistics()["releases_damaged_chunks"] > 0
