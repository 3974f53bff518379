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


def read_current(folder: Path, path: str) -> Description | None:
    """The release of a path that is out: that of the newest order that was not aborted, else the newest that is listed;
    None: there is none. :raises StorageError: as :func:`read_shown`."""
    bundle = folder / BUNDLE_FILE
    listed: dict[int, Description] = {}
    ordered: dict[int, int] = {}
    try:
        files = unpack_untrusted_bundle(bundle.read_bytes())
        for _, _, document in _documents(files, ChunkShelf(folder / "chunks"), []):
            if document.path == path and isinstance(document, Description):
                listed[document.counter] = document
            elif document.path == path and isinstance(document, Order) and document.state != "aborted":
                ordered[document.serial] = document.counter
    except FileNotFoundError:
        return None
    except (OSError, MetadataInvalid, msgspec.DecodeError, KeyError, ValueError) as error:
        raise StorageError(f"{bundle} can't be read or is damaged ({error}): restore a copy") from error
    known = [counter for _, counter in sorted(ordered.items()) if counter in listed] or sorted(listed)
    return listed[known[-1]] if known else None


def _documents(
    files: Mapping[str, bytes], shelf: ChunkShelf, unread: list[str]
) -> Iterator[tuple[str, bytes, Description | Order]]:
    """The releases and orders that metadata lists, each with its target and its digest. Targets that can't be read are
    added to ``unread``."""
    for name, data in files.items():
        if name.endswith((".root.json", ".snapshot.json")) or name == "timestamp.json":
            continue
        for target, described in _files.decode(data).signed.targets.items():
            digest = bytes.fromhex(described.hashes["sha256"])
            content = shelf.find(digest)
            if content is None:
                unread.append(target)  # a damaged disk: nodes have it from one another
            elif target.startswith(f"{ORDERS_ROLE}/"):
                yield target, digest, _orders.decode(content)
            else:
                yield target, digest, _descriptions.decode(content)


def _chunks(
    files: Mapping[str, bytes], shelf: ChunkShelf, unread: list[str], listed: Counter[str]
) -> Iterator[tuple[bytes, str]]:
    """The chunks that metadata leads to, each with a path that it is of. Targets that can't be read are added to
    ``unread``, those that can are counted in ``listed``: releases, and orders by their state."""
    for target, digest, document in _documents(files, shelf, unread):
        yield digest, document.path
        if isinstance(document, Order):
            listed[document.state] += 1
            continue
        listed[_RELEASES] += 1
        for each in _contents(document):
            yield bytes.fromhex(each.index), document.path
            chunks = shelf.chunks_of(each)
            if chunks is None:
                unread.append(target)
            for chunk in chunks or ():
                yield chunk, document.path


def _contents(description: Description) -> Iterator[Content]:
    yield from (file.content for file in description.files)
    yield from (delta.content for delta in description.deltas)
