"""The manifest of a model: what ``NAME.toml`` says about ``NAME.onnx`` beside it.

Invariants:

- A manifest that exists is valid by itself. Whether it fits the model is checked when the model is loaded
  (:mod:`meshnode.models.declared.accepted`).
- What changes results is part of the digest of the model (:meth:`Manifest.results`), so that nodes whose digests are
  equal compute the same. Default values are left out of it: a new key leaves digests as they are, as long as its
  default changes nothing. The default of a key that exists must never change.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from meshnode.config.parsing import Problem, Section, TableReader, problem_report, shown
from meshnode.config.toml import read_toml
from meshnode.models.elements import Short
from meshnode.models.preprocessing import Preprocessing
from protocols.base.errors import ConfigError, ModelInvalid
from protocols.base.limits import MAX_TENSOR_DIMENSIONS, MAX_TENSORS, MAX_TEXT_CHARS

MAX_GOLDEN: Final = 100
"""Each of them is a run of the model before it is used."""


def _check_place(value: str) -> str | None:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts:
        return "is not below the folder of the manifest: put the file beside it and give its name"
    return None


_Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
_Size = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
_Sizes = Annotated[tuple[_Size, ...], Meta(max_length=MAX_TENSOR_DIMENSIONS)]
_File = Annotated[str, Meta(max_length=1_000, extra={"check": _check_place})]
_Files = Annotated[Mapping[_Text, _File], Meta(min_length=1, max_length=MAX_TENSORS)]


class DeclaredOutput(Section, frozen=True, kw_only=True):
    """An output as its author sees it. What the file says of it otherwise keeps the model from being loaded."""

    name: Annotated[_Text, Meta(description="Its name in the file.")]
    dtype: Annotated[Short | None, Meta(description="The type of its elements: kind and bytes.")] = None
    shape: Annotated[
        _Sizes | None,
        Meta(description="Its sizes; -1: as the file says. A size that the file leaves open is narrowed to this one."),
    ] = None


class DeclaredInput(DeclaredOutput, frozen=True, kw_only=True):
    """An input as its author sees it: the tensor that the file takes, also where a picture is given instead. What the
    file says of it otherwise keeps the model from being loaded."""

    max: Annotated[
        _Sizes | None, Meta(description="The largest sizes that are taken where they are open; -1: any.")
    ] = None
    nan: Annotated[
        Literal["allow", "forbid"], Meta(description="Whether tensors with NaN or infinity in them are refused.")
    ] = "allow"

    def conflicts(self) -> Iterator[Problem]:
        """A maximum that can't be compared, and a ban on NaN in whole numbers."""
        if self.max is not None and (self.shape is None or len(self.shape) != len(self.max)):
            yield Problem("max", shown(list(self.max)), "has no size in 'shape' for each of its own: give both")
        if self.nan == "forbid" and self.dtype is not None and not self.dtype.startswith("f"):
            yield Problem("nan", shown(self.nan), f"is of no use: {self.dtype} can't be NaN, so remove it")


class Golden(Section, frozen=True, kw_only=True):
    """A golden vector: inputs and the outputs that they must give, run whenever the model is loaded. A model that gives
    others is not used."""

    inputs: Annotated[
        _Files, Meta(description="A `.npy` file for each input, or a JPEG or PNG for one with preprocessing.")
    ]
    outputs: Annotated[_Files, Meta(description="A `.npy` file for each output that is compared.")]
    atol: Annotated[
        float, Meta(ge=0, description="A value may differ by this much, and by `rtol` times the expected value.")
    ] = 1e-4
    rtol: Annotated[float, Meta(ge=0, description="See `atol`.")] = 1e-3


class Fallback(Section, frozen=True, kw_only=True):
    """Who may answer when this model can't be done in time. A fallback in the configuration of a node counts more."""

    model: Annotated[_Text, Meta(description="The name of a smaller model in the configuration of the nodes.")]


BoundaryForm = Literal["raw", "f16", "u8"]
"""How 32-bit floating-point tensors travel between stages."""


