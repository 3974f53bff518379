"""The files of a node's models: loaded when the node opens, and those that could not be, tried again.

One bad file costs its model and nothing else. The model is a trouble of the node until it can be loaded: its file and
the manifest beside it are looked at every ``LOOK_S``. It is tried again once one of them has changed and both have then
kept still for as long, so that no file is read while it is being copied. What does not change is tried again after
longer and longer pauses, because memory may have been short.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from meshnode.backoff import Backoff
from meshnode.models import ModelSpec
from meshnode.models.manifest import manifest_path
from meshnode.troubles import Troubles
from protocols.base.errors import MeshError

LOOK_S: Final = 1.0
"""The time between two looks at a file, each of which is two system calls."""
_FIRST_PAUSE_S: Final = 10.0
_LONGEST_PAUSE_S: Final = 600.0
"""A try reads the whole file, which may have two gigabytes."""

_FileStamp = tuple[int, int, int, int] | None
_Stamp = tuple[_FileStamp, _FileStamp] | None
"""Of the model and of its manifest; None: there is no model."""


@dataclass(slots=True, eq=False)
class _Failed:
    """A model that could not be loaded."""

    spec: ModelSpec
    why: str
    tried: _Stamp
    """The file that was tried."""
    seen: _Stamp
    """The file at the last look."""
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
    due_s: float = 0.0
    """When it is tried again although it has not changed; an instant of ``time.monotonic``."""


class ModelFiles:
    """The models of one node that have a file."""

    def __init__(
        self, specs: Iterable[ModelSpec], load: Callable[[ModelSpec], None], troubles: Troubles, part: str = "model"
    ) -> None:
        """``load`` loads one model, blocking, and puts it into use; it may raise anything. ``part``: under which name a
        model that can't be loaded is a trouble."""
        self._specs, self._load, self._troubles, self._part = tuple(specs), load, troubles, part
        self._failed: dict[str, _Failed] = {}
        self._left: set[str] = set()

    def leave(self, name: str) -> None:
        """Leave the file of a model alone from now on: something else stands for the name."""
        self._left.add(name)
        if self._failed.pop(name, None) is not None:
            self._troubles.end(self._part, name)

    def load_all(self) -> None:
        """Load every model once, blocking for seconds."""
        for spec in self._specs:
            if spec.name not in self._left:
                self._try(spec)

    def why_not(self, name: str) -> str | None:
        """Why that model could not be loaded; None: it was, or the node has no file of it."""
        failed = self._failed.get(name)
        return failed.why if failed is not None else None

    async def watch(self) -> None:
        """Try again what could not be loaded, until everything is."""
        while self._failed:
            await asyncio.sleep(LOOK_S)
            for failed in list(self._failed.values()):
                if failed.spec.name not in self._left and await asyncio.to_thread(self._is_due, failed):
                    await asyncio.to_thread(self._try, failed.spec)

    def _is_due(self, failed: _Failed) -> bool:
        now, before = _stamp(failed.spec.path), failed.seen
        failed.seen = now
        if now is None:  # still missing: there is nothing to try
            return failed.tried is not None
        return now == before and (now != failed.tried or time.monotonic() >= failed.due_s)

    def _try(self, spec: ModelSpec) -> None:
        stamp = _stamp(spec.path)
        try:
            self._load(spec)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this one, the others are served
            why = str(error) if isinstance(error, MeshError) else f"model {spec.name!r}: {error!r}"
            known = self._failed.get(spec.name)
            failed = known if known is not None and known.tried == stamp else _Failed(spec, why, stamp, stamp)
            failed.why, failed.due_s = why, time.monotonic() + failed.backoff.next_s()
            self._failed[spec.name] = failed
            self._troubles.begin(self._part, spec.name, why)
        else:
            self._failed.pop(spec.name, None)
            self._troubles.end(self._part, spec.name)


def _stamp(path: Path) -> _Stamp:
    model = _file_stamp(path)
    return None if model is None else (model, _file_stamp(manifest_path(path)))


def _file_stamp(path: Path) -> _FileStamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
