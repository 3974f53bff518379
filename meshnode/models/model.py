"""One ONNX model, loaded: its digest, its signature, and a run that another thread can end.

Invariants:

- The bytes that were hashed are the bytes that were loaded, weights in files of their own included.
- Sessions optimise at ``ORT_ENABLE_BASIC`` unless the spec says otherwise. Parts and whole of a model give equal bits
  only at equal levels: between them, outputs differed by up to 1.2e-4.
- What its manifest declares holds for whoever asks: the shown signature is the outer one, with pictures as ``u1[?]``.
- Each run has ``RunOptions`` of its own, so that ending one doesn't end another.
- Only this module imports ONNX Runtime, and only when a model is loaded or run. So do the child processes of
  :mod:`meshnode.models.cutting`. It tells nobody what it loads.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from meshnode.models.declared.accepted import agreed
from meshnode.models.declared.golden import check_golden
from meshnode.models.elements import element_of_onnx
from meshnode.models.manifest import Manifest, manifest_path, read_manifest
from meshnode.models.preprocessing import example
from meshnode.models.providers import chosen_providers, provider_notes
from meshnode.models.signature import check_accepted, check_outputs
from meshnode.models.weights import digest_of, read_weights
from protocols.base.errors import InferenceError, InputInvalid, ModelInvalid
from protocols.base.ids import ModelDigest
from protocols.base.limits import MAX_TENSOR_DIMENSIONS, MAX_TENSORS, MAX_TEXT_CHARS, SECOND
from protocols.inference.signature import ModelSignature, TensorSignature, described
from protocols.wire.tensors import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Inputs = Mapping[str, Tensor | NDArray[Any]]
    """Arrays or wire tensors by name of the input."""
else:
    Inputs = Mapping

# Official builds of ONNX Runtime from 1.31 on note what they load and run in a database below ~/.cache and send it to
# Microsoft, unless this is set before their import. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

MAX_MODEL_BYTES: Final = 2**31 - 1
"""The largest protobuf message."""
MAX_THREADS: Final = 256
LONGEST_RUN_NS: Final = 60 * SECOND
"""Of a run that has no deadline, such as the first one on zeros."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as the configuration names it."""

    name: str
    path: Path
    threads: int = 1
    """Threads that compute one run."""
    serve: bool = True
    """Whether neighbours may have it computed here."""
    optimisation: Literal["disabled", "basic", "extended", "all"] = "basic"
    """ONNX Runtime's graph optimisation level. All nodes that share the model need the same one."""
    warm_up: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes, by input, of the zeros that the model is measured with. Needed only where it leaves a size open."""
    digest: str | None = None
    """The SHA-256 that the file must have; None: any."""
    providers: tuple[str, ...] = ("cpu",)
    """Short names of the execution providers that are tried, the preferred one first (:mod:`~.providers`)."""
    memory_limit_mib: int | None = None
    """Mebibytes that the model may take in a worker process; None: 1 GiB, and four times the size of its files."""

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise ModelInvalid(f"model {self.name!r} wants {self.threads} threads: give it 1 to {MAX_THREADS}")
        if not 1 <= len(self.name) <= MAX_TEXT_CHARS:
            raise ModelInvalid(f"model name {self.name[:40]!r} has {len(self.name)} characters: 1 to {MAX_TEXT_CHARS}")


class Cancellation:
    """A one-way switch that ends a run from another thread. It serves one run at a time; any thread may call it."""

    def __init__(self, deadline_ns: int | None = None) -> None:
        """``deadline_ns``: an instant of ``time.monotonic_ns`` at which a run in a worker process is ended; None: after
        ``LONGEST_RUN_NS``. A run in this process goes on until it is cancelled."""
        self.deadline_ns = time.monotonic_ns() + LONGEST_RUN_NS if deadline_ns is None else deadline_ns
        self.held_up: Callable[[], None] = _nothing
        """Called by a run that takes far longer than others of its model did, so that nobody has to wait for it. It may
        be called more than once."""
        self.compute_ns: int | None = None
        """How long the last runs computed, as their worker process measured it; None: they ran in this process."""
        self.ceded = False
        """Whether runs that follow one another should end after the one under way, because others have their turn."""
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._options: Any = None
        self._told: Callable[[], None] | None = None

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._event.is_set()

    def cancel(self) -> None:
        """End the run under way within one operator of the model, or keep it from starting. Idempotent."""
        with self._lock:
            self._event.set()
            if self._options is not None:
                self._options.terminate = True
            told, self._told = self._told, None
        if told is not None:
            told()

    def cede(self) -> None:
        """Let the runs that follow the one under way wait."""
        with self._lock:
            self.ceded = True
            if self._options is not None and hasattr(self._options, "cede"):
                self._options.cede()

    def when_cancelled(self, told: Callable[[], None]) -> None:
        """Call ``told`` once, on the thread that cancels. It is set before anybody can cancel."""
        self._told = told

    def forget(self) -> None:
        """The run has ended: call nobody any more. What was to be called would keep its inputs in a cycle."""
        self.held_up = _nothing
        with self._lock:
            self._told = None

    def wait(self, timeout_s: float) -> bool:
        """Sleep until cancelled or until ``timeout_s`` is over. Returns whether it was cancelled."""
        return self._event.wait(timeout_s)

    def watch(self, options: Any) -> None:
        """Set ``options.terminate`` when cancelled, as ONNX Runtime's ``RunOptions`` have it. None says that the run is
        over."""
        with self._lock:
            self._options = options
            if options is not None and self._event.is_set():
                options.terminate = True


class LoadedModel:
    """A model that is ready to run. Safe for use by several threads at once."""

    apart = False
    """Whether its runs go on a thread of their own, because it has crashed or hung."""

    def __init__(
        self,
        spec: ModelSpec,
        digest: ModelDigest,
        session: Any,
        inputs: tuple[TensorSignature, ...],
        outputs: tuple[TensorSignature, ...],
        left_out: Mapping[str, str] | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        """``inputs`` and ``outputs``: as the file has them. ``left_out``: what else it gives, and why it can't travel.

        :raises ModelInvalid: they are not what the manifest says.
        """
        self.spec = spec
        self.name = spec.name
        self.digest = digest
        self.manifest = manifest if manifest is not None else Manifest()
        """What the file beside the model says about it; without one, nothing."""
        self.accepted, self.outputs = agreed(spec.path, inputs, outputs, self.manifest)
        self.inputs = tuple(each.signature for each in self.accepted)
        self.left_out = dict(left_out or {})
        """The outputs that can't travel, by name, and why."""
        self.notes: tuple[str, ...] = ()
        """What whoever configured it should know, in whole sentences."""
        self._session = session

    @property
    def signature(self) -> ModelSignature:
        """What it takes and gives."""
        return ModelSignature(self.inputs, self.outputs)

    def check(self, inputs: Inputs) -> None:
        """Compare types and shapes of ``inputs`` with the signature; values are looked at by :meth:`run`.

        :raises InputInvalid: names the input, what is expected and what was given.
        """
        check_accepted(self.name, self.accepted, inputs)

    def check_outputs(self, wanted: Sequence[str]) -> None:
        """Check that the model has the wanted outputs. :raises InputInvalid: it lacks one, or that one can't travel."""
        check_outputs(self.name, self.outputs, wanted, self.left_out)

    def run(
        self, inputs: Inputs, outputs: Iterable[str] = (), cancel: Cancellation | None = None
    ) -> list[tuple[str, "NDArray[Any]"]]:
        """Compute, blocking, and return the wanted outputs (none named: all of them) in the order asked for. A picture
        is decoded here.

        :raises InputInvalid: inputs that don't fit the signature, a picture that can't be decoded, or an output that
            the model doesn't have.
        :raises InferenceError: the model failed on these values, or ``cancel`` ended it.
        """
        import numpy as np

        wanted = tuple(outputs) or tuple(signature.name for signature in self.outputs)
        self.check_outputs(wanted)
        self.check(inputs)
        cancel = cancel or Cancellation()
        try:
            # A tensor from the wire lies in its frame at any address; operators may load it by aligned instructions.
            feeds = {name: np.require(value, requirements=("C", "A")) for name, value in inputs.items()}
        except (TypeError, ValueError) as error:
            raise InputInvalid(f"inputs of model {self.name!r} can't be taken as arrays: {error}") from error
        for accepted in self.accepted:
            feeds[accepted.tensor.name] = accepted.fed(self.name, feeds[accepted.tensor.name])
        return list(zip(wanted, self._compute(feeds, wanted, cancel), strict=True))

    def run_each(
        self, runs: "Sequence[Inputs]", outputs: Iterable[str], cancel: Cancellation
    ) -> list[list[tuple[str, "NDArray[Any]"]]]:
        """Compute one after the other, and return what each of them gave. It is fewer than were wanted when ``cancel``
        was told to cede, or its deadline has passed. The errors are those of :meth:`run`."""
        wanted = tuple(outputs)
        given: list[list[tuple[str, NDArray[Any]]]] = []
        for inputs in runs:
            if given and cancel.cancelled:
                raise InferenceError(f"the run of model {self.name!r} was cancelled")
            if given and (cancel.ceded or time.monotonic_ns() >= cancel.deadline_ns):
                break
            given.append(self.run(inputs, wanted, cancel))
        return given

    def _compute(self, feeds: dict[str, Any], wanted: tuple[str, ...], cancel: Cancellation) -> list[Any]:
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = _LOG_FATAL
        cancel.watch(options)
        try:
            # Options whose ``terminate`` is set already end the run before its first operator.
            arrays: list[Any] = self._session.run(wanted, feeds, options)
        except Exception as error:  # ONNX Runtime's own classes share no base but Exception
            if cancel.cancelled:
                raise InferenceError(f"the run of model {self.name!r} was cancelled") from error
            if type(error).__name__ == "InvalidArgument":
                raise InputInvalid(f"model {self.name!r} refused its inputs: {_one_line(error)}") from error
            raise InferenceError(f"model {self.name!r} failed on these inputs: {_one_line(error)}") from error
        finally:
            cancel.watch(None)
        return arrays

    def zeros(self) -> dict[str, "NDArray[Any]"] | None:
        """Inputs of zeros to measure the model with, or None when it leaves sizes open that ``warm_up`` doesn't give.
        For an input that takes a picture, and has no shape in ``warm_up``, it is a grey one.

        An open first dimension is taken as a batch of 1. What may have any shape is tried as a number, because it may
        be one, and is open if the model does not take that.

        :raises ModelInvalid: ``warm_up`` names no input of the model, or gives a shape that doesn't fit.
        """
        import numpy as np

        zeros: dict[str, NDArray[Any]] = {}
        for accepted in self.accepted:
            signature, given = accepted.tensor, self.spec.warm_up.get(accepted.tensor.name)
            if accepted.steps is not None and given is None:
                zeros[signature.name] = np.frombuffer(example(accepted.steps), np.uint8)
                continue
            leading = tuple(1 if size is None else size for size in signature.shape[:1])
            shape = given if given is not None else (*leading, *signature.shape[1:])
            if None in shape:
                return None
            zeros[signature.name] = np.zeros(shape, signature.dtype)  # type: ignore[arg-type]
        try:
            unknown = {name: Tensor("u1", (0,), memoryview(b"")) for name in self.spec.warm_up if name not in zeros}
            self.check({**zeros, **unknown})
        except InputInvalid as error:
            raise ModelInvalid(f"'warm_up' of model {self.name!r} doesn't fit it: {error}") from error
        if any(each.tensor.has_any_shape and each.tensor.name not in self.spec.warm_up for each in self.accepted):
            try:
                self.run(zeros)
            except InferenceError:
                return None
        return zeros

    def __repr__(self) -> str:
        takes = ", ".join(map(str, self.inputs))
        gives = ", ".join(map(str, self.outputs))
        return f"<model {self.name!r} {self.digest[:12]}: ({takes}) -> ({gives})>"