class SplitRules(Section, frozen=True, kw_only=True):
    """What is allowed when the model is split between nodes."""

    first_cut_at_home: Annotated[
        bool,
        Meta(
            description="The inputs never leave the node that was given them: the first stage is computed there, and "
            "neighbours are never asked for the whole model. If it can't be split, it is computed there or not at all."
        ),
    ] = False
    boundary: Annotated[
        BoundaryForm,
        Meta(
            description="How 32-bit floating-point tensors travel between stages: as they are, in half precision, or "
            "as bytes with a scale of their own. Only `raw` gives the bits of the whole model."
        ),
    ] = "raw"
    boundary_error: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="How much an output may change by that, as a part of its largest absolute value; of outputs "
            "that are whole numbers, the part of the elements that may differ. It is measured when stages are made, on "
            "golden vectors and on noise; the model is not split where it changes more.",
        ),
    ] = 0.0

    def conflicts(self) -> Iterator[Problem]:
        """Rounding without an error, and an error without rounding."""
        if self.boundary != "raw" and not self.boundary_error:
            yield Problem("boundary_error", "0", f"forbids all rounding: say which error {self.boundary!r} may cause")
        if self.boundary == "raw" and self.boundary_error:
            yield Problem("boundary_error", shown(self.boundary_error), "is of no use: 'raw' causes none, so remove it")


class Manifest(Section, frozen=True, kw_only=True):
    """What is known about the model as a whole. All keys are optional."""

    description: Annotated[str, Meta(max_length=10_000, description="What it is for.")] = ""
    licence: Annotated[str, Meta(max_length=MAX_TEXT_CHARS, description="SPDX expression, as in `Apache-2.0`.")] = ""
    labels: Annotated[
        tuple[_Text, ...], Meta(description="The names of its classes, in the order of its output, at most 1,000.")
    ] = ()
    memory_mib: Annotated[
        int | None, Meta(ge=16, le=1_048_576, description="The most memory that a process which runs it may take.")
    ] = None
    inputs: Annotated[tuple[DeclaredInput, ...], Meta(max_length=MAX_TENSORS, description="See below.")] = ()
    outputs: Annotated[tuple[DeclaredOutput, ...], Meta(max_length=MAX_TENSORS, description="See below.")] = ()
    preprocessing: Annotated[
        Mapping[_Text, Preprocessing], Meta(max_length=MAX_TENSORS, description="By input, see below.")
    ] = {}
    golden: Annotated[tuple[Golden, ...], Meta(max_length=MAX_GOLDEN, description="See below.")] = ()
    fallback: Annotated[Fallback | None, Meta(description="See below.")] = None
    split: Annotated[SplitRules, Meta(description="See below.")] = SplitRules()

    def conflicts(self) -> Iterator[Problem]:
        """Two declarations of one input or output."""
        for key, declared in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [each.name for each in declared]
            for at, name in enumerate(names):
                if name in names[:at]:
                    yield Problem(f"{key}[{at}].name", shown(name), "is declared twice: keep one")

    def results(self) -> bytes:
        """What of it changes results, as JSON in a canonical form; empty: nothing does."""
        told: dict[str, Any] = {
            "inputs": {each.name: _given(each, "name") for each in self.inputs if _given(each, "name")},
            "outputs": {each.name: _given(each, "name") for each in self.outputs if _given(each, "name")},
            "preprocessing": {name: _given(steps) for name, steps in self.preprocessing.items()},
        }
        told = {key: value for key, value in told.items() if value}
        return msgspec.json.encode(told, order="sorted") if told else b""


def _given(section: Section, *apart: str) -> dict[str, Any]:
    """The values that differ from their defaults."""
    values = {field.name: (getattr(section, field.name), field.default) for field in msgspec.structs.fields(section)}
    return {name: value for name, (value, default) in values.items() if value != default and name not in apart}


def manifest_path(model: Path) -> Path:
    """Where the manifest of a model file is, if it has one."""
    return model.with_suffix(".toml")


def read_manifest(model: Path) -> Manifest:
    """The manifest of a model file; an empty one when there is none.

    :raises ModelInvalid: names the file, and every mistake in it with key, value and what to do.
    """
    path = manifest_path(model)
    try:
        if path == model or not path.exists():
            return Manifest()
        tables = read_toml(path)
    except (ConfigError, OSError) as error:
        raise ModelInvalid(str(error)) from error
    reader = TableReader()
    manifest = reader.read_table(Manifest, tables, "")
    if reader.problems or not isinstance(manifest, Manifest):  # an unknown key alone does not spoil the table
        raise ModelInvalid(problem_report(str(path), tuple(reader.problems)))
    return manifest
