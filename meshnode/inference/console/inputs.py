"""What ``--input NAME[:TYPE]=VALUE`` names: one value, or the files of a folder or a pattern, one for each request.

An input with one value has it in every request. Inputs with several values must have equally many, and the first value
of each goes into the first request. Files of a folder are taken in the order of their names.
"""

import glob
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from meshnode.inference.console.arrays import ARRAY_SUFFIXES, bytes_of, from_json, from_npy, from_npz, read_file
from meshnode.inference.console.pictures import PICTURE_SUFFIXES, from_picture
from protocols.base.errors import InputInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FILES: Final = 100_000
"""Files of one input. Their paths and the report of each request are kept."""
_SUFFIXES: Final = ARRAY_SUFFIXES | PICTURE_SUFFIXES
_PATTERN: Final = re.compile(r"[*?\[]")
_SHOWN_NAMES: Final = 10


class Wants(NamedTuple):
    """The type that an input takes, as the Open Inference Protocol has it."""

    datatype: str | None
    """None: the node does not know."""
    shape: tuple[int, ...] | None
    """-1 stands for any size. None: the node does not know."""

    @property
    def is_encoded(self) -> bool:
        """Whether it takes a file of any length, byte by byte: ``u1[?]``."""
        return self.datatype == "UINT8" and self.shape == (-1,)


@dataclass(frozen=True, slots=True)
class GivenInput:
    """An input of a model, with its values."""

    name: str
    wants: Wants
    is_bytes: bool
    """Whether files are sent as they are (``NAME:bytes=FILE``)."""
    values: tuple[Path | str, ...]
    """Files, or JSON."""


@dataclass(frozen=True, slots=True)
class FileRequest:
    """One request, whose files are not read yet."""

    name: str
    """For messages and for the file with its results."""
    values: tuple[tuple[GivenInput, Path | str], ...]


def given_inputs(model: str, texts: Iterable[str], takes: Sequence[Mapping[str, Any]]) -> tuple[GivenInput, ...]:
    """Parse the options. ``takes``: the inputs of the model as the node describes them; empty when it does not know.

    :raises click.UsageError: one is not of the form. :raises InputInvalid: it names nothing, or no input of the model.
    """
    known = {each["name"]: Wants(each["datatype"], tuple(each["shape"])) for each in takes}
    values: dict[str, list[Path | str]] = {}
    types: dict[str, str | None] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise click.UsageError(f"--input {text!r} is not NAME=VALUE, as in --input x=frame.npy")
        name, kind = _split_type(name)
        if known and name not in known:
            raise InputInvalid(f"model {model!r} has no input {name[:80]!r}: it takes {', '.join(map(repr, known))}")
        if types.setdefault(name, kind) != kind:
            raise click.UsageError(f"input {name!r} is given with two types: give all its values the same")
        values.setdefault(name, []).extend(_values(name, value, kind == "bytes"))
    return tuple(
        GivenInput(name, _wants(known.get(name), types[name]), types[name] == "bytes", tuple(each))
        for name, each in values.items()
    )


def _split_type(name: str) -> tuple[str, str | None]:
    """``x:f4`` is the input ``x`` given as ``f4``; other colons belong to the name."""
    from meshnode.models import ELEMENTS

    before, _, last = name.rpartition(":")
    is_type = last == "bytes" or any(element.short == last for element in ELEMENTS)
    return (before, last) if before and is_type else (name, None)


def _wants(known: Wants | None, kind: str | None) -> Wants:
    from meshnode.models import element_of_short

    if kind is None or kind == "bytes":
        return known or Wants(None, None)
    return Wants(element_of_short(kind).open_inference, known.shape if known is not None else None)


