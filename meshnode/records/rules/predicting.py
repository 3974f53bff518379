"""Has models compute what rules want of readings: here or at a neighbour, as any inference of this node."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from meshnode.tasks import Tasks
from meshnode.troubles import Troubles
from protocols.base.errors import BudgetExhausted, InferenceError, InputInvalid, MeshError
from protocols.base.limits import MS
from protocols.records.predicting import Failure
from protocols.records.wanted import PredictionWanted

_log = logging.getLogger(__name__)

MAX_NUMBERS: Final = 1_024
"""Numbers of a prediction: more could not be looked at by rules."""


class ModelCall(Protocol):
    """See :meth:`meshnode.node.Node.infer`."""

    def __call__(
        self, model: str, inputs: Mapping[str, Any], *, outputs: tuple[str, ...], deadline_ms: int | None
    ) -> Awaitable[Any]:
        """Have a model computed."""


class Predictor:
    """See the module. It belongs to the event loop."""

    def __init__(
        self, infer: ModelCall | None, take: Callable[[PredictionWanted, Any, Failure], bool], troubles: Troubles
    ) -> None:
        """``take`` is called with each answer, and returns whether its rule has waited for it."""
        self._infer, self._take, self._troubles = infer, take, troubles
        self._tasks = Tasks()

    def forget(self, rule: str) -> None:
        """A rule is used no more: what went wrong with its model is no trouble any more."""
        self._troubles.end("rule", _name(rule))

    def begin(self, wanted: PredictionWanted) -> None:
        """Answer a question. Nothing is begun any more once this is closed."""
        self._tasks.begin(self._answer(wanted), "prediction")

    async def _answer(self, wanted: PredictionWanted) -> None:
        value: Any = None
        failure: Failure = "not_predicted"
        why = ""
        try:
            value, failure = await self._predicted(wanted), ""
        except BudgetExhausted:
            failure = "late"
        except MeshError as error:
            why = f"{wanted.model} gives no prediction for rule {wanted.rule!r}: {error}"
        finally:
            has_waited = self._take(wanted, value, failure)
        if has_waited and why:
            self._troubles.begin("rule", _name(wanted.rule), why)
        elif has_waited and not failure:
            self._troubles.end("rule", _name(wanted.rule))

    async def _predicted(self, wanted: PredictionWanted) -> dict[str, Any]:
        """:raises MeshError: there is none."""
        if self._infer is None:
            raise InferenceError("this node has nobody to ask")
        inputs = {wanted.input_name: wanted.inputs} if wanted.input_name else wanted.inputs
        if not isinstance(inputs, Mapping):
            raise InputInvalid("its inputs have no names: give infer.input, or a map as value")
        deadline_ms = max(1, wanted.budget_ns // MS)
        result = await self._infer(wanted.model, inputs, outputs=wanted.outputs, deadline_ms=deadline_ms)
        count = sum(array.size for array in result.outputs.values())
        if count > MAX_NUMBERS:
            raise InferenceError(f"its outputs have {count} numbers, and a prediction at most {MAX_NUMBERS}: choose "
                                 "fewer by infer.outputs")  # fmt: skip
        return {name: array.tolist() for name, array in result.outputs.items()}

    async def close(self) -> None:
        """Give up what is under way."""
        await self._tasks.close()


def _name(rule: str) -> str:
    """The name of its trouble."""
    return f"{rule}: prediction"
