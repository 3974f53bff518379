"""The relay as a source of releases: a question for news that waits there, and chunks.

Each of both has a connection and a thread of its own, because an exchange has one request at a time and the question
for news waits for up to a minute.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from meshnode.backoff import Backoff
from meshnode.links.requests import RelayRequests
from meshnode.links.transport import Requester
from protocols.base.errors import MeshError
from protocols.wire.releases import RelayChunk, RelayChunkWanted, ReleaseNews, ReleasesAsked, ReleasesTold

_log = logging.getLogger(__name__)
WAIT_MS: Final = 30_000
"""How long the relay may keep the question: shorter than the time after which networks forget a connection."""
_ANSWER_S: Final = 15.0
"""How long anything else may take; a chunk of 256 KiB at 20 kB/s."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


class RelayClient:
    """See the module. Callbacks run on threads of its own."""

    def __init__(
        self, connect: Callable[[], Requester], version: Callable[[], int], told: Callable[[ReleaseNews | None], None],
        connected: Callable[[bool], None], got: Callable[[bytes, bytes], None],
    ) -> None:  # fmt: skip
        """``connect`` opens a connection; it may raise TransportError. ``version``: that of the timestamp that this
        node has. ``got`` is called with the digest of each chunk that was asked for, and its bytes; none: the relay
        does not give it."""
        self._connect, self._version, self._told, self._connected, self._got = connect, version, told, connected, got
        self._closing = threading.Event()
        self._asking, self._fetching = RelayRequests(connect), RelayRequests(connect)
        self._chunks = ThreadPoolExecutor(1, "release-relay")
        self._thread = threading.Thread(target=self._ask, name="release-news", daemon=True)
        self.state = "connecting"
        """``connected``, or why it is not."""

    def start(self) -> None:
        """Ask for news, until it is closed."""
        self._thread.start()

    def fetch(self, digest: bytes) -> None:
        """Get a chunk; ``got`` follows. It never blocks."""
        try:
            self._chunks.submit(self._fetch, digest)
        except RuntimeError:
            _log.debug("the node closes: no chunk is fetched any more")

    def close(self) -> None:
        """End both connections and threads."""
        self._closing.set()
        self._asking.close()
        self._fetching.close()
        self._chunks.shutdown(cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(5)

    # --- on the threads --------------------------------------------------------------------------------------------
    def _ask(self) -> None:
        pause, wait_ms, is_connected = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S), 0, False
        last: ReleaseNews | None = None
        while not self._closing.is_set():
            version, asked_s = self._version(), time.monotonic()
            try:
                told = self._asking.request(ReleasesAsked(version, wait_ms), ReleasesTold, wait_ms / 1e3 + _ANSWER_S)
            except MeshError as error:
                if is_connected or self.state == "connecting":
                    _log.warning("the relay of releases does not answer: %s", error)
                self.state, wait_ms = str(error), 0
                if is_connected:
                    is_connected = False
                    self._connected(False)
                self._closing.wait(pause.next_s())
                continue
            pause = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            self.state = "connected"
            if not is_connected:
                is_connected = True
                self._connected(True)
            self._told(told.news)
            # An answer that comes early without news says that others wait too. If all of them asked again at once, the
            # relay of a large mesh would do nothing else.
            left_s = wait_ms / 1e3 - (time.monotonic() - asked_s)
            is_news = told.news is not None and told.news.timestamp_version != version and told.news != last
            last = told.news
            self._closing.wait(_FIRST_PAUSE_S if is_news else max(_FIRST_PAUSE_S, left_s))
            wait_ms = WAIT_MS

    def _fetch(self, digest: bytes) -> None:
        data = b""
        try:
            answer = self._fetching.request(RelayChunkWanted(digest), RelayChunk, _ANSWER_S)
            data = answer.data if answer.digest == digest else b""
            if not data:
                _log.info("the relay does not give the chunk %s: %s", digest.hex()[:12], answer.detail)
        except MeshError as error:
            _log.info("the relay did not give the chunk %s: %s", digest.hex()[:12], error)
        self._got(digest, data)
