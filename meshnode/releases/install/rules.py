"""Releases of rules: each is compiled before it takes the place of the rules that are used, between two readings.

Rules are judged by readings for which they have no value, and by what they derive that can't be published. What comes
from one neighbour alone does not decide (:mod:`~.askers`). They do not run beside those before them: a second set would
cost a reading as much as the first one, and what it derives would be seen by nobody.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from meshnode.records.rules.noting import Note
from meshnode.releases.install.askers import AskedRuns
from meshnode.releases.install.refusals import InstallRefused
from protocols.base.errors import BoundExceeded, ConfigError, MeshError
from protocols.releases.catalogue import Description
from protocols.releases.events import Measures

_NOTHING = Measures(0, 0, 0, 0, 0, 0)


class RuleUser(Protocol):
    """What uses the rules of a node."""

    def compiled(self, files: Sequence[Path]) -> Sequence[Any]:
        """The rules in some files. :raises ConfigError: they can't be used. :raises BoundExceeded: they may need more
        memory than this node allows. :raises MeshError: they can't be used beside others of this node."""

    def use(self, rules: Sequence[Any] | None, about_to: Callable[[], object], note: Note | None) -> None:
        """Use these rules from the next reading on. None: those of the configuration. ``about_to`` is called before,
        once nothing else can fail, and ``note`` for each reading. :raises MeshError: they can't be used."""


class RuleKind:
    """See the module. Fulfils :class:`meshnode.releases.install.kind.Kind` for one path."""

    def __init__(self, path: str, user: RuleUser) -> None:
        self.path, self._user = path, user
        self.runs = AskedRuns()
        """Readings that came to the rules that serve, since these do."""

    def check(self, description: Description) -> None:
        """See ``Kind``."""

    def tried(self, description: Description, file: Path, current: int) -> str:
        """See ``Kind``."""
        self._compiled(file)
        return _digest(file)

    def _compiled(self, file: Path) -> Sequence[Any]:
        try:
            return self._user.compiled((file,))
        except BoundExceeded as error:
            raise InstallRefused("memory", str(error)) from error
        except ConfigError as error:
            raise InstallRefused(
                "runtime" if isinstance(error.__cause__, ImportError) else "load", str(error)
            ) from error
        except MeshError as error:
            raise InstallRefused("load", f"{file}: {error}") from error

    def is_whole(self, path: str, file: Path, digest: str) -> bool:
        """See ``Kind``."""
        return _digest(file) == digest

    def has_own(self, path: str) -> bool:
        """See ``Kind``: without files there are no rules, which can be gone back to as well."""
        return True

    def begin_with_own(self, path: str) -> None:
        """See ``Kind``."""
        self.serve(path, None, "", lambda: None)

    def serve(self, path: str, file: Path | None, digest: str, about_to_serve: Callable[[], object]) -> None:
        """See ``Kind``. Rules that both say keep their windows."""
        if file is None:
            self._user.use(None, about_to_serve, None)
            return
        if not self.is_whole(path, file, digest):
            raise InstallRefused("digest", f"{file} is damaged or gone: it has to be fetched again")
        rules, runs = self._compiled(file), AskedRuns()

        def note(origin: str | None, failed: bool) -> None:
            runs.note(origin, is_bad=failed)

        def about() -> None:
            about_to_serve()
            self.runs = runs

        self._user.use(rules, about, note)


class WatchedRules:
    """The rules of one path, as :class:`meshnode.releases.install.observing.Watched` is for a model."""

    def __init__(self, counter: int, kind: RuleKind) -> None:
        self.counter, self._kind = counter, kind
        self._beside: int | None = None

    def counters(self) -> set[int]:
        """The releases that something can be told of."""
        return {self.counter, *([] if self._beside is None else [self._beside])}

    def serves(self, counter: int) -> None:
        """A release serves from now on."""
        self.counter, self._beside = counter, None

    def begin_shadow(self, counter: int) -> None:
        """A release is to be tried beside the one that serves: nothing is measured of it before it serves."""
        self._beside = counter

    def end_shadow(self, counter: int | None = None) -> None:
        """It is tried no more. ``counter``: only this one; None: any."""
        if counter in (None, self._beside):
            self._beside = None

    def measures(self, counter: int) -> Measures | None:
        """What was measured of a release; None: it neither serves nor is to be tried."""
        if counter == self.counter:
            return Measures(*self._kind.runs.counted(), 0, 0, 0, 0)
        return _NOTHING if counter == self._beside else None


def _digest(file: Path) -> str:
    """The SHA-256 of a file; empty when it can't be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""
