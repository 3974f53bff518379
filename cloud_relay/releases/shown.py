"""What nodes may see of the repository: the bundle, and the chunks that its metadata leads to.

It is read from the files that :mod:`~.repository` writes, without a library for TUF: the relay does not have to check
its own signatures to hand them out.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cloud_relay.releases.shelf import ChunkShelf
from protocols.base.errors import MetadataInvalid, StorageError
from protocols.releases.bundle import roots_in, unpack_untrusted_bundle
from protocols.releases.catalogue import Content, Description, Order
from protocols.wire.releases import ReleaseNews

BUNDLE_FILE: Final = "current.bundle"
ORDERS_ROLE: Final = "rollouts"
"""The role that signs orders. Their paths begin with its name."""


_RELEASES: Final = "releases"
"""What releases are counted as; orders are counted by their state."""


class Shown(Struct, frozen=True):
    """One state of the repository."""

    news: ReleaseNews
    bundle: bytes
    paths: Mapping[bytes, frozenset[str]]
    """The paths that a node may get one of to be given a chunk, by its digest. Chunks that are not here are not given.
    """
    unread: tuple[str, ...] = ()
    """Targets that a damaged disk kept from being read, so that not all of their chunks are known."""
    releases: int = 0
    """Releases that are published."""
    orders: Mapping[str, int] = {}
    """Orders by their state."""


class _Target(Struct):
    hashes: dict[str, str]


class _Body(Struct):
    version: int
    targets: dict[str, _Target] = {}


class _File(Struct):
    signed: _Body


_files = msgspec.json.Decoder(_File)
_descriptions = msgspec.json.Decoder(Description)
_orders = msgspec.json.Decoder(Order)


def read_shown(folder: Path) -> Shown | None:
    """What a repository shows now; None: there is none. :raises StorageError: it can't be read, or is damaged."""
    path = folder / BUNDLE_FILE
    try:
        bundle = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be read ({error.strerror}): check who owns it") from error
    try:
        files = unpack_untrusted_bundle(bundle)
        timestamp = files["timestamp.json"]
        news = ReleaseNews(
            root_version=max(roots_in(files)),
            timestamp_version=_files.decode(timestamp).signed.version,
            timestamp=hashlib.sha256(timestamp).digest(),
            bundle=hashlib.sha256(bundle).digest(),
            bundle_bytes=len(bundle),
        )
        paths: dict[bytes, set[str]] = {}
        unread: list[str] = []
        listed: Counter[str] = Counter()
        for digest, shown_to in _chunks(files, ChunkShelf(folder / "chunks"), unread, listed):
            paths.setdefault(digest, set()).add(shown_to)
    except (MetadataInvalid, msgspec.DecodeError, KeyError, ValueError) as error:
        raise StorageError(f"{path} is damaged ({error}): restore a copy") from error
    shared: dict[frozenset[str], frozenset[str]] = {}  # a release has up to 8,192 chunks, all of the same paths
    frozen = ((digest, frozenset(each)) for digest, each in paths.items())
    releases = listed.pop(_RELEASES, 0)
    return Shown(
        news, bundle, {digest: shared.setdefault(each, each) for digest, each in frozen}, tuple(dict.fromkeys(unread)),
        releases, dict(listed),
    )  # fmt: skip


def _chunks(
    files: Mapping[str, bytes], shelf: ChunkShelf, unread: list[str], listed: Counter[str]
) -> Iterator[tuple[bytes, str]]:
    """The chunks that metadata leads to, each with a path that it is of. Targets that can't be read are added to
    ``unread``, those that can are counted in ``listed``: releases, and orders by their state."""
    for name, data in files.items():
        if name.endswith((".root.json", ".snapshot.json")) or name == "timestamp.json":
            continue
        for target, described in _files.decode(data).signed.targets.items():
            digest = bytes.fromhex(described.hashes["sha256"])
            content = shelf.find(digest)
            if content is None:
                unread.append(target)  # a damaged disk: nodes have it from one another
                continue
            if target.startswith(f"{ORDERS_ROLE}/"):
                order = _orders.decode(content)
                listed[order.state] += 1
                yield digest, order.path
                continue
            listed[_RELEASES] += 1
            description = _descriptions.decode(content)
            yield digest, description.path
            for each in _contents(description):
                yield bytes.fromhex(each.index), description.path
                chunks = shelf.chunks_of(each)
                if chunks is None:
                    unread.append(target)
                for chunk in chunks or ():
                    yield chunk, description.path


def _contents(description: Description) -> Iterator[Content]:
    yield from (file.content for file in description.files)
    yield from (delta.content for delta in description.deltas)
