"""The versions of models that served before: kept warm, so that going back takes no time, and ended once nobody needs
them.

A run belongs to the version with which it began. So a version that is given up ends when its last run has.
"""

import threading
import time
from typing import Final

from meshnode.models import LoadedModel, Runner
from meshnode.models.model import LONGEST_RUN_NS
from meshnode.models.worker import WorkerModel
from protocols.base.limits import SECOND

_LOOK_S: Final = 0.05
"""The time between two looks whether a version that was given up still has runs."""


class FormerModels:
    """See the module. The lock of its owner guards :meth:`replace` and :meth:`forget`; the rest may be called from any
    thread."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._former: dict[str, tuple[LoadedModel, ...]] = {}
        """By name, the last one first. Never changed, but replaced."""

    def of(self, name: str) -> tuple[LoadedModel, ...]:
        """The versions that are warm, the last one first."""
        return self._former.get(name, ())

    def find(self, name: str, digest: str) -> LoadedModel | None:
        """The warm version with that digest."""
        return next((model for model in self.of(name) if model.digest == digest), None)

    def replace(self, name: str, before: LoadedModel | None, now: LoadedModel | None, keep: int) -> list[LoadedModel]:
        """Note that ``now`` serves in place of ``before``, and keep so many warm. Returns those to end."""
        known = [model for model in (before, *self.of(name)) if model is not None and model is not now]
        self._former = {**self._former, name: tuple(known[:keep])}
        return known[keep:]

    def forget(self, name: str, digest: str) -> list[LoadedModel]:
        """Keep a version no longer. Returns those to end."""
        gone = [model for model in self.of(name) if model.digest == digest]
        self._former = {**self._former, name: tuple(model for model in self.of(name) if model not in gone)}
        return gone

    def end(self, models: list[LoadedModel]) -> None:
        """End versions that nobody can ask for any more, as soon as their runs have ended."""
        processes = [model for model in models if isinstance(model, WorkerModel)]
        if processes:
            threading.Thread(target=self._end, args=(processes,), name="model-retire", daemon=True).start()

    def _end(self, models: list[WorkerModel]) -> None:
        ends_s = time.monotonic() + LONGEST_RUN_NS / SECOND
        for model in models:
            while self._runner.uses(model) and time.monotonic() < ends_s:
                time.sleep(_LOOK_S)
            model.close()
