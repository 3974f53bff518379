"""The attacks that TUF lists, tried against a running node through its peers: refused, named and logged.

The peers are whole nodes of the mesh with good certificates. They announce and hand out bundles that
:mod:`tests.meshnode.releases.test_trust_attacks` tries in all their forms.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

import meshnode
from meshnode.releases.running import RunningReleases
from meshnode.releases.store.incoming import put_in
from protocols.releases.catalogue import ReleaseCatalogue
from protocols.releases.events import MetadataRefused
from protocols.releases.machine import Releases
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, given_house
from tests.tools.release_fixture import Publisher, given_publisher, named, packed, resigned
from tests.tools.released_fixture import given_factory
from tests.tools.updated_fixture import config_of, publish, serves

__all__ = ["given_factory", "given_house", "given_publisher"]
pytestmark = pytest.mark.processes

Forge = Callable[[Publisher, dict[str, bytes], Path], dict[str, bytes]]
"""Makes a bundle's files of those of now and of before."""


def _arbitrary(publisher: Publisher, old: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    mallory = Publisher(folder / "mallory")
    mallory.release(9)
    return mallory.files | {"1.root.json": publisher.files["1.root.json"]}


def _wrong_keys(publisher: Publisher, old: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    data = publisher.files["timestamp.json"]
    return publisher.files | {"timestamp.json": resigned(data, lambda signed: None, CryptoSigner.generate_ed25519())}


def _rollback(publisher: Publisher, old: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    return old


def _freeze(publisher: Publisher, old: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    data = publisher.files["timestamp.json"]

    def ended(signed: object) -> None:
        signed.version += 1  # type: ignore[attr-defined]
        signed.expires -= timedelta(days=31)  # type: ignore[attr-defined]

    return publisher.files | {"timestamp.json": resigned(data, ended, publisher.signers["timestamp"])}


def _fast_forward(publisher: Publisher, old: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    data = publisher.files["timestamp.json"]
    far = resigned(data, lambda signed: setattr(signed, "version", 2**40), publisher.signers["timestamp"])
    return publisher.files | {"timestamp.json": far}


def _endless(publisher: Publisher, old: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    name = named(publisher.files, "models")
    grown = publisher.files[name] + b" " * 200_000
    return publisher.files | {"timestamp.json": _next_timestamp(publisher), name: grown}


def _mixed(publisher: Publisher, old: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    name = named(publisher.files, "models")
    return publisher.files | {"timestamp.json": _next_timestamp(publisher), name: old[named(old, "models")]}


def _next_timestamp(publisher: Publisher) -> bytes:
    """A good one, so that what follows it is looked at."""
    data = publisher.files["timestamp.json"]
    return resigned(data, lambda signed: setattr(signed, "version", signed.version + 1), publisher.signers["timestamp"])


ATTACKS: dict[str, tuple[Forge, str]] = {
    "arbitrary software": (_arbitrary, "wrong keys"),
    "wrong keys": (_wrong_keys, "wrong keys"),
    "rollback": (_rollback, "rollback"),
    "freeze": (_freeze, "freeze"),
    "fast-forward": (_fast_forward, "fast-forward"),
    "endless data": (_endless, "endless data"),
    "mix-and-match": (_mixed, "mix-and-match"),
}


def lie(liar: meshnode.Node, bundle: bytes) -> None:
    """Have a node announce and hand out a bundle that it has not verified."""
    active = liar.part(RunningReleases).active
    assert active is not None
    digest = hashlib.sha256(bundle).digest()
    active.performer._bundle = digest  # it is not garbage for the liar
    assert active.store.put(digest, bundle)

    def announce(machine: Releases, now: int) -> None:
        machine.holding({digest: len(bundle)}, now)
        machine.bundle_verified(digest, ReleaseCatalogue(9, 9_000_000, bytes(32), False, (), ()), now)

    active._tell(announce)


async def test_attacks_of_peers_are_refused_named_and_logged(
    house: House, publisher: Publisher, factory: Path, tmp_path: Path
) -> None:
    """One node, and one liar after the other in its reach. The model that it serves stays; good news still comes."""
    publish(publisher, 1, 1)
    old = publisher.files
    publish(publisher, 2, 2)
    config = config_of(house, "victim-1", publisher, factory, role="rsu")
    put_in(publisher.folder, config.node.state_dir / "releases")
    refused: list[MetadataRefused] = []
    async with meshnode.open(config) as victim:
        victim.on_event(lambda event: refused.append(event) if isinstance(event, MetadataRefused) else None)
        await serves(victim, 2)
        active = victim.part(RunningReleases).active
        assert active is not None
        trusted = active.trust.current()
        for number, (forge, named_so) in enumerate(ATTACKS.values()):
            name = f"liar-{number}"
            bundle = packed(forge(publisher, old, tmp_path / name))
            async with meshnode.open(config_of(house, name, publisher, factory, victim.port)) as liar:
                lie(liar, bundle)
                await until(lambda number=number: len(refused) > number, f"{name} is refused")
            assert (refused[-1].source, refused[-1].why.partition(":")[0]) == (name, named_so)
            assert active.trust.current() == trusted
        await serves(victim, 2)
        publish(publisher, 3, 3)
        put_in(publisher.folder, config.node.state_dir / "releases")
        victim.part(RunningReleases).imported()
        await serves(victim, 3)
    lines = (config.node.state_dir / "releases" / "audit.jsonl").read_text().splitlines()
    logged = [entry.get("attack") for entry in map(json.loads, lines) if "attack" in json.dumps(entry)]
    assert len(logged) == len(ATTACKS)
