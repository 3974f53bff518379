"""Descriptions and stages of models in a folder: made once in a child process, then read from disk.

Invariants:

- A description holds for a model, the shapes of its inputs, a level of optimisation and a version of ONNX Runtime. All
  of that is in the name of its file.
- What is read is checked: stages and graphs against their digests, descriptions by parsing. What is wrong is removed
  and made again.
- Every stage that is handed out was run in a chain from the first to the last node, and the chain gave the same bits
  as the whole model, or no more than the error that its manifest allows where boundaries are rounded.
"""

import hashlib
import importlib.metadata
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from meshnode.models.cutting.child import ask_child
from meshnode.models.cutting.description import CutDescription, StageFile
from meshnode.models.cutting.kept import KeptFiles
from meshnode.models.cutting.manifests import read_stage_manifest
from meshnode.models.cutting.orders import (
    GRAPH_FILE,
    DescribedReply,
    DescribeOrder,
    MadeStage,
    StagesOrder,
    StagesReply,
    cut_model,
)
from meshnode.models.model import MAX_MODEL_BYTES, ModelSpec, read_model
from meshnode.models.weights import digest_of, size_with_weights, with_results
from protocols.base.errors import InputInvalid, ModelInvalid, StorageError
from protocols.base.ids import ModelDigest

DEFAULT_MAX_BYTES: Final = 4 << 30
DEFAULT_LIMIT_S: Final = 600.0
"""A model of two gigabytes from a slow memory card, of which chains are run."""
_FORMAT: Final = 1
"""Changes when descriptions or stages of the same model change."""
_PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")

_T = TypeVar("_T")


class _Described(Struct, frozen=True):
    """A description on disk."""

    description: CutDescription
    graph_digest: str


_DESCRIBED: Final = msgspec.json.Decoder(_Described)
_MADE: Final = msgspec.json.Decoder(MadeStage)


class _Subject(Struct, frozen=True):
    """What a description is of."""

    spec: ModelSpec
    digest: ModelDigest
    key: str
    """Begins the names of its files."""


