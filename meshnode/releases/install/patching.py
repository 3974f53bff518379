"""Files of a release made out of files that are here, by the deltas that its description lists."""

import hashlib
from collections.abc import Callable
from typing import Final

from meshnode.releases.store.chunks import ChunkStore
from protocols.base.errors import ModelInvalid
from protocols.releases.catalogue import Content, Delta, Description, ReleasedFile

MAX_PATCHED_BYTES: Final = 512 * 1024 * 1024
"""Larger files are fetched: base, delta and file are in memory at once."""


class DeltaFailed(ModelInvalid):
    """A delta of a release does not make the file that it should."""


def patch_files(description: Description, store: ChunkStore, find: Callable[[str], Content | None]) -> int:
    """Make every file of a release of which only a delta is held. ``find``: a content that is held by its SHA-256.
    Returns how many were made.

    :raises DeltaFailed: a delta does not fit. :raises StorageError: there is no room.
    """
    made = 0
    for file in description.files:
        if not file.content.size_bytes or is_held(store, file.content):
            continue
        delta = next((each for each in description.deltas if each.name == file.name and is_held(store, each.content)
                      and (base := find(each.base)) is not None and is_held(store, base)), None)  # fmt: skip
        if delta is not None:
            base = find(delta.base)
            assert base is not None, "it was found just now"
            _make(file, delta, base, store)
            made += 1
    return made


def is_held(store: ChunkStore, content: Content) -> bool:
    """Whether every chunk of a content is held."""
    opened = store.open_content(bytes.fromhex(content.index), content.size_bytes, content.chunk_bytes)
    return opened is not None and opened.is_whole


def _make(file: ReleasedFile, delta: Delta, base: Content, store: ChunkStore) -> None:
    content = file.content
    if max(content.size_bytes, base.size_bytes) > MAX_PATCHED_BYTES:
        raise DeltaFailed(f"{file.name} has {content.size_bytes} bytes, too many to be patched: it is fetched")
    from meshnode.models.deltas import apply_delta

    try:
        made = apply_delta(delta.method, _read(store, base), _read(store, delta.content), content.size_bytes)
    except (ModelInvalid, OSError) as error:
        raise DeltaFailed(f"the delta of {file.name} can't be applied: {error}") from error
    parts = [made[at : at + content.chunk_bytes] for at in range(0, len(made), content.chunk_bytes)]
    index = b"".join(hashlib.sha256(part).digest() for part in parts)
    if hashlib.sha256(made).hexdigest() != content.sha256 or not store.put(bytes.fromhex(content.index), index):
        raise DeltaFailed(f"the delta of {file.name} makes another file than the one of the release: it is fetched")
    store.open_content(bytes.fromhex(content.index), content.size_bytes, content.chunk_bytes)
    for number, part in enumerate(parts):
        store.put(index[32 * number : 32 * number + 32], part)


def _read(store: ChunkStore, content: Content) -> bytes:
    """A content that is held whole. :raises OSError: it is damaged."""
    opened = store.open_content(bytes.fromhex(content.index), content.size_bytes, content.chunk_bytes)
    data = opened.path.read_bytes() if opened is not None else b""
    if hashlib.sha256(data).hexdigest() != content.sha256:
        store.check_content(bytes.fromhex(content.index))
        raise OSError(f"a file that it needs is damaged: {content.sha256[:12]}")
    return data