@dataclass(frozen=True, slots=True)
class ModelContent:
    """The files of a model, read once."""

    content: bytes
    weights: Mapping[str, bytes]
    """The files with weights beside it, by name."""
    manifest: Manifest
    digest: ModelDigest
    """Of all of it together."""


def read_model(spec: ModelSpec) -> ModelContent:
    """Read and hash a model with its manifest.

    :raises ModelInvalid: a file is missing or can't be read, the manifest is wrong, or the digest is not that of the
        spec.
    """
    content = _read(spec)
    try:
        weights, manifest = read_weights(spec.path, content), read_manifest(spec.path)
    except ModelInvalid as error:
        raise ModelInvalid(f"model {spec.name!r}: {error}") from error
    digest = digest_of(content, weights, manifest.results())
    if spec.digest is not None and digest != spec.digest:
        raise ModelInvalid(
            f"model {spec.name!r}: {spec.path} has the digest {digest}, not {spec.digest}: copy the file that is "
            "meant, with its manifest, or correct 'digest'"
        )
    return ModelContent(content, weights, manifest, digest)


def session_options(spec: ModelSpec, weights: Mapping[str, bytes]) -> Any:
    """ONNX Runtime's options for a session of a model whose files with weights were read already.

    :raises ModelInvalid: this ONNX Runtime can't take such files from memory.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = "ORT_DISABLE_ALL" if spec.optimisation == "disabled" else f"ORT_ENABLE_{spec.optimisation.upper()}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    # Spinning threads took a whole core between two runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _LOG_FATAL
    if weights:
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise ModelInvalid(
                f"model {spec.name!r} has weights in files of their own, which onnxruntime {onnxruntime.__version__} "
                "can't load: update it, or export the model in one file"
            )
        buffers = list(weights.values())
        options.add_external_initializers_from_files_in_memory(list(weights), buffers, list(map(len, buffers)))
    return options


def load_model(spec: ModelSpec) -> LoadedModel:
    """Read, hash and prepare a model with its manifest, and run its golden vectors. That takes milliseconds to seconds,
    and memory of about twice the file.

    :raises ModelInvalid: the file is missing, unreadable, not ONNX, or needs what this node can't do; its manifest is
        wrong or describes another model, or a golden vector differs; the message says which.
    """
    read = read_model(spec)
    import onnxruntime

    options = session_options(spec, read.weights)
    providers, notes = chosen_providers(spec.providers, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(read.content, options, providers=providers)
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception
        raise explained(spec, error) from error
    inputs, _ = _signatures(spec, "input", session.get_inputs())
    outputs, left_out = _signatures(spec, "output", session.get_outputs(), may_leave_out=True)
    try:
        model = LoadedModel(spec, read.digest, session, inputs, outputs, left_out, read.manifest)
        check_golden(read.manifest.golden, manifest_path(spec.path), model.run)
    except ModelInvalid as error:
        raise ModelInvalid(f"model {spec.name!r}: {error}") from error
    model.notes = (*notes, *provider_notes(providers, session.get_providers()))
    return model


def _nothing() -> None:
    """Nobody waits behind the run."""


_UNKNOWN_OPERATOR: Final = ("No Op registered", "ValidateOpsetForDomain", "is not a registered function/op")
"""What ONNX Runtime says about operators that it doesn't have."""
_LOG_FATAL = 4
"""Errors are raised. At a lower level ONNX Runtime prints them to the terminal too."""


