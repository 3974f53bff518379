"""All worker processes of one node."""

import threading
from collections.abc import Callable

from meshnode.models.model import ModelSpec
from meshnode.models.worker.fork_server import ForkServer
from meshnode.models.worker.keeper import ModelKeeper, Patience, WorkerCounters, WorkerModel
from protocols.base.errors import InferenceError


class Workers:
    """Loads models into processes of their own, and ends these processes. Without a model there is none."""

    def __init__(
        self, told: Callable[[str, str | None], None] = lambda name, why: None, patience: Patience | None = None
    ) -> None:
        """``told`` is called, on any thread, with the name of a model and why it is out of service; None: it is
        back."""
        self._told, self._patience = told, patience or Patience()
        self._counters = WorkerCounters()
        self._lock = threading.Lock()
        self._keepers: list[ModelKeeper] = []
        self._closed = False
        self._starter = ForkServer()

    def load(
        self, spec: ModelSpec, told: Callable[[str, str | None], None] | None = None, *, idle: bool = False,
        load_s: float | None = None,
    ) -> WorkerModel:  # fmt: skip
        """Load a model into a process of its own, blocking for milliseconds to seconds. ``told``: called for this model
        in place of the one of this object. ``idle``: it gets only the processor time that nobody else wants.
        ``load_s``: how long that may take; None: as long as the patience of this object says.

        :raises InferenceError: it can't be loaded, or it crashed or hung meanwhile; its process has ended.
        """
        keeper = ModelKeeper(
            spec, self._starter, self._patience, self._counters, told or self._told, idle=idle, load_s=load_s
        )  # fmt: skip
        with self._lock:
            if self._closed:
                raise InferenceError(f"model {spec.name!r} is not loaded any more: the node is shutting down")
            self._keepers = [*(each for each in self._keepers if not each.closed), keeper]
        try:
            return WorkerModel(spec, keeper, keeper.load())
        except BaseException:
            keeper.close()
            raise

    def counters(self) -> dict[str, int]:
        """What happened to the processes since this object was made, by name."""
        return {f"model_workers_{name}": count for name, count in self._counters.counts().items()}

    def close(self) -> None:
        """End all processes. Idempotent."""
        with self._lock:
            self._closed, keepers = True, list(self._keepers)
        for keeper in keepers:
            keeper.close()
        self._starter.close()
