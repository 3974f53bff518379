"""Inference through a node in another process of this computer."""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from meshnode.inference.result import InferenceResult
from meshnode.inference.streams import OpenStreams, StreamingInference
from meshnode.local.session import Session
from protocols.base import limits
from protocols.base.errors import (
    BoundExceeded,
    InferenceError,
    InputInvalid,
    LocalProtocolError,
    TransportError,
)
from protocols.base.ids import NodeId
from protocols.local import CancelInfer, Infer, Inferred, error_named

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from meshnode.inference.batches import BatchInputs
    from protocols.wire.tensors import Tensor

_log = logging.getLogger(__name__)
_BATCHES_SINCE: Final = 4
"""The minor version of nodes that divide batches."""


class ConnectedInference(StreamingInference):
    """The inferences of one application."""

    id: NodeId
    session: Session
    loop: asyncio.AbstractEventLoop
    max_in_flight = limits.MAX_LOCAL_REQUESTS

    def __init__(self) -> None:
        self.streams = OpenStreams()
        self._minor = 0  # of the version of the node
        self._answers: dict[int, asyncio.Future[Inferred]] = {}

    def _fail_answers(self, why: str) -> None:
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(InferenceError(why))

    async def infer(
        self, model: str, inputs: "Mapping[str, ArrayLike | Tensor]", *, outputs: tuple[str, ...] = (),
        deadline_ms: int | None = None, hedge: bool | None = None,
    ) -> InferenceResult:  # fmt: skip
        """Like :meth:`meshnode.node.Node.infer`: the node computes it or asks a neighbour. ``took_ms`` is measured by
        the node, so it leaves out the way to the node and back.

        :raises ModelUnknown, InputInvalid, BudgetExhausted, InferenceError: as there.
        :raises TransportError: when the node is away. :raises BoundExceeded: with too many inferences under way.
        """
        return await self._infer(model, inputs, outputs, deadline_ms, hedge)

    async def infer_batch(
        self, model: str, inputs: "BatchInputs", *,
        outputs: tuple[str, ...] = (), deadline_ms: int | None = None, hedge: bool | None = None,
        shard: int | None = None, divided: tuple[str, ...] = (),
    ) -> InferenceResult:  # fmt: skip
        """Like :meth:`meshnode.node.Node.infer_batch`: the node divides the batch among itself and its neighbours. All
        inputs and all outputs go through the socket at once, so each may take 16 MiB.

        :raises LocalProtocolError: the node is of an older version. The rest is as for :meth:`infer`.
        """
        self.require_open()
        if self._minor < _BATCHES_SINCE:
            raise LocalProtocolError(
                f"the node {self.id} is of an older version, which divides no batches: update it, or use infer"
            )
        if shard is not None and shard < 1:
            raise InputInvalid(f"shards of {shard} rows are wrong: give at least 1, or None to have the size chosen")
        return await self._infer(model, inputs, outputs, deadline_ms, hedge, shard or 0, tuple(divided))

    async def _infer(
        self, model: str, inputs: "BatchInputs", outputs: tuple[str, ...],
        deadline_ms: int | None, hedge: bool | None, shard: int | None = None, divided: tuple[str, ...] = (),
    ) -> InferenceResult:  # fmt: skip
        import numpy as np

        from meshnode.inference.batches import batch_tensors, tensors_of
        from meshnode.models.signature import as_arrays

        self.require_open()
        too_many = len(inputs) > limits.MAX_TENSORS or len(outputs) > limits.MAX_TENSORS
        if too_many or any(len(name) > limits.MAX_TEXT_CHARS for name in (model, *inputs, *outputs, *divided)):
            raise InputInvalid(
                f"{len(inputs)} inputs, {len(outputs)} outputs: give at most {limits.MAX_TENSORS}, with names of "
                f"{limits.MAX_TEXT_CHARS} characters"
            )
        if deadline_ms is not None and not 1 <= deadline_ms <= limits.MAX_BUDGET_MS:
            raise LocalProtocolError(f"deadline_ms {deadline_ms} is out of range: use 1 to {limits.MAX_BUDGET_MS}")
        tensors = tensors_of(as_arrays((), inputs)) if shard is None else batch_tensors((), inputs)
        number = self.session.number()
        answer: asyncio.Future[Inferred] = self.loop.create_future()
        self._answers[number] = answer
        try:
            self.session.say(Infer(number, model, tensors, tuple(outputs), deadline_ms, hedge, shard, divided))
            answered = await answer
        except asyncio.CancelledError:
            try:
                self.session.say(CancelInfer(number))
            except (BoundExceeded, TransportError) as error:
                _log.debug("nothing to cancel at the node: %s", error)
            raise
        finally:
            self._answers.pop(number, None)
        if answered.error:
            raise error_named(answered.error, answered.detail)
        return InferenceResult(
            {named.name: np.asarray(named.tensor) for named in answered.outputs}, NodeId(answered.ran_on),
            answered.took_ms, answered.compute_ms, answered.queued_ms, answered.attempts, answered.model or model,
            answered.parts,
        )  # fmt: skip