def _read(spec: ModelSpec) -> bytes:
    try:
        size_bytes = spec.path.stat().st_size
        if size_bytes > MAX_MODEL_BYTES:
            raise ModelInvalid(
                f"model {spec.name!r}: {spec.path} has {size_bytes} bytes, more than ONNX allows: split it"
            )
        content = spec.path.read_bytes()
    except FileNotFoundError as error:
        raise ModelInvalid(f"model {spec.name!r}: there is no file {spec.path}: correct its path") from error
    except OSError as error:
        raise ModelInvalid(
            f"model {spec.name!r}: {spec.path} can't be read ({error.strerror}): check that it is a file of yours"
        ) from error
    if not content:
        raise ModelInvalid(f"model {spec.name!r}: {spec.path} is empty: copy it again")
    return content


def explained(spec: ModelSpec, error: Exception) -> ModelInvalid:
    """What ONNX Runtime says when it can't load a model, in our words."""
    kind, whole, text = type(error).__name__, str(error), _one_line(error)
    if kind == "InvalidProtobuf":
        return ModelInvalid(f"model {spec.name!r}: {spec.path} is not an ONNX file, or it is cut off: export it again")
    if kind == "NotImplemented" or any(words in whole for words in _UNKNOWN_OPERATOR):
        return ModelInvalid(
            f"model {spec.name!r}: {spec.path} uses operators that this ONNX Runtime doesn't have "
            f"({text}): export it for an older operator set, or update onnxruntime"
        )
    return ModelInvalid(
        f"model {spec.name!r}: {spec.path} can't be loaded ({text}): check the export with another tool"
    )


