"""A thread that encodes pictures anew, so that neither a sensor nor the link of a neighbour waits for them.

Pillow gives up Python's lock while it decodes and encodes. The thread starts with the first picture. What waits for it
is bounded, and readings of others may fill half of that. Each reading that was taken is finished once.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from meshnode.records.egress.pictures import redrawn_picture
from protocols.records.egress.gate import KeptBack, WithPictures
from protocols.wire.readings import Reading

_log = logging.getLogger(__name__)
MAX_WAITING: Final = 16
"""Readings with pictures that wait. A picture of 2 megapixels takes 20 ms of one core as JPEG, and 340 ms as PNG."""
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024

Finished = Callable[[Reading | KeptBack | None], object]
"""Takes the reading as it leaves; None: the node closed before its turn. It must not raise."""


class _Task(NamedTuple):
    given: WithPictures
    finished: Finished


class PictureDrawing:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def draw(self, given: WithPictures, is_own: bool, finished: Finished) -> bool:
        """Encode the pictures of a reading anew and call ``finished`` on another thread. False: there is no room, and
        ``finished`` is not called."""
        share = 1 if is_own else 2
        with self._changed:
            if (
                self._is_closed
                or len(self._waiting) >= MAX_WAITING // share
                or self._waiting_bytes + given.size_bytes > MAX_WAITING_BYTES // share
            ):
                return False
            self._waiting.append(_Task(given, finished))
            self._waiting_bytes += given.size_bytes
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="egress", daemon=True)
                self._thread.start()
            self._changed.notify()
        return True

    def close(self, patience_s: float) -> None:
        """Finish what waits, for at most ``patience_s`` and the picture under way then. Called once."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(patience_s)
        with self._changed:
            left = tuple(self._waiting)
            self._waiting.clear()
        for task in left:
            task.finished(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._is_closed:
                        return
                    self._changed.wait()
                task = self._waiting.popleft()
                self._waiting_bytes -= task.given.size_bytes
            task.finished(_drawn(task.given))


def _drawn(given: WithPictures) -> Reading | KeptBack:
    try:
        return given.finished(lambda content, found: redrawn_picture(content, given.rule.cover, found))
    except Exception:  # noqa: BLE001 - a bug, or no memory: nothing leaves, and the thread goes on
        _log.exception("a picture of %r can't be encoded anew", given.reading.key)
        return KeptBack(given.rule.name, "picture")
