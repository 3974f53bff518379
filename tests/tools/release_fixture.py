"""A relay that publishes releases, without a network, and what a lying neighbour can make of its metadata.

Its fixture is ``publisher``: import ``given_publisher`` where it is used.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata
from tuf.api.serialization.json import JSONSerializer

from cloud_relay.releases.chunking import chunk_data
from cloud_relay.releases.publishing import list_release
from cloud_relay.releases.repository import PUBLISHER_ROLE, TOP_ROLES, Lifetimes, ReleaseRepository, opened
from cloud_relay.releases.shown import BUNDLE_FILE, ORDERS_ROLE
from meshnode.releases.trust import keeping
from protocols.releases.bundle import unpack_untrusted_bundle
from protocols.releases.catalogue import Description, Order, ReleasedFile

ONLINE = (*TOP_ROLES, ORDERS_ROLE, PUBLISHER_ROLE)
Files = Mapping[str, bytes]


class Publisher:
    """A repository whose keys are all at hand, and whose clock can be set."""

    def __init__(self, folder: Path, lifetimes: Lifetimes | None = None) -> None:
        self.folder, self.now = folder, datetime.now(UTC)
        self.lifetimes = lifetimes or Lifetimes()
        self.root_signers: list[Signer] = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.signers: dict[str, Signer] = {role: CryptoSigner.generate_ed25519() for role in ONLINE}
        with opened(folder, lambda: self.now) as repository:
            repository.state.lifetimes = self.lifetimes
            repository.create(self.root_signers, 2, self.signers)
            repository.commit()
        self.root_path = folder / "metadata" / "1.root.json"

    @contextmanager
    def changing(self) -> Iterator[ReleaseRepository]:
        """The repository; what was changed is published at the end."""
        with opened(self.folder, lambda: self.now) as repository:
            repository.load()
            repository.use_keys(self.signers.values())
            yield repository
            repository.commit()

    def release(self, counter: int, name: str = "plate", content: bytes | None = None) -> bytes:
        """Publish a release with one file, and return the bundle."""
        with self.changing() as repository:
            list_file(repository, counter, name, f"{name} {counter}".encode() if content is None else content)
        return self.bundle

    def roll_out(self, serial: int, counter: int, name: str, content: bytes, **order: Any) -> bytes:
        """Publish a release with one file and an order to serve it, and return the bundle."""
        with self.changing() as repository:
            list_file(repository, counter, name, content)
            made = Order(serial=serial, path=f"models/{name}", counter=counter, **order)
            repository.put(f"rollouts/{serial}.json", msgspec.json.encode(made))
        return self.bundle

    def refresh(self, targets_too: bool = False) -> bytes:
        """Sign anew, and return the bundle."""
        with self.changing() as repository:
            repository.refresh(repository.lists() if targets_too else ())
        return self.bundle

    def rotate(self, role: str, roots: int = 2) -> bytes:
        """Exchange the key of a role that root names, and return the bundle."""
        self.signers[role] = CryptoSigner.generate_ed25519()
        with self.changing() as repository:
            repository.exchange_key(role, self.signers[role].public_key)
            if role in TOP_ROLES:
                repository.sign_root(self.root_signers[:roots])
        return self.bundle

    @property
    def bundle(self) -> bytes:
        return (self.folder / BUNDLE_FILE).read_bytes()

    @property
    def files(self) -> dict[str, bytes]:
        return unpack_untrusted_bundle(self.bundle)

    def ahead(self, days: float) -> None:
        """Let time pass at the repository. Negative: what it signs has been signed in the past."""
        self.now += timedelta(days=days)


@pytest.fixture(name="publisher")
def given_publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "repository")


def clock_at(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Set the clock by which a node trusts metadata so many days ahead. Negative: back."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(keeping, "datetime", Shifted)


def list_file(repository: ReleaseRepository, counter: int, name: str, content: bytes) -> None:
    """List a release of ``models/name`` whose only file has this content."""
    file = ReleasedFile(name=f"{name}.onnx", content=chunk_data(content, repository.shelf.keep))
    list_release(repository, Description(path=f"models/{name}", counter=counter, model=file.name, files=(file,)))


def packed(files: Files) -> bytes:
    """A bundle of files, however large."""
    return msgspec.msgpack.encode(dict(sorted(files.items())))


def named(files: Files, role: str) -> str:
    """The name of the file of a role."""
    return next(name for name in files if name.removesuffix(".json").rpartition(".")[2] == role)


def resigned(data: bytes, change: Callable[[Any], None], *signers: Signer) -> bytes:
    """Metadata with its signed part changed, signed by these keys; none: with the signatures that it had."""
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    change(metadata.signed)
    if not signers:
        content = {"signatures": json.loads(data)["signatures"], "signed": metadata.signed.to_dict()}
        return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