def _signatures(
    spec: ModelSpec, what: str, described_by_session: list[Any], may_leave_out: bool = False
) -> tuple[tuple[TensorSignature, ...], dict[str, str]]:
    """The signatures of the inputs or outputs of a model; ``what``: which. Also which outputs can't travel, and why."""
    if len(described_by_session) > MAX_TENSORS:
        raise ModelInvalid(
            f"model {spec.name!r} has {len(described_by_session)} {what}s: at most {MAX_TENSORS} can travel"
        )
    signatures, left_out = [], {}
    for tensor in described_by_session:
        try:
            element = element_of_onnx(tensor.type)
        except ModelInvalid as error:
            left_out[tensor.name] = str(error)
            continue
        shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in tensor.shape)
        if len(shape) > MAX_TENSOR_DIMENSIONS or len(tensor.name) > MAX_TEXT_CHARS:
            raise ModelInvalid(
                f"model {spec.name!r}, {what} {tensor.name[:80]!r} of {described(element.short, shape)}: at most "
                f"{MAX_TENSOR_DIMENSIONS} dimensions and {MAX_TEXT_CHARS} characters of name can travel"
            )
        names = tuple(size if isinstance(size, str) else "" for size in tensor.shape)
        signatures.append(TensorSignature(tensor.name, element.short, shape, names if any(names) else ()))
    for name, why in left_out.items():
        if not may_leave_out or not signatures:
            raise ModelInvalid(f"model {spec.name!r}, {what} {name!r}: {why}")
    return tuple(signatures), left_out


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:100]} … {text[-200:]}"  # the end says what is wrong
