"""Answers to nodes that ask for releases.

The relay is one more holder of chunks. It hands out the bundle to whoever may get any release at all, and a
description, an order or a part of a file to whoever may get the release that it is of; the role in the certificate of
the asker decides.

A node asks for news with the time that it is ready to wait. The answer comes when there is news. A question that waits
takes one of the few threads of the responder, so only ``MAX_WAITING`` wait. When one more comes, the one that has
waited longest is answered at once, without news; the node then asks again after the time that it wanted to wait. A node
that asks while a question of its own waits has started again, so that one is answered too.
"""

import logging
import threading
import time
from pathlib import Path
from typing import ClassVar, Final

from cloud_relay.releases.shelf import ChunkShelf
from cloud_relay.releases.shown import BUNDLE_FILE, Shown, read_shown
from protocols.access import AccessTable
from protocols.base.errors import RemoteProtocolError, StorageError
from protocols.base.ids import NodeId, PeerIdentity
from protocols.base.limits import MAX_TEXT_CHARS
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.records import RelayRefusal
from protocols.wire.releases import RelayChunk, RelayChunkWanted, ReleasesAsked, ReleasesTold

MAX_WAITING: Final = 4
"""Questions for news that wait at the same time. Each takes a thread of the relay."""
LOOK_S: Final = 0.5
"""How often the files are looked at while a node waits."""
RETRY_S: Final = 10.0
"""How long files that could not be read are left alone before they are read again: each attempt reads all of them."""

_Seen = tuple[int, int, int]
"""What tells one file from the next of the same name: its inode, time and size."""

_log = logging.getLogger(__name__)


class ReleaseService:
    """Answers the frames of releases from a repository's folder. Methods may be called from any thread."""

    FRAMES: ClassVar[tuple[type[Frame], ...]] = (ReleasesAsked, RelayChunkWanted)

    def __init__(self, folder: Path, access: AccessTable, max_waiting: int = MAX_WAITING) -> None:
        self._folder, self._access, self._max_waiting = folder, access, max_waiting
        self._shelf = ChunkShelf(folder / "chunks")
        self._lock = threading.Lock()
        self._waiting: dict[NodeId, threading.Event] = {}  # whoever has waited longest comes first
        self._closed = False
        self._looked: _Seen | None = None
        """What was read last."""
        self._failed: _Seen | None = None
        """What could not be read, or not all of it, and is read again at ``_again_s``."""
        self._again_s = 0.0
        self._shown: Shown | None = None
        self._counts = {"asked": 0, "chunks": 0, "chunk_bytes": 0, "refused": 0}

    def statistics(self) -> dict[str, int]:
        """Counters by name; and how many releases are published, and orders are in each state, as of the last look."""
        shown = self._shown
        releases, orders = (0, {}) if shown is None else (shown.releases, shown.orders)
        states = {f"orders_{state}": orders.get(state, 0) for state in ("running", "paused", "aborted", "promoted")}
        return {**self._counts, "releases": releases, **states}

    def close(self) -> None:
        """Answer whoever waits. Idempotent."""
        with self._lock:
            self._closed = True
            for event in self._waiting.values():
                event.set()

    def answer(self, peer: PeerIdentity, data: bytes) -> bytes:
        """The answer to one request of ``peer``. Never raises."""
        try:
            frame = decode_untrusted_relay_frame(data)
            match frame:
                case ReleasesAsked():
                    return encode_frame(self._told(peer, frame))
                case RelayChunkWanted():
                    return encode_frame(self._chunk(peer, frame))
                case _:
                    return encode_frame(RelayRefusal("malformed", f"a relay is not asked {type(frame).__name__}"))
        except RemoteProtocolError as error:
            return encode_frame(RelayRefusal("malformed", str(error)[:MAX_TEXT_CHARS]))
        except Exception:  # noqa: BLE001 - a handler must not raise; the node asks again
            _log.exception("a question of %s about releases was not answered: this is a bug of the relay", peer.node)
            return encode_frame(RelayRefusal("storage", "the relay failed"))

    def _told(self, peer: PeerIdentity, asked: ReleasesAsked) -> Frame:
        self._counts["asked"] += 1
        if not self._access.permits_any_release(peer.role, peer.node):
            return ReleasesTold(None)
        until_s = time.monotonic() + asked.wait_ms / 1_000
        mine = threading.Event()
        with self._lock:
            if (before := self._waiting.pop(peer.node, None)) is not None:
                before.set()  # it has started again, and nobody takes that answer
            while len(self._waiting) >= self._max_waiting:
                self._waiting.pop(next(iter(self._waiting))).set()
            self._waiting[peer.node] = mine
        try:
            while True:
                shown = self._look()
                left_s = until_s - time.monotonic()
                has_news = shown is not None and shown.news.timestamp_version != asked.timestamp_version
                if has_news or left_s <= 0 or self._closed or mine.wait(min(left_s, LOOK_S)):
                    return ReleasesTold(None if shown is None else shown.news)
        finally:
            with self._lock:
                if self._waiting.get(peer.node) is mine:
                    del self._waiting[peer.node]

    def _chunk(self, peer: PeerIdentity, wanted: RelayChunkWanted) -> RelayChunk:
        shown, digest = self._look(), wanted.digest
        if shown is not None and digest == shown.news.bundle:
            if self._access.permits_any_release(peer.role, peer.node):
                return self._given(digest, shown.bundle)
            return self._refused(digest, "no access rule lets this node have releases")
        paths = shown.paths.get(digest) if shown is not None else None
        if paths is None:
            return self._refused(digest, "the relay does not publish it")
        if not any(self._access.permits_release(peer.role, peer.node, path) for path in paths):
            return self._refused(digest, f"no access rule lets this node have {min(paths)}")
        data = self._shelf.find(digest)
        if data is None:
            _log.error("the chunk %s of %s is missing or damaged: publish it again", digest.hex(), min(paths))
            return self._refused(digest, "the relay's copy is damaged")
        return self._given(digest, data)

    def _given(self, digest: bytes, data: bytes) -> RelayChunk:
        self._counts["chunks"] += 1
        self._counts["chunk_bytes"] += len(data)
        return RelayChunk(digest, data)

    def _refused(self, digest: bytes, why: str) -> RelayChunk:
        self._counts["refused"] += 1
        return RelayChunk(digest, b"", why[:MAX_TEXT_CHARS])

    def _look(self) -> Shown | None:
        """What is published now. The files are read again only if they have changed, or could not be read."""
        try:
            status = (self._folder / BUNDLE_FILE).stat()
            seen: _Seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            return self._shown  # not made yet
        with self._lock:
            if seen != self._looked and (seen != self._failed or time.monotonic() >= self._again_s):
                self._read(seen)
            return self._shown

    def _read(self, seen: "_Seen") -> None:
        try:
            self._shown = shown = read_shown(self._folder)
            failure = f"{', '.join(shown.unread)} can't be read" if shown is not None and shown.unread else None
        except StorageError as error:
            failure = f"releases stay as they are: {error}"
        if failure is None:
            self._looked, self._failed = seen, None
            return
        if seen != self._failed:
            _log.error("%s. The relay tries again every %g s", failure, RETRY_S)
        self._failed, self._again_s = seen, time.monotonic() + RETRY_S
