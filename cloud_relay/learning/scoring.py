"""How good the answers of a model are, and whether those of another one are better or were lucky.

The comparison is a paired bootstrap: both models answer the same rows, rows are drawn anew with replacement many times,
and the gain is computed for each draw (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 13 and
16). What is drawn are not rows but *blocks*: rows of one node within a few minutes come from one situation, and
counting each as evidence of its own would make noise look sure.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from cloud_relay.learning.estimators import LABEL, PROBABILITY, VALUE
from cloud_relay.learning.recipe import CLASS_METRICS, NUMBER_METRICS, RecipeEvaluation
from cloud_relay.learning.rows import LearningRows
from protocols.base.errors import LocalProtocolError, ModelInvalid
from protocols.base.limits import SECOND

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS: Final = 2_000
"""The 5 % point is then sure to about half a percent."""
MIN_BLOCKS: Final = 10
"""With fewer, the draws are too few different ones to say anything."""
_DRAWS_AT_ONCE: Final = 50
_LEAST_PROBABILITY: Final = 1e-7
SMALLER_IS_BETTER: Final = frozenset({"log_loss", "mae", "rmse"})
Outputs = Mapping[str, Any]


class Comparison(Struct, frozen=True):
    """Two models on the same rows."""

    metric: str
    new: float
    old: float
    gain: float
    """How much better the new one is; below zero, it is worse."""
    low: float
    """The gain is at least this, at the confidence that was asked for."""
    high: float
    """And at most this."""
    confidence: float
    rows: int
    blocks: int
    is_better: bool


def measured(outputs: Outputs, rows: LearningRows) -> dict[str, float]:
    """All metrics of the answers of a model. :raises ModelInvalid: they have not the form that is compared."""
    import numpy as np

    names = CLASS_METRICS if rows.labels else NUMBER_METRICS
    sums = _sums(_checked(outputs, rows), rows).sum(axis=0, keepdims=True)
    return {name: round(float(_metric(name, sums, len(rows.labels))[0]), 6) for name in names} | {
        "rows": float(np.float64(len(rows)))
    }


def without_model(training: LearningRows, test: LearningRows) -> Outputs:
    """What somebody answers who knows no features: the shares of the classes in what is learned from, or the middle."""
    import numpy as np

    if not test.labels:
        return {VALUE: np.full((len(test), 1), np.median(training.target), np.float32)}
    shares = np.bincount(training.target, minlength=len(test.labels)) / len(training)
    return {
        LABEL: np.full(len(test), int(np.argmax(shares)), np.int64),
        PROBABILITY: np.tile(shares.astype(np.float32), (len(test), 1)),
    }


def compared(
    new: Outputs, old: Outputs, rows: LearningRows, metric: str, wanted: RecipeEvaluation, seed: int
) -> Comparison:
    """Whether one model is better than another. :raises LocalProtocolError: there are too few blocks to say."""
    import numpy as np

    blocks = _blocks(rows, wanted.block_s)
    count = int(blocks.max()) + 1
    if count < MIN_BLOCKS:
        raise LocalProtocolError(
            f"the {len(rows)} rows held out come from {count} situations (node and evaluation.block_s = "
            f"{wanted.block_s:g}), and {MIN_BLOCKS} are needed to compare models: hold out more, or take records of "
            "more nodes"
        )
    sums = [_by_block(_sums(_checked(each, rows), rows), blocks, count) for each in (new, old)]
    whole = [float(_metric(metric, each.sum(axis=0, keepdims=True), len(rows.labels))[0]) for each in sums]
    sign = -1.0 if metric in SMALLER_IS_BETTER else 1.0
    random, gains = np.random.default_rng(seed), []
    for _ in range(DRAWS // _DRAWS_AT_ONCE):
        drawn = random.integers(0, count, (_DRAWS_AT_ONCE, count))
        weights = np.stack([np.bincount(each, minlength=count) for each in drawn]).astype(np.float64)
        first, second = (_metric(metric, weights @ each, len(rows.labels)) for each in sums)
        gains.append(sign * (first - second))
    low, high = np.quantile(np.concatenate(gains), [1 - wanted.confidence, wanted.confidence])
    return Comparison(
        metric=metric, new=round(whole[0], 6), old=round(whole[1], 6), gain=round(sign * (whole[0] - whole[1]), 6),
        low=round(float(low), 6), high=round(float(high), 6), confidence=wanted.confidence, rows=len(rows),
        blocks=count, is_better=bool(low > wanted.min_gain),
    )  # fmt: skip


def _checked(outputs: Outputs, rows: LearningRows) -> Outputs:
    """The outputs, if they have the types and shapes that models of this kind give."""
    import numpy as np

    wanted = {LABEL: ("i8", (len(rows),)), PROBABILITY: ("f4", (len(rows), len(rows.labels)))}
    if not rows.labels:
        wanted = {VALUE: ("f4", (len(rows), 1))}
    for name, (dtype, shape) in wanted.items():
        if name not in outputs:
            raise ModelInvalid(f"the model has no output {name!r}: it gives {', '.join(outputs) or 'none'}")
        array = np.asarray(outputs[name])
        if array.dtype.str[1:] != dtype or array.shape != shape:
            raise ModelInvalid(
                f"the output {name!r} is {array.dtype.str[1:]}{list(array.shape)} and not {dtype}{list(shape)} for "
                f"{len(rows)} rows"
            )
        if not np.isfinite(array).all():
            raise ModelInvalid(f"the output {name!r} is not finite for some rows")
    return outputs


def _blocks(rows: LearningRows, block_s: float) -> "NDArray[Any]":
    """The number of the block of each row."""
    import numpy as np

    _, nodes = np.unique(rows.origin, return_inverse=True)
    if not block_s:
        return np.arange(len(rows))
    spans = rows.time_ns // int(block_s * SECOND)
    _, blocks = np.unique(np.stack([nodes, spans], axis=1), axis=0, return_inverse=True)
    return blocks.reshape(-1)


def _sums(outputs: Outputs, rows: LearningRows) -> "NDArray[Any]":
    """What metrics are made of, for each row: each metric is a function of the sums of these columns.

    Of a number: rows, absolute errors, squared errors. Of classes: rows, log losses, and for each class its rows, those
    of them that were told right, and those that were told to be it.
    """
    import numpy as np

    ones = np.ones(len(rows))
    if not rows.labels:
        error = np.asarray(outputs[VALUE])[:, 0].astype(np.float64) - rows.target
        return np.stack([ones, np.abs(error), error * error], axis=1)
    given = np.asarray(outputs[PROBABILITY]).astype(np.float64)
    told = np.asarray(outputs[LABEL])
    of_truth = np.clip(given[np.arange(len(rows)), rows.target], _LEAST_PROBABILITY, 1.0)
    is_it = rows.target[:, None] == np.arange(len(rows.labels))
    is_told = told[:, None] == np.arange(len(rows.labels))
    return np.concatenate(
        [np.stack([ones, -np.log(of_truth)], axis=1), is_it, is_it & is_told, is_told], axis=1, dtype=np.float64
    )


def _by_block(sums: "NDArray[Any]", blocks: "NDArray[Any]", count: int) -> "NDArray[Any]":
    import numpy as np

    return np.stack([np.bincount(blocks, weights=column, minlength=count) for column in sums.T], axis=1)


def _metric(name: str, sums: "NDArray[Any]", classes: int) -> Any:
    """A metric of each line of sums. A class of which a draw has no row does not count in the mean over classes."""
    import numpy as np

    rows = sums[:, 0]
    if name == "mae":
        return sums[:, 1] / rows
    if name == "rmse":
        return np.sqrt(sums[:, 2] / rows)
    if name == "log_loss":
        return sums[:, 1] / rows
    there, right, told = (sums[:, 2 + part * classes : 2 + (part + 1) * classes] for part in range(3))
    if name == "accuracy":
        return right.sum(axis=1) / rows
    if name == "f1":  # of the last class
        both = there[:, -1] + told[:, -1]
        return np.divide(2 * right[:, -1], both, out=np.zeros(len(sums)), where=both > 0)
    shares = np.divide(right, there, out=np.zeros_like(right), where=there > 0)
    return shares.sum(axis=1) / np.maximum((there > 0).sum(axis=1), 1)
