"""Attacks of peers on the metadata of a running node: refused, named and logged.

The peers are whole nodes of the mesh with good certificates. They announce and hand out metadata that was good once,
and a bundle that takes many pieces. :mod:`tests.meshnode.releases.test_trust_attacks` tries all the attacks that TUF
lists, without a mesh.
"""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Timestamp

import meshnode
from meshnode.releases.running import RunningReleases
from meshnode.releases.store.incoming import put_in
from protocols.releases.catalogue import ReleaseCatalogue
from protocols.releases.events import MetadataRefused
from protocols.releases.machine import Releases
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.release_fixture import Publisher, given_publisher, named, packed, resigned, sha256
from tests.tools.released_fixture import given_factory
from tests.tools.updated_fixture import config_of, publish, serves

__all__ = ["given_factory", "given_house", "given_publisher"]
pytestmark = pytest.mark.processes


def grown(publisher: Publisher) -> dict[str, bytes]:
    """A list of releases that is longer than was signed, below a good timestamp, so that it is looked at."""
    files, name = publisher.files, named(publisher.files, "models")
    newer = resigned(
        files["timestamp.json"],
        lambda signed: setattr(signed, "version", signed.version + 1),
        publisher.signers["timestamp"],
    )
    return files | {"timestamp.json": newer, name: files[name] + b" " * 200_000}


def ended(publisher: Publisher) -> dict[str, bytes]:
    """A timestamp that was good until yesterday."""

    def age(signed: Timestamp) -> None:
        signed.version += 1
        signed.expires -= timedelta(days=31)

    stale = resigned(publisher.files["timestamp.json"], age, publisher.signers["timestamp"])
    return publisher.files | {"timestamp.json": stale}


async def lie(liar: meshnode.Node, truth: bytes, bundle: bytes) -> None:
    """Have a node announce and hand out a bundle that it has not verified, once it has the true one, which would
    otherwise take the place of the lie."""
    active = liar.part(RunningReleases).active
    assert active is not None
    performer, digest = active.performer, sha256(bundle)
    await until(lambda: performer._bundle == sha256(truth), f"{liar.id} has the true metadata")
    performer._bundle = digest  # it is not garbage for the liar
    assert active.store.put(digest, bundle)

    def announce(machine: Releases, now: int) -> None:
        machine.holding({digest: len(bundle)}, now)
        machine.bundle_verified(digest, ReleaseCatalogue(9, 9_000_000, bytes(32), False, (), ()), now)

    active._tell(announce)


async def test_attacks_of_peers_are_refused_named_and_logged(house: House, publisher: Publisher, factory: Path) -> None:
    """One node, and one liar after the other in its reach. The model that it serves stays; good news still comes."""
    publish(publisher, 1, 1)
    old = publisher.files
    publish(publisher, 2, 2)
    truth, attacks = publisher.bundle, {"rollback": old, "endless data": grown(publisher)}
    config = config_of(house, "victim-1", publisher, factory, role="rsu")
    put_in(publisher.folder, config.node.state_dir / "releases")
    refused: list[MetadataRefused] = []
    async with meshnode.open(config) as victim:
        victim.on_event(lambda event: refused.append(event) if isinstance(event, MetadataRefused) else None)
        await serves(victim, 2)
        active = victim.part(RunningReleases).active
        assert active is not None
        trusted = active.trust.current()
        for number, (attack, files) in enumerate(attacks.items()):
            name = f"liar-{number}"
            async with meshnode.open(config_of(house, name, publisher, factory, victim.port)) as liar:
                await lie(liar, truth, packed(files))
                await until(lambda number=number: len(refused) > number, f"{name} is refused")
            assert (refused[-1].source, refused[-1].why.partition(":")[0]) == (name, attack)
            assert active.trust.current() == trusted
        async with meshnode.open(config_of(house, "liar-frozen", publisher, factory, victim.port)) as liar:
            await lie(liar, truth, packed(ended(publisher)))
            await until(lambda: any("freeze" in trouble.why for trouble in victim.troubles.current()), "it is refused")
        assert len(refused) == len(attacks), "nobody is blamed for what may be the clock of the victim"
        assert active.trust.current() == trusted
        await serves(victim, 2)
        publish(publisher, 3, 3)
        put_in(publisher.folder, config.node.state_dir / "releases")
        victim.part(RunningReleases).imported()
        await serves(victim, 3)
        assert not victim.troubles.current()
    lines = (config.node.state_dir / "releases" / "audit.jsonl").read_text().splitlines()
    assert [entry["attack"] for entry in map(json.loads, lines) if "attack" in entry] == [*attacks, "freeze"]
