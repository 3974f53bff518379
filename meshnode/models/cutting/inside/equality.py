"""The proof that stages compute what the whole model computes: a chain of them against the whole.

With raw boundaries every bit is equal. Where the manifest allows boundaries to be rounded, the error is measured.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meshnode.models.cutting.inside.samples import Arrays
from meshnode.models.model import LoadedModel
from protocols.base.errors import ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_chain(
    whole: LoadedModel, stages: Sequence[LoadedModel], samples: Sequence[Arrays], allowed_error: float = 0.0
) -> float:
    """Run the stages one after the other, as a holder of all tensors does, and compare with the whole. Returns the
    largest error of an output, see :func:`output_error`; 0: all bits are equal.

    :raises ModelInvalid: an output differs in type or shape, or by more than ``allowed_error``; names it.
    """
    worst = 0.0
    for arrays in samples:
        expected = dict(whole.run(arrays))
        held = dict(arrays)
        for stage in stages:
            held.update(stage.run({each.name: held[each.name] for each in stage.inputs}))
        for name, array in expected.items():
            given = held[name]
            is_alike = given.dtype == array.dtype and given.shape == array.shape
            if is_alike and given.tobytes() == array.tobytes():
                continue
            if not (is_alike and allowed_error):
                raise ModelInvalid(
                    f"stages of model {whole.name!r} were refused: output {name!r} differs from that of the whole; "
                    "choose other cuts, or optimisation = 'basic'"
                )
            error = output_error(given, array)
            if error > allowed_error:
                raise ModelInvalid(
                    f"stages of model {whole.name!r} were refused: rounded boundaries change output {name!r} by "
                    f"{error:.2g}, and its manifest allows {allowed_error:g}; raise 'boundary_error' there, or say "
                    "boundary = 'raw'"
                )
            worst = max(worst, error)
    return worst


def output_error(given: "NDArray[Any]", expected: "NDArray[Any]") -> float:
    """How much an output differs: the largest absolute difference, as a part of the largest absolute value expected. It
    is infinite where only one of them is finite. Of whole numbers: the part of the elements that differ."""
    import numpy as np

    if not expected.size:
        return 0.0
    if expected.dtype.kind != "f":
        return float(np.mean(given != expected))
    finite = np.isfinite(expected)
    same = (given == expected) | (np.isnan(given) & np.isnan(expected))
    if not (finite == np.isfinite(given)).all() or not same[~finite].all():
        return float("inf")
    if not finite.any():
        return 0.0
    wide, exact = given[finite].astype(np.float64), expected[finite].astype(np.float64)
    difference, largest = float(np.abs(wide - exact).max()), float(np.abs(exact).max())
    return difference / largest if largest else (0.0 if not difference else float("inf"))
