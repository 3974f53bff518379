"""Golden vectors: inputs whose outputs are known, run before a model is used.

They find what no signature shows: another file of the same shape, colours in the wrong order, a library that computes
something else.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.models.manifest import Golden
from protocols.base.errors import InferenceError, ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FILE_BYTES: Final = 256 * 1024 * 1024


def check_golden(
    vectors: Sequence[Golden],
    manifest: Path,
    run: "Callable[[Mapping[str, NDArray[Any]], Sequence[str]], Sequence[tuple[str, NDArray[Any]]]]",
) -> None:
    """Run the vectors of a manifest, whose files are in its folder. ``run``: computes the named outputs of inputs.

    :raises ModelInvalid: a file can't be read, the model can't compute it, or an output differs; names the vector, the
        output and the first value that differs.
    """
    for number, vector in enumerate(vectors):
        folder, key = manifest.parent, f"{manifest}: golden[{number}]"
        inputs = {name: read_array(folder / file, f"{key}.inputs.{name}") for name, file in vector.inputs.items()}
        wanted = {name: read_array(folder / file, f"{key}.outputs.{name}") for name, file in vector.outputs.items()}
        try:
            outputs = run(inputs, tuple(wanted))
        except InferenceError as error:
            raise ModelInvalid(f"{key} can't be computed: {error}") from error
        for name, given in outputs:
            if difference := _difference(given, wanted[name], vector):
                raise ModelInvalid(
                    f"{key}: output {name!r} {difference}: this is not the model that the manifest describes, or it "
                    f"computes something else here; if it is right, save {vector.outputs[name]} again"
                )


def read_array(path: Path, key: str) -> "NDArray[Any]":
    """An array from a ``.npy`` file; any other file as the bytes that it holds. ``key``: who names it.

    :raises ModelInvalid: it can't be read, is too large, or is no array of numbers.
    """
    import numpy as np

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelInvalid(f"{key}: {path} is larger than {MAX_FILE_BYTES} bytes: give a smaller one")
        content = path.read_bytes()
    except OSError as error:
        raise ModelInvalid(f"{key}: {path} can't be read ({error.strerror}): copy it there") from error
    if path.suffix != ".npy":
        return np.frombuffer(content, np.uint8)
    try:
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy's parser of the head raises anything
        raise ModelInvalid(f"{key}: {path} is not a .npy file of numbers: save it again") from error
    return array


def _difference(given: "NDArray[Any]", wanted: "NDArray[Any]", vector: Golden) -> str:
    """How an output differs from what is expected; empty when it does not."""
    import numpy as np

    if given.dtype != wanted.dtype or given.shape != wanted.shape:
        return f"is {given.dtype}{list(given.shape)} and not {wanted.dtype}{list(wanted.shape)}"
    close = np.isclose(given, wanted, rtol=vector.rtol, atol=vector.atol, equal_nan=True)
    if close.all():
        return ""
    at = np.unravel_index(int(np.argmin(close)), close.shape)
    share = f"{close.size - np.count_nonzero(close)} of {close.size} values"
    return f"is {given[at]} at {[int(index) for index in at]} and not {wanted[at]} ({share} differ)"
