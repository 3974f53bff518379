"""A thread that encodes pictures anew, so that neither a sensor nor the link of a neighbour waits for them.

Pillow gives up Python's lock while it decodes and encodes. The thread starts with the first picture. What waits for it
is bounded, and readings of others may fill half of that, where the one that has most gives way with its newest to one
that has less. Each reading that was taken is finished or gives way, once.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from meshnode.records.egress.pictures import redrawn_picture
from protocols.base.limits import SECOND
from protocols.base.shares import Shares
from protocols.records.egress.gate import KeptBack, WithPictures
from protocols.records.pending import OWN
from protocols.wire.readings import Reading

_log = logging.getLogger(__name__)
MAX_WAITING: Final = 16
"""Readings with pictures that wait. A picture of 2 megapixels takes 20 ms of one core as JPEG, and 340 ms as PNG."""
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
_REST: Final = 4
"""Times as long as the pictures of a neighbour took of a core, none of neighbours is drawn. So they take a fifth of one
together; without it, PNGs of 8 megapixels kept a core busy for as long as one neighbour sent them."""

Finished = Callable[[Reading | KeptBack | None], object]
"""Takes the reading as it leaves; None: the node closed before its turn. It must not raise."""


class _Task(NamedTuple):
    given: WithPictures
    payer: str
    finished: Finished
    gave_way: Callable[[], object]

    @property
    def cost_bytes(self) -> int:
        """What it takes of the bounds, which are one: a small picture counts as one of ``MAX_WAITING``."""
        return max(self.given.size_bytes, MAX_WAITING_BYTES // MAX_WAITING)


class PictureDrawing:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._held: Shares[str] = Shares()
        """What waits, by payer."""
        self._thread: threading.Thread | None = None
        self._others_rest_until_ns = 0
        self._is_closed = False

    def draw(
        self, given: WithPictures, payer: str, finished: Finished, gave_way: Callable[[], object]
    ) -> bool:  # fmt: skip
        """Encode the pictures of a reading anew and call ``finished`` on another thread, or ``gave_way`` on that of
        somebody whose reading took its place. ``payer``: whose it is; ``OWN``: this node's. False: there is no room,
        and neither is called."""
        task = _Task(given, payer, finished, gave_way)
        with self._changed:
            if self._is_closed or not self._has_room(task):
                return False
            self._waiting.append(task)
            self._held.add(payer, task.cost_bytes)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="egress", daemon=True)
                self._thread.start()
            self._changed.notify()
        return True

    def _has_room(self, task: _Task) -> bool:
        """Whether a task fits in, after those of another one that has more have given way to it."""
        bound_bytes = MAX_WAITING_BYTES if task.payer == OWN else MAX_WAITING_BYTES // 2
        if task.cost_bytes > bound_bytes:
            return False
        while self._held.total + task.cost_bytes > bound_bytes:
            others = [payer for payer in self._held.payers() if payer != OWN]
            largest = max(others, key=self._held.held, default=OWN)
            would_hold = self._held.held(task.payer) + task.cost_bytes
            if OWN in (largest, task.payer) or self._held.held(largest) <= would_hold:
                return False
            at = max(at for at, waiting in enumerate(self._waiting) if waiting.payer == largest)
            gone = self._waiting[at]
            del self._waiting[at]
            self._held.remove(largest, gone.cost_bytes)
            gone.gave_way()
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
                while (task := self._next()) is None:
                    if self._is_closed:
                        return
                    rest_ns = self._others_rest_until_ns - time.monotonic_ns()
                    self._changed.wait(max(0, rest_ns) / SECOND if self._waiting else None)
            began_ns = time.thread_time_ns()
            outcome = _drawn(task.given)
            if task.payer != OWN:
                took_ns = time.thread_time_ns() - began_ns
                self._others_rest_until_ns = time.monotonic_ns() + _REST * took_ns
            task.finished(outcome)

    def _next(self) -> _Task | None:
        """Take the task that came first of those that may be done now; None: there is none."""
        rests = time.monotonic_ns() < self._others_rest_until_ns and not self._is_closed
        for at, task in enumerate(self._waiting):
            if task.payer == OWN or not rests:
                del self._waiting[at]
                self._held.remove(task.payer, task.cost_bytes)
                return task
        return None


def _drawn(given: WithPictures) -> Reading | KeptBack:
    try:
        return given.finished(lambda content, found: redrawn_picture(content, given.rule.cover, found))
    except Exception:  # noqa: BLE001 - a bug, or no memory: nothing leaves, and the thread goes on
        _log.exception("a picture of %r can't be encoded anew", given.reading.key)
        return KeptBack(given.rule.name, "picture")
