"""Arrays from files and from JSON. Nothing in a file is executed, and sizes are bounded before memory is taken."""

import io
import json
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAY_SUFFIXES: Final = frozenset((".npy", ".npz", ".json"))
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""A node takes no larger request."""


def read_file(name: str, path: Path) -> bytes:
    """The content of a file for the input ``name``. :raises InputInvalid: it can't be read, or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputInvalid(f"input {name!r}: {path} can't be read ({error.strerror}): correct the path") from error
    if len(content) > MAX_FILE_BYTES:
        raise InputInvalid(f"input {name!r}: {path} is larger than {MAX_FILE_BYTES} bytes: give a smaller one")
    return content


def bytes_of(name: str, path: Path) -> "NDArray[Any]":
    """A file as it is: ``u1[n]``. :raises InputInvalid: as :func:`read_file`, or it is empty."""
    import numpy as np

    content = read_file(name, path)
    if not content:
        raise InputInvalid(f"input {name!r}: {path} is empty: copy it again")
    return np.frombuffer(content, np.uint8)


def from_npy(name: str, path: Path) -> "NDArray[Any]":
    """The array in a ``.npy`` file. :raises InputInvalid: it is damaged, or has no numbers."""
    return _parsed(name, path, io.BytesIO(read_file(name, path)))


def from_npz(name: str, path: Path) -> "NDArray[Any]":
    """The array ``name`` of a ``.npz`` file, or its only one. :raises InputInvalid: there is none, or as
    :func:`from_npy`."""
    content = io.BytesIO(read_file(name, path))
    try:
        with zipfile.ZipFile(content) as archive:
            members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
            member = members.get(name) or (next(iter(members.values())) if len(members) == 1 else None)
            if member is None:
                found = ", ".join(map(repr, list(members)[:20])) or "none"
                raise InputInvalid(
                    f"input {name!r}: {path} has no array of that name, only {found}: name one of them as the input"
                )
            if member.file_size > MAX_FILE_BYTES:
                raise InputInvalid(f"input {name!r}: {path} unpacks to more than {MAX_FILE_BYTES} bytes")
            with archive.open(member) as file:
                return _parsed(name, path, io.BytesIO(file.read(MAX_FILE_BYTES)))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputInvalid(f"input {name!r}: {path} is not a .npz file ({error}): save it again") from error


def _parsed(name: str, path: Path, file: io.BytesIO) -> "NDArray[Any]":
    import numpy as np

    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError, TypeError) as error:
        raise InputInvalid(
            f"input {name!r}: {path} is not a NumPy file of numbers ({_one_line(error)}): save it again"
        ) from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InputInvalid(f"input {name!r}: {path} has elements of type {array.dtype}: convert them to numbers")
    little: NDArray[Any] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return little


def from_json(name: str, text: str, datatype: str | None, shape: tuple[int, ...] | None) -> "NDArray[Any]":
    """An array of the type that the input takes. Flat numbers get its shape when that leaves one size open at most.

    :raises InputInvalid: it is not JSON of an array of numbers, or a number is not of the type.
    """
    import numpy as np

    from meshnode.models import element_of_open_inference

    try:
        array = np.array(json.loads(text, parse_constant=_no_number))
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputInvalid(
            f"input {name!r}: {text[:40]!r} is neither a file that can be read (.npy .npz .json, an image) nor JSON of "
            f"an array ({_one_line(error)})"
        ) from error
    if array.dtype.kind not in "biuf":
        raise InputInvalid(f"input {name!r}: the JSON has elements that are not numbers, or rows of different lengths")
    if datatype is None:
        typed = array.astype("f4") if array.dtype.kind == "f" else array
    else:
        with np.errstate(all="ignore"):
            typed = array.astype(element_of_open_inference(datatype).short)
    if not _holds(array, typed):
        raise InputInvalid(f"input {name!r}: the JSON has numbers that {datatype or 'FP32'} can't hold: correct them")
    if shape is not None and typed.ndim != len(shape) and shape.count(-1) <= 1:
        fixed = prod(size for size in shape if size >= 0)
        if typed.size == fixed or (-1 in shape and fixed and typed.size % fixed == 0):
            return typed.reshape(shape)
    return typed


def _holds(array: "NDArray[Any]", typed: "NDArray[Any]") -> bool:
    """Whether the type holds the numbers: floats may lose digits, but nothing else may change."""
    import numpy as np

    if typed.dtype.kind == "f":
        return bool(np.isfinite(typed).all())
    return bool(np.array_equal(array, typed))


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
