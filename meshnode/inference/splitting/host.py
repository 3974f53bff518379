"""The stages that this node runs for neighbours: their files and their processes, on a thread of its own."""

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from meshnode.inference.compute import ComputeService
from meshnode.inference.section import InferenceSection
from meshnode.inference.splitting.act import Act
from meshnode.models import ModelSpec
from meshnode.models.cutting import StageFolder
from protocols.base.errors import MeshError
from protocols.base.ids import ModelDigest
from protocols.inference.split.events import DropStage, FindStage, LoadStage, StoreChunk, stage_name

_log = logging.getLogger(__name__)
_INCOMING: Final = "incoming"
"""The folder of stages that are being fetched, in that of the stages."""
_LEAST_MEMORY_MIB: Final = 512
"""What ONNX Runtime and the tensors of a run may take beside the weights, which are there up to three times while they
are loaded. Half of what a model of this node's own gets."""


class StageHost:
    """See the module."""

    def __init__(
        self, folder: Path, stages: StageFolder, how: InferenceSection, compute: ComputeService, act: Act
    ) -> None:  # fmt: skip
        self._incoming, self._stages, self._how, self._compute, self._act = (
            folder / _INCOMING, stages, how, compute, act,
        )  # fmt: skip
        shutil.rmtree(self._incoming, ignore_errors=True)  # what the node was fetching when it was switched off
        self._thread = ThreadPoolExecutor(1, "stage-host")

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """It finds, stores, loads and drops stages."""
        return {
            FindStage: self._later(self._find), StoreChunk: self._later(self._store),
            LoadStage: self._later(self._load), DropStage: self._later(self._drop),
        }  # fmt: skip

    def _later(self, do: Callable[[Any], None]) -> Callable[[Any], object]:
        def submit(effect: Any) -> None:
            try:
                self._thread.submit(self._safely, do, effect)
            except RuntimeError:
                _log.debug("the node closes: %s is not done any more", type(effect).__name__)

        return submit

    def _safely(self, do: Callable[[Any], None], effect: Any) -> None:
        try:
            do(effect)
        except Exception as error:  # noqa: BLE001 - a full disk, a file that is no model: the neighbour has to know
            if not isinstance(error, MeshError | OSError):
                _log.exception("%s failed", type(effect).__name__)
            self._forget(effect.digest)
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)  # without paths of here
            self._act(lambda engine, now: engine.inference.hosting.failed(effect.digest, why))

    def close(self) -> None:
        """End the thread, after what it does now."""
        self._thread.shutdown(cancel_futures=True)

    # --- on the thread ---------------------------------------------------------------------------------------------
    def _find(self, effect: FindStage) -> None:
        path = self._stages.find(ModelDigest(effect.digest))
        is_there = path is not None and path.stat().st_size == effect.size_bytes
        self._act(lambda engine, now: engine.inference.hosting.found(effect.digest, is_there, now))

    def _store(self, effect: StoreChunk) -> None:
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        if effect.offset == 0:
            self._forget(effect.digest)
        with self._fetched(effect.digest).open("ab") as file:
            if file.tell() == effect.offset:  # an earlier chunk of it failed otherwise
                file.write(effect.data)

    def _load(self, effect: LoadStage) -> None:
        fetched, digest = self._fetched(effect.digest), ModelDigest(effect.digest)
        path = self._stages.add_file(fetched, digest) if fetched.exists() else self._stages.find(digest)
        if path is None:
            raise FileNotFoundError("its bytes are not on the disk any more: ask again")
        spec = ModelSpec(
            stage_name(effect.model, effect.digest), path, self._how.stage_threads, digest=effect.digest,
            providers=self._how.providers, memory_limit_mib=_LEAST_MEMORY_MIB + 4 * (path.stat().st_size >> 20),
        )  # fmt: skip
        compute_ns = self._compute.add_stage(spec, effect.model)
        self._act(lambda engine, now: engine.inference.hosting.loaded(effect.digest, compute_ns, now))

    def _drop(self, effect: DropStage) -> None:
        self._forget(effect.digest)
        for name in list(self._compute.stages(hosted=True)):
            if name.endswith(f":{effect.digest[:16]}"):
                self._compute.drop_stage(name, hosted=True)

    def _forget(self, digest: str) -> None:
        with suppress(OSError):
            self._fetched(digest).unlink(missing_ok=True)

    def _fetched(self, digest: str) -> Path:
        return self._incoming / f"{digest}.onnx"
