"""Releases of models: each is tried in a worker process, and the ones before the one that serves stay loaded."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from meshnode.models import LoadedModel, ModelSpec
from meshnode.models.model import read_model
from meshnode.models.worker import WorkerModel
from meshnode.releases.install.kind import name_of
from meshnode.releases.install.refusals import InstallRefused, refusal_of
from meshnode.releases.install.staging import check_runtime
from meshnode.releases.install.stand import Rehearsal, Stand
from protocols.base.errors import BudgetExhausted, InferenceError, ModelInvalid
from protocols.inference.signature import ModelSignature, breaks
from protocols.releases.catalogue import Description

IDLE_LOAD_S: Final = 5.0
"""How long a release may load with idle processor time, beside the time to read its file. On a computer that is always
busy there is none, and its release would wait in vain."""
_CARD_BYTES_PER_S: Final = 20e6
"""What a slow memory card gives."""
_BREAKS_SHOWN: Final = 8
_T = TypeVar("_T")


def rehearsed_beside(stand: Rehearsal, spec: ModelSpec) -> WorkerModel:
    """A model that runs beside those that serve, with the processor time that nobody else wants. Where that is too
    little to load it in time, it is loaded like any other first: being busy is no fault of a release.

    :raises InferenceError: it can't be loaded, or can't compute zeros.
    """
    model = _in_idle_time(lambda idle: _rehearsed(stand, spec, idle))
    model.become_idle()
    return model


def _rehearsed(stand: Rehearsal, spec: ModelSpec, idle: bool) -> WorkerModel:
    load_s = IDLE_LOAD_S + spec.path.stat().st_size / _CARD_BYTES_PER_S if idle else None
    return stand.rehearse(spec, idle=idle, load_s=load_s)


def _in_idle_time(attempt: Callable[[bool], _T]) -> _T:
    """What ``attempt`` gives with idle time, or if that was too little, with as much as any other."""
    try:
        return attempt(True)
    except BudgetExhausted:
        pass
    except ModelInvalid as error:
        if refusal_of(error).code != "hung":
            raise
    return attempt(False)


class ModelKind:
    """See the module. Fulfils :class:`meshnode.releases.install.kind.Kind`."""

    def __init__(self, stand: Stand, keep: int) -> None:
        """``keep``: how many releases stay warm behind the one that serves."""
        self._stand, self._keep = stand, keep

    def check(self, description: Description) -> None:
        """See ``Kind``."""
        check_runtime(description.runtime)
        self._stand.spec(name_of(description.path), Path(description.model))

    def tried(self, description: Description, file: Path, current: int) -> str:
        """See ``Kind``. It is loaded and run, and can be used as the one that serves.

        It is tried with the processor time that nobody else wants, or if that was too little, with as much as any
        other.
        """
        return _in_idle_time(lambda idle: self._tried(description, file, current, idle=idle))

    def _tried(self, description: Description, file: Path, current: int, *, idle: bool) -> str:
        name = name_of(description.path)
        spec = self._stand.spec(name, file)
        assert spec is not None, "it has a file"
        model = _rehearsed(self._stand, spec, idle)
        try:
            serving = self._stand.models.get(name)
            if serving is not None:
                if description.signature_since <= current < description.counter:  # otherwise a break was declared
                    _check_signature(serving.signature, model.signature)
                _check_finite(serving, model)
            return model.digest
        finally:
            model.close()

    def is_whole(self, path: str, file: Path, digest: str) -> bool:
        """See ``Kind``."""
        try:
            return read_model(self.spec(path, file, digest)).digest == digest
        except ModelInvalid:
            return False

    def spec(self, path: str, file: Path, digest: str) -> ModelSpec:
        """How an installed release is loaded."""
        spec = self._stand.spec(name_of(path), file)
        assert spec is not None, "it has a file"
        return replace(spec, digest=digest)

    def has_own(self, path: str) -> bool:
        """See ``Kind``."""
        try:
            return self._stand.spec(name_of(path)) is not None
        except InstallRefused:
            return True  # and has it split between nodes

    def begin_with_own(self, path: str) -> None:
        """See ``Kind``. It is loaded with the others that the configuration names."""

    def serve(self, path: str, file: Path | None, digest: str, about_to_serve: Callable[[], object]) -> None:
        """See ``Kind``. Runs under way end with the model before, which stays warm."""
        spec = self._stand.spec(name_of(path)) if file is None else self.spec(path, file, digest)
        if spec is None:
            about_to_serve()
            self._stand.stop_version(name_of(path), self._keep)
        else:

            def about(_: LoadedModel) -> None:
                about_to_serve()

            self._stand.serve_version(spec, self._keep, about)

    def forget(self, path: str, digest: str) -> None:
        """Keep a release warm no longer, which is removed."""
        self._stand.forget_version(name_of(path), digest)


def _check_signature(before: ModelSignature, now: ModelSignature) -> None:
    if broken := list(islice(breaks(before, now), _BREAKS_SHOWN)):
        raise InstallRefused("signature", (
            f"whoever uses what serves now can't use it: {'; '.join(broken)}. If that is meant, its publisher has to "
            "declare the break"
        ))  # fmt: skip


def _check_finite(before: LoadedModel, now: LoadedModel) -> None:
    """Refuse a model that answers NaN to zeros where the one before does not."""
    import numpy as np

    zeros = now.zeros()
    if zeros is None:
        return
    for name, array in now.run(zeros):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            try:
                earlier = dict(before.run(zeros)).get(name)
            except (InferenceError, ModelInvalid):
                return
            if earlier is not None and np.isfinite(earlier).all():
                raise InstallRefused("not_finite", f"its output {name!r} is NaN or infinite on zeros")
