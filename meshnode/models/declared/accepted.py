"""What a model takes and gives by its file and its manifest together, and how a value becomes what the file takes.

An input with preprocessing takes an encoded picture, ``u1[?]``. It takes a tensor too, as the file has it: one has the
type u1 and one dimension, the other has four dimensions, so no value can be meant as both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from meshnode.config.parsing import Problem, problem_report, shown
from meshnode.models.manifest import DeclaredInput, DeclaredOutput, Manifest, manifest_path
from meshnode.models.preprocessing import Preprocessing, prepared, value_table
from protocols.base.errors import InputInvalid, ModelInvalid
from protocols.inference.signature import TensorSignature, described

if TYPE_CHECKING:
    from numpy.typing import NDArray

_D = TypeVar("_D", bound=DeclaredOutput)


@dataclass(frozen=True, slots=True)
class AcceptedInput:
    """What a model takes for one of its inputs."""

    tensor: TensorSignature
    """What the file takes, narrowed by the manifest."""
    at_most: tuple[int, ...] = ()
    """The largest size of each dimension; -1: any. Empty: any for all."""
    is_finite: bool = False
    """Whether NaN and infinity are refused."""
    steps: Preprocessing | None = None
    """How a picture becomes the tensor; None: no picture is taken."""

    @property
    def signature(self) -> TensorSignature:
        """What is given from outside: the encoded picture where there is preprocessing, else the tensor."""
        return self.tensor if self.steps is None else TensorSignature(self.tensor.name, "u1", (None,))

    @property
    def kind(self) -> str:
        """Types and shapes as people read them."""
        limited = f", at most {list(self.at_most)}" if any(size >= 0 for size in self.at_most) else ""
        tensor = f"{self.tensor.kind}{limited}"
        return tensor if self.steps is None else f"u1[?] (a JPEG or PNG) or {tensor}"

    def takes(self, dtype: str, shape: Sequence[int]) -> bool:
        """Whether a value of that type and shape may be given."""
        if self.is_picture(dtype, shape):
            return True
        wanted = self.tensor.shape
        fits = self.tensor.has_any_shape or (
            len(shape) == len(wanted)
            and all(want is None or want == have for want, have in zip(wanted, shape, strict=True))
        )
        small = all(have <= most or most < 0 for have, most in zip(shape, self.at_most, strict=False))
        return dtype == self.tensor.dtype and fits and small

    def is_picture(self, dtype: str, shape: Sequence[int]) -> bool:
        """Whether a value of that type and shape is an encoded picture."""
        return self.steps is not None and dtype == "u1" and len(shape) == 1

    def fed(self, model: str, array: "NDArray[Any]") -> "NDArray[Any]":
        """The tensor for the file. ``array``: a value that it takes. This is where a picture is decoded.

        :raises InputInvalid: names the input, and why the picture can't be used or where the value is not finite.
        """
        if self.steps is not None and self.is_picture(array.dtype.str[1:], array.shape):
            try:
                return prepared(array.tobytes(), self.steps, self.tensor.dtype)
            except InputInvalid as error:
                raise InputInvalid(f"input {self.tensor.name!r} of model {model!r}: {error}") from error
        if self.is_finite:
            self._check_finite(model, array)
        return array

    def _check_finite(self, model: str, array: "NDArray[Any]") -> None:
        import numpy as np

        finite = np.isfinite(array)
        if not finite.all():
            at = np.unravel_index(int(np.argmin(finite)), array.shape)
            place = [int(index) for index in at]
            raise InputInvalid(
                f"input {self.tensor.name!r} of model {model!r} is {array[at]} at {place}: its manifest forbids values "
                "that are not finite"
            )


def agreed(
    model: Path, inputs: Sequence[TensorSignature], outputs: Sequence[TensorSignature], manifest: Manifest
) -> tuple[tuple[AcceptedInput, ...], tuple[TensorSignature, ...]]:
    """What a model takes and gives, where ``inputs`` and ``outputs`` are what the file has. ``model``: the file.

    :raises ModelInvalid: they contradict each other; names every key that is wrong.
    """
    problems: list[Problem] = []
    agreement = _accepted(inputs, manifest, problems), _given(outputs, manifest, problems)
    if problems:
        raise ModelInvalid(problem_report(str(manifest_path(model)), tuple(problems)))
    return agreement


def _accepted(
    signatures: Sequence[TensorSignature], manifest: Manifest, problems: list[Problem]
) -> tuple[AcceptedInput, ...]:
    declared = _by_name("inputs", manifest.inputs, signatures, problems)
    for name in manifest.preprocessing:
        _check_name(f"preprocessing.{name}", None, name, signatures, problems)
    accepted = []
    for signature in signatures:
        steps = manifest.preprocessing.get(signature.name)
        key, one = declared.get(signature.name, ("inputs", DeclaredInput(name=signature.name)))
        tensor = _narrowed(key, signature, one, problems)
        if steps is not None:
            tensor = _of_pictures(f"preprocessing.{signature.name}", tensor, steps, problems)
        if one.nan == "forbid" and not tensor.dtype.startswith("f"):
            problems.append(Problem(f"{key}.nan", shown(one.nan), f"is of no use: {tensor.dtype} can't be NaN"))
        at_most, sizes = one.max or (), steps.shape if steps is not None else tensor.shape
        if any(size is not None and size > most >= 0 for size, most in zip(sizes, at_most, strict=False)):
            text = f"is less than what it always is, {described(tensor.dtype, sizes)}: raise it"
            problems.append(Problem(f"{key}.max", shown(list(at_most)), text))
        accepted.append(AcceptedInput(tensor, at_most, one.nan == "forbid", steps))
    return tuple(accepted)


def _given(
    signatures: Sequence[TensorSignature], manifest: Manifest, problems: list[Problem]
) -> tuple[TensorSignature, ...]:
    declared = _by_name("outputs", manifest.outputs, signatures, problems)
    return tuple(
        _narrowed(declared[each.name][0], each, declared[each.name][1], problems) if each.name in declared else each
        for each in signatures
    )


def _by_name(
    key: str, declared: Sequence[_D], signatures: Sequence[TensorSignature], problems: list[Problem]
) -> dict[str, tuple[str, _D]]:
    """The declarations with their keys, by name of the input or output."""
    for at, each in enumerate(declared):
        _check_name(f"{key}[{at}].name", shown(each.name), each.name, signatures, problems)
    return {each.name: (f"{key}[{at}]", each) for at, each in enumerate(declared)}


def _check_name(
    key: str, value: str | None, name: str, signatures: Sequence[TensorSignature], problems: list[Problem]
) -> None:
    names = [signature.name for signature in signatures]
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, names[:8]))}"
        problems.append(Problem(key, value, f"is not in the model: {hint}"))


def _narrowed(
    key: str, signature: TensorSignature, declared: DeclaredOutput, problems: list[Problem]
) -> TensorSignature:
    if declared.dtype is not None and declared.dtype != signature.dtype:
        text = f"is not what the model has, {signature.kind}: correct it, or use the model that is meant"
        problems.append(Problem(f"{key}.dtype", shown(declared.dtype), text))
    wanted = declared.shape
    if wanted is None:
        return signature
    sizes = signature.shape if not signature.has_any_shape else (None,) * len(wanted)
    fits = len(wanted) == len(sizes) and all(
        want < 0 or size is None or want == size for want, size in zip(wanted, sizes, strict=True)
    )
    if not fits:
        text = f"is not what the model has, {signature.kind}: correct it, or use the model that is meant"
        problems.append(Problem(f"{key}.shape", shown(list(wanted)), text))
        return signature
    # The names of sizes stay: they tell that a size of an output is the same as one that is known now.
    return replace(
        signature,
        shape=tuple(size if want < 0 else want for want, size in zip(wanted, sizes, strict=True)),
    )


def _of_pictures(key: str, tensor: TensorSignature, steps: Preprocessing, problems: list[Problem]) -> TensorSignature:
    shape = steps.shape
    if tensor.has_any_shape:
        tensor = replace(tensor, shape=shape)
    fits = len(tensor.shape) == len(shape) and all(
        size is None or size == made for size, made in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype == "b1":
        text = f"makes {described(tensor.dtype, shape)}, and the model takes {tensor.kind}"
        problems.append(Problem(key, None, f"{text}: correct width, height, colours or layout"))
    else:
        try:
            value_table(steps, tensor.dtype)
        except ModelInvalid as error:
            problems.append(Problem(key, None, str(error)))
    return tensor
