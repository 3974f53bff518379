"""Where results go: files that appear whole or not at all, and JSON."""

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from meshnode.inference.console.inputs import GivenInput
from protocols.base.errors import InputInvalid, LocalProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[Any]]


def make_folder(folder: Path, inputs: Iterable[GivenInput]) -> None:
    """Make the folder for results.

    :raises LocalProtocolError: it can't be made. :raises InputInvalid: inputs lie in it, which results could replace.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalProtocolError(f"--out {folder} can't be made ({error.strerror}): choose another place") from error
    files = (value for each in inputs for value in each.values if isinstance(value, Path))
    if any(file.parent.resolve() == folder.resolve() for file in files):
        raise InputInvalid(f"--out {folder} is a folder of inputs, which results could replace: choose another one")


def save_in(folder: Path, name: str, outputs: "Outputs") -> Path:
    """Save the outputs of one request: a single one as ``.npy``, several as ``.npz``. Returns the file."""
    if len(outputs) == 1:
        (array,) = outputs.values()
        return save_array(folder / f"{name}.npy", array)
    return _written(folder / f"{name}.npz", lambda file: _write_npz(file, outputs))


def save_array(path: Path, array: "NDArray[Any]") -> Path:
    """Save one array as ``.npy``. :raises LocalProtocolError: it can't be written."""
    return _written(path, lambda file: _write_npy(file, array))


def _written(path: Path, write: Callable[[IO[bytes]], None]) -> Path:
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            with part.open("wb") as file:
                write(file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise LocalProtocolError(f"{path} can't be written ({error.strerror}): choose another place") from error
    return path


def _write_npy(file: IO[bytes], array: "NDArray[Any]") -> None:
    import numpy as np

    np.lib.format.write_array(file, array, allow_pickle=False)


def _write_npz(file: IO[bytes], outputs: "Outputs") -> None:
    with zipfile.ZipFile(file, "w") as archive:  # np.savez refuses an output with the name "file"
        for name, array in outputs.items():
            content = io.BytesIO()
            _write_npy(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())


def listed(outputs: "Outputs") -> dict[str, Any]:
    """Outputs for JSON. Numbers that are not finite become null, because JSON has no others."""
    return {
        name: {"dtype": array.dtype.str.lstrip("<|"), "shape": list(array.shape), "data": _finite(array)}
        for name, array in outputs.items()
    }


def _finite(array: "NDArray[Any]") -> Any:
    import numpy as np

    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()
