"""The versions of models that served before: kept warm, so that going back takes no time, and ended once nobody needs
them.

A run belongs to the version with which it began, and neighbours place requests by what they heard last. So a version
that is given up still answers those who mean it for ``LINGER_S``, and ends when its last run has.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from meshnode.models import LoadedModel, Runner
from meshnode.models.model import LONGEST_RUN_NS
from meshnode.models.worker import WorkerModel
from protocols.base.limits import SECOND

LINGER_S: Final = 2.0
"""Offers go out every 100 ms; a neighbour with a poor link hears of a change a little later."""
MAX_LINGERING: Final = 4
"""Versions of one model that linger: each has a process. Nobody changes releases so often on purpose."""
_LOOK_S: Final = 0.05
"""The time between two looks whether a version that was given up still has runs."""


class FormerModels:
    """See the module. The lock of its owner guards the methods that change something; the others may be called from any
    thread."""

    def __init__(self, runner: Runner, lock: threading.Lock, changed: Callable[[], None]) -> None:
        """``lock``: that of the owner. ``changed`` is called without it when a version is not there any more."""
        self._runner, self._lock, self._changed = runner, lock, changed
        self._kept: dict[str, tuple[LoadedModel, ...]] = {}
        """By name, the last one first. Never changed, but replaced."""
        self._leaving: tuple[LoadedModel, ...] = ()
        """Those that linger, the oldest first. Never changed, but replaced."""
        self._closing = threading.Event()
        self._ending: deque[tuple[float, LoadedModel]] = deque()
        self._thread: threading.Thread | None = None

    def of(self, name: str) -> tuple[LoadedModel, ...]:
        """The versions that still answer, the last one first."""
        return *self._kept.get(name, ()), *(model for model in reversed(self._leaving) if model.name == name)

    def find(self, name: str, digest: str) -> LoadedModel | None:
        """The version with that digest that still answers."""
        return next((model for model in self.of(name) if model.digest == digest), None)

    def close(self) -> None:
        """End nothing any more: all processes end."""
        self._closing.set()

    # --- under the lock of the owner -------------------------------------------------------------------------------
    def take(self, name: str, digest: str) -> LoadedModel | None:
        """The version with that digest, if it is there, so that it serves again: it does not end meanwhile."""
        model = self.find(name, digest)
        self._leaving = tuple(other for other in self._leaving if other is not model)
        return model

    def give_back(self, model: LoadedModel) -> None:
        """A version that was taken does not serve after all."""
        if model not in self._kept.get(model.name, ()):
            self._leave([model])

    def replace(self, name: str, before: LoadedModel | None, now: LoadedModel | None, keep: int) -> None:
        """Note that ``now`` serves in place of ``before``, and keep so many warm."""
        known = [model for model in (before, *self._kept.get(name, ())) if model is not None and model is not now]
        self._kept = {**self._kept, name: tuple(known[:keep])}
        self._leave(known[keep:])

    def forget(self, name: str, digest: str) -> None:
        """Keep a version no longer warm."""
        kept = self._kept.get(name, ())
        self._kept = {**self._kept, name: tuple(model for model in kept if model.digest != digest)}
        self._leave([model for model in kept if model.digest == digest])

    def _leave(self, models: list[LoadedModel]) -> None:
        if not models:
            return
        self._leaving = (*self._leaving, *models)
        until_s = time.monotonic() + LINGER_S
        self._ending.extend((until_s, model) for model in models)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._end, name="model-retire", daemon=True)
            self._thread.start()

    # --- on its thread ---------------------------------------------------------------------------------------------
    def _end(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                if not self._ending:
                    self._thread = None
                    return
                until_s, model = self._ending.popleft()
            while self._lingers(model) and time.monotonic() < until_s:
                self._closing.wait(_LOOK_S)
            with self._lock:
                is_leaving = model in self._leaving  # it may serve again
                self._leaving = tuple(other for other in self._leaving if other is not model)
            if is_leaving and not self._closing.is_set():
                self._changed()
                self._close(model)

    def _lingers(self, model: LoadedModel) -> bool:
        leaving = [other for other in self._leaving if other.name == model.name]
        return model in leaving and len(leaving) <= MAX_LINGERING and not self._closing.is_set()

    def _close(self, model: LoadedModel) -> None:
        ends_s = time.monotonic() + LONGEST_RUN_NS / SECOND
        while self._runner.uses(model) and time.monotonic() < ends_s and not self._closing.is_set():
            self._closing.wait(_LOOK_S)
        if isinstance(model, WorkerModel):
            model.close()
