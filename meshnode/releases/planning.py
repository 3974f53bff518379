"""What a node knows of its rollouts, kept over restarts.

It is written before a release is tried, since a release may end the node: after a restart that was not clean, the one
that was being tried is to blame. Otherwise it is written when something has happened, and every ten seconds at most.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from meshnode.releases.store.disk import Disk
from protocols.releases.rollout.rollouts import Rollouts, RolloutsState

_log = logging.getLogger(__name__)
_PAUSE_S: Final = 10.0
_MAX_BYTES: Final = 4 * 1024 * 1024
_DECODER: Final = msgspec.json.Decoder(RolloutsState)

_T = TypeVar("_T")
Look = Callable[[Callable[[int], _T]], _T]
"""Calls a function with the time, under the engine's lock."""


class KeptRollouts:
    """The file. Methods may be called from any thread."""

    def __init__(self, path: Path, rollouts: Rollouts, look: Look[object], disk: Disk | None = None) -> None:
        self._path, self._rollouts, self._look, self._disk = path, rollouts, look, disk or Disk()
        self._lock = threading.Lock()
        self._written = b""
        self._written_s = 0.0
        self.is_urgent = False
        """Whether something has happened that is to be written soon."""

    def restore(self, now: int) -> None:
        """Give the rollouts what was kept. Called under the engine's lock, before anything else is told to them."""
        try:
            content = self._path.read_bytes()[:_MAX_BYTES]
            state = _DECODER.decode(content)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.error("%s can't be read (%s): rollouts begin anew at this node", self._path, error)
            return
        self._rollouts.restored(state, now)

    def kept(self) -> set[tuple[str, int]]:
        """The releases that are fetched, or whose chunks must stay."""
        found: set[tuple[str, int]] = set()
        self._look(lambda _: found.update(self._rollouts.wanted(), self._rollouts.kept()))
        return found

    def save_now_and_then(self) -> None:
        """Write it if something has happened, or it is long ago."""
        if self.is_urgent or time.monotonic() - self._written_s > _PAUSE_S:
            self.save()

    def save(self, is_clean: bool = False) -> None:
        """Write it, if it has changed. ``is_clean``: the node stops in an orderly way. A full disk is no reason to stop
        a rollout: after a restart it goes on from what was written last."""
        with self._lock:
            self.is_urgent = False
            states: list[RolloutsState] = []
            self._look(lambda now: states.append(self._rollouts.state(now, is_clean)))
            content = msgspec.json.encode(states[0])
            if content == self._written:
                return
            try:
                self._disk.make_folder(self._path.parent)
                self._disk.place(self._path, content)
            except OSError as error:
                _log.error("%s can't be written (%s): make room", self._path, error.strerror)
            else:
                self._written, self._written_s = content, time.monotonic()