class StageFolder:
    """Cuts models, and keeps what it made in a folder. Its methods may be called from any thread; they block, for
    seconds when a model is cut for the first time."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES, limit_s: float = DEFAULT_LIMIT_S) -> None:
        """``limit_s``: how long one child process may take."""
        self._files, self._limit_s = KeptFiles(folder, max_bytes), limit_s
        self._end = threading.Event()
        self._lock = threading.RLock()
        """Held while a child works: two would take the memory of two."""

    def close(self) -> None:
        """End the child process that works, and start no other."""
        self._end.set()

    # --- files of stages -------------------------------------------------------------------------------------------
    def find(self, digest: ModelDigest) -> Path | None:
        """The file of a stage, whoever made it; None: there is none whose bytes have this digest."""
        hashed, manifest = self._files.hashed(f"{digest}.onnx"), self._files.read(f"{digest}.toml") or b""
        if hashed is None:
            return None
        try:
            if with_results(hashed, read_stage_manifest(manifest.decode()).results()) == digest:
                return self._files.folder / f"{digest}.onnx"
        except (ModelInvalid, UnicodeDecodeError):
            pass
        self._files.remove(f"{digest}.onnx", f"{digest}.toml")
        return None

    def add(self, content: bytes, digest: ModelDigest, manifest: str = "") -> Path:
        """Keep a stage that was made elsewhere. ``manifest``: as ``StageFile.manifest``.

        :raises ModelInvalid: it has another digest. :raises StorageError: it can't be written, or is too large.
        """
        if (have := stage_digest(content, manifest)) != digest:
            raise ModelInvalid(f"a stage has the digest {have}, not {digest}: fetch it again, with its manifest")
        self._files.check_size(len(content))
        with self._files.in_the_making() as work:
            made = [self._put(work, f"{digest}.toml", manifest.encode())] if manifest else []
            made.append(self._put(work, f"{digest}.onnx", content))
        self._files.shrink(made)
        return self._files.folder / f"{digest}.onnx"

    def add_file(self, fetched: Path, digest: ModelDigest) -> Path:
        """Keep a stage without a manifest that was fetched into ``DIGEST.onnx`` below the folder. The file is moved.

        :raises ModelInvalid: it has another digest. :raises StorageError: it can't be read or moved, or is too large.
        """
        try:
            with fetched.open("rb") as file:
                have, size_bytes = hashlib.file_digest(file, "sha256").hexdigest(), fetched.stat().st_size
        except OSError as error:
            raise StorageError(f"the stage {digest} can't be read ({error.strerror}): fetch it again") from error
        if have != digest:
            raise ModelInvalid(f"a stage has the digest {have}, not {digest}: fetch it again")
        self._files.check_size(size_bytes)
        made = self._files.take(fetched)
        self._files.shrink((made.name,))
        return made

    # --- cutting ---------------------------------------------------------------------------------------------------
    def describe(self, spec: ModelSpec) -> CutDescription:
        """The cuts of a model.

        :raises ModelInvalid: it can't be loaded, leaves sizes of its inputs open that ``warm_up`` does not give, or
            can't be cut for another reason; the message says which. A model without cuts is no error.
        :raises StorageError: the folder can't be written.
        """
        return self._described(self._subject(spec))[0].description

    def stage(self, spec: ModelSpec, first: int | None, last: int | None) -> StageFile:
        """The stage from cut ``first`` to cut ``last`` of the description. None stands for the begin or the end of the
        model.

        :raises InputInvalid: there are no such cuts, or not in this order.
        :raises ModelInvalid: as :meth:`describe`, or its stages do not compute the same.
        :raises StorageError: the folder can't be written, or the stage is too large for it.
        """
        chain = [cut for cut in (first, last) if cut is not None]
        return self._stages(spec, chain, only=0 if first is None else 1)[0]

    def stages(self, spec: ModelSpec, cuts: Sequence[int]) -> tuple[StageFile, ...]:
        """The chain of stages between these cuts of the description, from the begin of the model to its end: one more
        than there are cuts. :raises: as :meth:`stage`."""
        return self._stages(spec, cuts)

    def check(self, spec: ModelSpec, cuts: Sequence[int]) -> None:
        """Make that chain afresh, and compare it with the whole model again, bit for bit.

        :raises ModelInvalid: an output differs, or as :meth:`stage`.
        """
        subject = self._subject(spec)
        with self._lock:
            self._make(subject, tuple(cuts), None)

    def _stages(self, spec: ModelSpec, cuts: Sequence[int], only: int | None = None) -> tuple[StageFile, ...]:
        subject, wanted = self._subject(spec), tuple(cuts)
        with self._lock:
            found = [self._known_stage(subject, *pair) for pair in _picked(_pairs(wanted), only)]
            stages = [stage for stage in found if stage is not None]
            return tuple(stages) if len(stages) == len(found) else self._make(subject, wanted, only)

    # --- what is on disk -------------------------------------------------------------------------------------------
    def _subject(self, spec: ModelSpec) -> _Subject:
        with suppress(OSError):  # reading it says what is wrong
            if (size_bytes := size_with_weights(spec.path)) > MAX_MODEL_BYTES:
                raise ModelInvalid(
                    f"model {spec.name!r} has {size_bytes} bytes with its weights: models of at most "
                    f"{MAX_MODEL_BYTES} can be cut, so run it whole"
                )
        read = read_model(spec)
        shapes = {name: list(shape) for name, shape in spec.warm_up.items()}
        # Pictures give shapes too; they are counted in the digest.
        told = [_FORMAT, read.digest, shapes, spec.optimisation, spec.providers, spec.threads, _runtime_version()]
        if (rules := read.manifest.split).boundary != "raw":
            told += [rules.boundary, rules.boundary_error]
        key = hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()
        return _Subject(spec, read.digest, f"{read.digest[:16]}-{key[:32]}")

    def _described(self, subject: _Subject) -> tuple[_Described, Path]:
        """The description and the file of the graph, from disk or made now."""
        name = f"{subject.key}.json"
        with self._lock:
            held = self._parsed(name, _DESCRIBED)
            if held is not None and held.description.digest == subject.digest:
                if (graph := self.find(ModelDigest(held.graph_digest))) is not None:
                    return held, graph
            with self._files.in_the_making() as work:
                order = DescribeOrder(cut_model(subject.spec, subject.digest, work))
                reply = ask_child(order, self._limit_s, self._end)
                assert isinstance(reply, DescribedReply)
                held = _Described(reply.description, reply.graph_digest)
                made_graph = (work / GRAPH_FILE).rename(work / f"{reply.graph_digest}.onnx")
                made = (self._files.take(made_graph).name, self._put(work, name, msgspec.json.encode(held)))
            self._files.shrink(made)
            return held, self._files.folder / made[0]

    def _known_stage(self, subject: _Subject, first: int | None, last: int | None) -> StageFile | None:
        held = self._parsed(_stage_name(subject, first, last), _MADE)
        path = self.find(held.digest) if held is not None else None
        return _as_file(held, path) if held is not None and path is not None else None

    def _parsed(self, name: str, decoder: "msgspec.json.Decoder[_T]") -> _T | None:
        content = self._files.read(name)
        if content is None:
            return None
        try:
            return decoder.decode(content)
        except msgspec.MsgspecError:
            self._files.remove(name)
            return None

    def _make(self, subject: _Subject, cuts: tuple[int, ...], only: int | None) -> tuple[StageFile, ...]:
        """Have a chain made and checked, and keep its stages; ``only``: one of them."""
        held, graph = self._described(subject)
        known = held.description
        _check_cuts(subject.spec.name, cuts, len(known.cuts))
        with self._files.in_the_making() as work:
            order = StagesOrder(
                cut_model(subject.spec, subject.digest, work), str(graph.absolute()),
                tuple(each.name for each in known.inputs), tuple(each.name for each in known.outputs),
                (*(known.cuts[cut].at for cut in cuts), known.nodes),
            )  # fmt: skip
            reply = ask_child(order, self._limit_s, self._end)
            assert isinstance(reply, StagesReply)
            made: list[str] = []
            stages = []
            pairs = _pairs(cuts)
            for stage, pair in _picked(list(zip(reply.stages, pairs, strict=True)), only):
                if stage.manifest:
                    made.append(self._files.take(work / f"{stage.digest}.toml").name)
                path = self._files.take(work / f"{stage.digest}.onnx")
                made += [path.name, self._put(work, _stage_name(subject, *pair), msgspec.json.encode(stage))]
                stages.append(_as_file(stage, path))
        self._files.shrink(made)
        return tuple(stages)

    def _put(self, work: Path, name: str, content: bytes) -> str:
        return self._files.take(self._files.written(work / name, content)).name


def stage_digest(content: bytes, manifest: str = "") -> ModelDigest:
    """The digest of a stage: that of a model with this file and this manifest.

    :raises ModelInvalid: the manifest is not valid.
    """
    return digest_of(content, {}, read_stage_manifest(manifest).results())


def _as_file(stage: MadeStage, path: Path) -> StageFile:
    return StageFile(
        stage.digest, str(path), stage.size_bytes, stage.inputs, stage.outputs, stage.manifest, stage.error
    )  # fmt: skip


def _pairs(cuts: Sequence[int]) -> list[tuple[int | None, int | None]]:
    return list(zip((None, *cuts), (*cuts, None), strict=True))


def _picked(values: Sequence[_T], only: int | None) -> Sequence[_T]:
    return values if only is None else values[only : only + 1]


def _stage_name(subject: _Subject, first: int | None, last: int | None) -> str:
    begin, end = ("" if cut is None else str(cut) for cut in (first, last))
    return f"{subject.key}-{begin}-{end}.json"


def _check_cuts(model: str, cuts: Sequence[int], count: int) -> None:
    for before, cut in zip((-1, *cuts), cuts, strict=False):
        if not 0 <= cut < count:
            has = f"it has the cuts 0 to {count - 1}" if count else "it has none and runs whole"
            raise InputInvalid(f"model {model!r} has no cut {cut}: {has}")
        if cut <= before:
            raise InputInvalid(
                f"cuts {', '.join(map(str, cuts))} of model {model!r} are not in order: give them rising"
            )


def _runtime_version() -> str:
    for package in _PACKAGES:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
