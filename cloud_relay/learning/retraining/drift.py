"""Whether records are other ones than before: detectors of river over the errors of the model, or over a feature.

ADWIN (Bifet and Gavalda, 2007) compares the means of two parts of a window that grows. The test of Page and Hinkley
(1954) sums deviations from the mean and fires beyond a fixed sum, so it suits values near 1. KSWIN (Raab et al., 2020)
compares the distribution of the newest 30 values with that of those before.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cloud_relay.learning.candidate import outputs_where_possible
from cloud_relay.learning.estimators import LABEL, VALUE
from cloud_relay.learning.recipe import Recipe
from cloud_relay.learning.retraining.triggers import ERROR, TrainingTrigger
from cloud_relay.learning.rows import label_of, number_of, target_of, value_at
from meshnode.models import LoadedModel, ModelSpec, load_model
from protocols.base.errors import ConfigError

AT_ONCE: Final = 512
"""Records whose errors are computed in one run of the model."""
_log = logging.getLogger("cloud_relay.training")


def detector_of(trigger: TrainingTrigger, seed: int) -> Any:
    """The detector that a trigger names. :raises ConfigError: river is missing."""
    try:
        from river import drift
    except ImportError as error:
        raise ConfigError(
            f"finding drift needs river, which can't be imported ({error}): run pip install 'meshnode[learning]'"
        ) from error
    match trigger.detector:
        case "adwin":
            return drift.ADWIN()  # type: ignore[no-untyped-call]
        case "page_hinkley":
            return drift.PageHinkley()
        case "kswin":
            return drift.KSWIN(seed=seed)


class DriftWatch:
    """Takes new records, and says when they are other ones. Its memory is that of its detector."""

    def __init__(self, trigger: TrainingTrigger, recipe: Recipe, serving: Path | None) -> None:
        """``serving``: the file of the model that serves; None: there is none, so it can't err.

        :raises ConfigError: river is missing. :raises ModelInvalid: the model can't be loaded.
        """
        self._recipe, self._path = recipe, trigger.drift
        self._detector = detector_of(trigger, recipe.seed)
        self._model: LoadedModel | None = None
        if serving is not None and self._path == ERROR:
            self._model = load_model(ModelSpec(recipe.name, serving))
        self._waiting: list[tuple[list[float], Any]] = []
        self.has_drifted = False

    def take(self, row: Mapping[str, Any]) -> None:
        """A new record. One that lacks something, or has something else there, is passed over: any node may send it,
        and training says what is wrong.

        :raises ConfigError: a path leads nowhere in any record.
        """
        if self._path != ERROR:
            assert self._path is not None
            if (number := number_of(value_at(row, self._path))) is not None:
                self._update(number)
            return
        if self._model is None:
            return
        numbers = [number_of(value_at(row, path)) for path in self._recipe.features.values()]
        target = target_of(value_at(row, self._recipe.target.path), self._recipe)
        if target is not None and None not in numbers:
            self._waiting.append((numbers, target))  # type: ignore[arg-type]
        if len(self._waiting) >= AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Look at what waits for a run of the model. Records that it can't compute are passed over and counted.

        :raises ModelInvalid: it takes something else.
        """
        import numpy as np

        waiting, self._waiting = self._waiting, []
        if not waiting or self._model is None:
            return
        outputs, can = outputs_where_possible(self._model, np.asarray([each for each, _ in waiting], np.float32))
        labels = self._model.manifest.labels
        if not can.all():
            _log.warning(
                "the model of %s that serves can't compute %d of %d new records; its errors are watched without them",
                self._recipe.name, len(can) - can.sum(), len(can),
            )  # fmt: skip
        for place, target in enumerate(target for (_, target), computed in zip(waiting, can, strict=True) if computed):
            if labels:
                told = int(outputs[LABEL][place])
                self._update(float(not (0 <= told < len(labels) and labels[told] == label_of(target))))
            else:
                self._update(abs(float(outputs[VALUE][place, 0]) - float(target)))

    def _update(self, value: float) -> None:
        if not math.isfinite(value):  # the model overflowed; detectors that keep sums would never fire again
            return
        self._detector.update(value)
        self.has_drifted = self.has_drifted or bool(self._detector.drift_detected)
