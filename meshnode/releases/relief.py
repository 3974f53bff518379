"""A thread that gets things done one after another, and is relieved by another one when it hangs.

Nothing can end a thread that waits for a disk that does not answer. So when one thing takes longer than ``PATIENCE_S``,
a new thread goes on with those behind it, and the one that hangs ends when what it does has ended. What it is about is
*stuck* until then: nothing else may be done about it meanwhile. At most ``MAX_STUCK`` threads are relieved at the same
time; the next one that hangs is waited for. They don't keep the process from ending.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

About = tuple[str, int]
"""The path and the counter of a release."""
PATIENCE_S: Final = 1_800.0
"""A model that hangs while it is loaded is loaded twice, which takes ten minutes."""
MAX_STUCK: Final = 4


class RelievedThread:
    """See the module. Its methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.patience_s = PATIENCE_S
        self._lock = threading.Lock()
        self._waiting: deque[tuple[About, Callable[[], None]]] = deque()
        self._doing: tuple[About, float] | None = None
        """What the thread is about now, and since when."""
        self._thread: threading.Thread | None = None
        self._stuck: dict[threading.Thread, About] = {}
        self._is_closed = False

    def submit(self, about: About, do: Callable[[], None]) -> None:
        """Do something behind all that waits. ``do`` must not raise. :raises RuntimeError: it is closed."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("it is closed")
            self._waiting.append((about, do))
            if self._thread is None:
                self._start()

    def is_stuck(self, about: About) -> bool:
        """Whether a thread that was relieved is still busy with it."""
        with self._lock:
            return about in self._stuck.values()

    def relieve(self) -> About | None:
        """Have another thread go on if this one hangs and something waits. Returns what it hangs at; None: it does
        not."""
        with self._lock:
            if self._doing is None or self._thread is None or not self._waiting or self._is_closed:
                return None
            about, since_s = self._doing
            if time.monotonic() - since_s < self.patience_s or len(self._stuck) >= MAX_STUCK:
                return None
            self._stuck[self._thread] = about
            self._start()
            return about

    def close(self) -> None:
        """Do nothing any more, after what is done now. What was relieved because it hung is not waited for."""
        with self._lock:
            self._is_closed, thread = True, self._thread
            self._waiting.clear()
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        self._doing = None
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (do := self._next(me)) is not None:
            do()

    def _next(self, me: threading.Thread) -> Callable[[], None] | None:
        """What a thread does next; None: it ends."""
        with self._lock:
            self._stuck.pop(me, None)
            if me is not self._thread:
                return None
            if not self._waiting:
                self._thread = self._doing = None
                return None
            about, do = self._waiting.popleft()
            self._doing = about, time.monotonic()
            return do
