"""Which rows a model learns from and which measure it, so that nothing leaks from one half into the other.

By time, what is held out comes after all that is learned from, with a gap between if one is asked for: a model is used
on what comes after it. By origin, a node is in one half with all of its rows. Which half is a function of the seed and
of its name, so a model that was trained on less is measured on nodes that it has never seen either.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cloud_relay.learning.recipe import Recipe
from cloud_relay.learning.rows import LearningRows
from protocols.base.errors import LocalProtocolError
from protocols.base.limits import SECOND

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_TRAINING_ROWS: Final = 30
MIN_TEST_ROWS: Final = 20
"""With fewer, whatever comes out is chance."""
_TELLS: Final = 0.999
"""The share of the rows of a class that one threshold of one feature has to tell, to be taken for a leak."""


def without_rare_classes(rows: LearningRows, recipe: Recipe) -> LearningRows:
    """The rows of the classes that both halves have. One record of a class of its own, which any node may send, would
    otherwise keep everybody from learning. The rows of the others are counted as left out.

    If less than two classes are left, all rows are returned, and ``split`` says what is lacking.
    """
    import numpy as np

    left = rows
    while left.labels:
        is_training, is_test = _halves(left, recipe)
        both = np.intersect1d(left.target[is_training], left.target[is_test])
        if len(both) == len(left.labels):
            break
        if len(both) < 2:
            return rows
        kept = np.isin(left.target, both)
        fewer = left.take(kept)
        labels = tuple(left.labels[number] for number in both.tolist())
        left = replace(fewer, target=np.searchsorted(both, fewer.target), labels=labels)
    if left is rows:
        return rows
    for label, origin in _gone(rows, left):
        rows.left_out.add(f"the class {label!r}, which one half lacks", origin)
    return replace(left, left_out=rows.left_out)


def _gone(rows: LearningRows, left: LearningRows) -> Iterator[tuple[str, str]]:
    for number, origin in zip(rows.target.tolist(), rows.origin.tolist(), strict=True):
        if rows.labels[number] not in left.labels:
            yield rows.labels[number], origin


def split(rows: LearningRows, recipe: Recipe) -> tuple[LearningRows, LearningRows]:
    """What is learned from, and what is held out.

    :raises LocalProtocolError: a half has too few rows or lacks a class, or a feature alone tells the target.
    """
    is_training, is_test = _halves(rows, recipe)
    training, test = rows.take(is_training), rows.take(is_test)
    for half, least, what in ((training, MIN_TRAINING_ROWS, "learn from"), (test, MIN_TEST_ROWS, "measure it by")):
        _check_half(half, least, what, recipe)
    if recipe.target.leaks == "refuse":
        _check_leaks(training, recipe)
    return training, test


def _halves(rows: LearningRows, recipe: Recipe) -> "tuple[NDArray[Any], NDArray[Any]]":
    """Which rows are learned from, and which are held out: a truth value for each."""
    import numpy as np

    by = recipe.split
    if by.by == "origin":
        names = np.unique(rows.origin)
        held = {name for name in names.tolist() if _drawn(recipe.seed, name) < by.test_share}
        is_test = np.isin(rows.origin, list(held)) if held else np.zeros(len(rows), bool)
        is_training = ~is_test
    else:
        border_ns = int(np.quantile(rows.time_ns, 1 - by.test_share, method="higher"))
        is_test = rows.time_ns >= border_ns
        is_training = rows.time_ns < border_ns - int(by.gap_s * SECOND)
    return is_training, is_test


def _drawn(seed: int, name: str) -> float:
    """A number from 0 to 1 that belongs to a seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") / 2**64


def _check_half(half: LearningRows, least: int, what: str, recipe: Recipe) -> None:
    import numpy as np

    way_out = "export more records, or change [split]"
    if len(half) < least:
        raise LocalProtocolError(f"there are {len(half)} rows to {what}, and {least} are needed: {way_out}")
    lacking = [label for number, label in enumerate(half.labels) if not np.any(half.target == number)]
    if lacking:
        raise LocalProtocolError(
            f"of the {len(half)} rows to {what}, none has the class {lacking[0]!r} of {recipe.target.path}: {way_out}"
        )


def _check_leaks(rows: LearningRows, recipe: Recipe) -> None:
    import numpy as np

    for number, (name, path) in enumerate(recipe.features.items()):
        column = rows.features[:, number].astype(np.float64)
        tells = _tells_classes(column, rows.target) if rows.labels else _tells_number(column, rows.target)
        if tells:
            raise LocalProtocolError(
                f"the feature {name} ({path}) alone tells the target {recipe.target.path}: it was probably computed "
                "from it, and won't be known before; leave it out, or set target.leaks = 'allow'"
            )


def _tells_classes(column: "NDArray[Any]", target: "NDArray[Any]") -> bool:
    """Whether some threshold has nearly all rows of one class on one side, and nearly all others on the other."""
    import numpy as np

    order = np.argsort(column, kind="stable")
    ends = np.flatnonzero(np.diff(column[order]) > 0)  # thresholds lie between different values
    if not len(ends):
        return False
    for each in np.unique(target):
        is_it = (target == each)[order]
        below, others_below = np.cumsum(is_it)[ends] / is_it.sum(), np.cumsum(~is_it)[ends] / (~is_it).sum()
        apart = np.abs(below - others_below).max()
        if apart >= _TELLS:
            return True
    return False


def _tells_number(column: "NDArray[Any]", target: "NDArray[Any]") -> bool:
    import numpy as np

    if column.std() == 0 or target.std() == 0:
        return False
    return bool(abs(np.corrcoef(column, target)[0, 1]) >= _TELLS)
