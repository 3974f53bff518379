"""The methods of the service: what each one asks of the node, and how the answer becomes a message.

Plain answers are the same forms that HTTP sends as JSON; their names are those of the fields.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from meshnode.grpc.absent import ABSENT
from meshnode.grpc.calls import Calls
from meshnode.grpc.wire.answers import encoded_answer, streamed_answer, streamed_error
from meshnode.grpc.wire.messages import message_class
from meshnode.grpc.wire.requests import GrpcInferenceCall, parse_untrusted_message
from meshnode.http.api import software_version
from meshnode.http.guard import BadRequest
from meshnode.inference.oip.catalogue import VERSION, Inferring
from meshnode.inference.oip.service import Computed, OpenInferenceService
from meshnode.inference.oip.views import EXTENSIONS
from meshnode.running import Host
from protocols.base import limits
from protocols.base.errors import BudgetExhausted, MeshError, ModelInvalid, ModelUnknown

MAX_PLAIN_BYTES: Final = 16 * 1024
"""A question that is not a request to compute has a name or two."""
_NO_DEADLINE_S: Final = 1e9
"""The library gives the distance to the end of time for a call without a deadline."""


class GrpcMethods:
    """The methods of one node."""

    def __init__(self, host: Host, inference: Inferring) -> None:
        self._host, self._service = host, OpenInferenceService(host, inference)
        self.calls = Calls(host.loop)

    def handlers(self) -> dict[str, Any]:
        """A handler for each method, by name."""
        plain: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": self._is_ready()},
            "ServerMetadata": lambda _: {
                "name": "meshnode",
                "version": software_version(),
                "extensions": [name for name in EXTENSIONS if name != "binary_tensor_data"],
            },
            "ModelReady": lambda asked: {"ready": self._is_model_ready(asked.name, asked.version or VERSION)},
            "ModelMetadata": self._metadata,
            "ModelConfig": lambda asked: {"config": self._service.configuration(asked.name, asked.version or VERSION)},
            "ModelStatistics": self._statistics,
            "RepositoryIndex": lambda asked: {"models": self._service.index(asked.ready)},
        }
        return {
            **{name: self.calls.single(partial(self._plain, name, answer)) for name, answer in plain.items()},
            "ModelInfer": self.calls.single(self._infer),
            "ModelStreamInfer": self.calls.stream(self._streamed, streamed_error),
            **{name: self.calls.refusing(text) for name, text in ABSENT.items()},
        }

    # --- what is there ---------------------------------------------------------------------------------------------
    def _plain(self, method: str, answer: Callable[[Any], Any], data: bytes, context: Any) -> bytes:
        """Answer a question with plain data."""
        if len(data) > MAX_PLAIN_BYTES:
            raise BadRequest(f"the message has {len(data)} bytes, {method} takes at most {MAX_PLAIN_BYTES}", 413)
        try:
            asked = message_class(f"{method}Request").FromString(data)
        except DecodeError as error:
            raise BadRequest(f"the message is not a {method}Request: {str(error)[:200]}") from error

        async def answered() -> Any:
            return answer(asked)

        form = self.calls.on_loop(context, answered())
        written: bytes = ParseDict(form, message_class(f"{method}Response")()).SerializeToString()
        return written

    def _is_ready(self) -> bool:
        essential = any(trouble.essential for trouble in self._host.troubles.current())
        return not self.calls.leaving and not essential

    def _is_model_ready(self, name: str, version: str) -> bool:
        try:
            return not self.calls.leaving and self._service.why_not_ready(name, version) is None
        except (ModelUnknown, ModelInvalid):  # the message has no place for the reason
            return False

    def _metadata(self, asked: Any) -> dict[str, Any]:
        form = self._service.metadata(asked.name, asked.version or VERSION)
        return {name: value for name, value in form.items() if name != "parameters"}

    def _statistics(self, asked: Any) -> dict[str, Any]:
        if not asked.name:
            return self._service.all_statistics()
        return self._service.statistics(asked.name, asked.version or VERSION)

    # --- computing -------------------------------------------------------------------------------------------------
    def _infer(self, data: bytes, context: Any) -> bytes:
        call = parse_untrusted_message(data)
        return encoded_answer(call.id, self._computed(call, context))

    def _streamed(self, data: bytes, context: Any) -> bytes:
        call = parse_untrusted_message(data)
        try:
            return streamed_answer(call.id, self._computed(call, context))
        except MeshError as error:
            return streamed_error(str(error), call.id)

    def _computed(self, call: GrpcInferenceCall, context: Any) -> Computed:
        call = replace(call, deadline_ms=earlier_deadline(call.deadline_ms, context.time_remaining()))
        return self.calls.on_loop(context, self._compute(call))

    async def _compute(self, call: GrpcInferenceCall) -> Computed:
        return await self._service.compute(self._service.to_compute(call.model, call.version), call)


def earlier_deadline(deadline_ms: int | None, left_s: float) -> int | None:
    """The deadline of a request in milliseconds: its parameter or its call, whichever ends first.

    :raises BudgetExhausted: it is past.
    """
    if left_s >= _NO_DEADLINE_S:
        return deadline_ms
    left_ms = min(int(left_s * 1_000), limits.MAX_BUDGET_MS)
    if left_ms < 1:
        raise BudgetExhausted("the deadline of the call passed before the node could compute it")
    return left_ms if deadline_ms is None else min(left_ms, deadline_ms)