def _values(name: str, value: str, is_bytes: bool) -> Sequence[Path | str]:
    if value.lstrip().startswith(("[", "{")) and not is_bytes:
        return [value]
    path = Path(value)
    try:
        if path.is_dir():
            return _of_folder(name, path, is_bytes)
        is_file = path.exists()
    except OSError:  # too long for a name
        return [value]
    if _PATTERN.search(value) and not is_file:
        matches = (Path(each) for each in glob.iglob(value))  # noqa: PTH207 - it matches as a shell does
        found = list(itertools.islice((each for each in matches if each.is_file()), MAX_FILES + 1))
        found.sort()
        return _bounded(name, found, f"no file matches {value}")
    return [path] if is_bytes or is_file or path.suffix.lower() in _SUFFIXES else [value]


def _of_folder(name: str, folder: Path, is_bytes: bool) -> Sequence[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputInvalid(f"input {name!r}: {folder} can't be listed ({error.strerror}): correct the path") from error
    if is_bytes:
        return _bounded(name, files, f"{folder} has no files")
    found = [path for path in files if path.suffix.lower() in _SUFFIXES]
    if found and len(found) < len(files):
        left_out = f"{len(files) - len(found)} of {len(files)} files in {folder} are left out"
        click.echo(f"input {name}: {left_out}, because their endings are unknown", err=True)
    return _bounded(name, found, f"{folder} has no files that can be read ({' '.join(sorted(_SUFFIXES))})")


def _bounded(name: str, found: Sequence[Path], nothing: str) -> Sequence[Path]:
    if not found:
        raise InputInvalid(f"input {name!r}: {nothing}: correct the path")
    if len(found) > MAX_FILES:
        raise InputInvalid(f"input {name!r} has more than {MAX_FILES} files: give fewer at a time")
    return found


def requests_of(inputs: Sequence[GivenInput]) -> list[FileRequest]:
    """The requests, each with a name of its own.

    :raises InputInvalid: inputs with several values have different numbers of them.
    """
    several = [each for each in inputs if len(each.values) > 1]
    counts = {len(each.values) for each in several}
    if len(counts) > 1:
        told = ", ".join(f"{each.name!r} has {len(each.values)}" for each in several[:_SHOWN_NAMES])
        raise InputInvalid(f"the inputs have different numbers of values ({told}): give each one value or equally many")
    count = counts.pop() if counts else 1
    first = (several or inputs)[0].values
    return [
        FileRequest(name, tuple((each, each.values[at if len(each.values) > 1 else 0]) for each in inputs))
        for at, name in enumerate(_names(first[:count]))
    ]


def _names(values: Sequence[Path | str]) -> list[str]:
    """``frame7`` for ``frames/frame7.jpg``; with its number when it is JSON, or when another one has the same name."""
    stems = [value.stem if isinstance(value, Path) else "" for value in values]
    uses = Counter(stems)
    return [
        stem if stem and uses[stem] == 1 else f"{number:06}{'-' if stem else ''}{stem}"
        for number, stem in enumerate(stems, 1)
    ]


def array_of(given: GivenInput, value: Path | str) -> "tuple[NDArray[Any], str]":
    """One value of an input, and what was done to it if it is an image. It is checked against the type of the input by
    whoever computes.

    :raises InputInvalid: it can't be read, or can't be made what the input takes.
    """
    name, (datatype, shape) = given.name, given.wants
    if isinstance(value, str):
        return from_json(name, value, datatype, shape), ""
    if given.is_bytes:
        return bytes_of(name, value), ""
    match value.suffix.lower():
        case ".npy":
            return from_npy(name, value), ""
        case ".npz":
            return from_npz(name, value), ""
        case ".json":
            return from_json(name, read_file(name, value).decode("utf-8-sig", "replace"), datatype, shape), ""
        case suffix if suffix in PICTURE_SUFFIXES:
            if given.wants.is_encoded:
                return bytes_of(name, value), "is sent as it is, and whoever computes decodes it"
            return from_picture(name, value, datatype, shape)
        case _:
            raise InputInvalid(
                f"input {name!r}: {value} is of no kind that can be read: give a .npy, .npz or .json file or an image, "
                f"or --input {name}:bytes={value} to send it as it is"
            )
