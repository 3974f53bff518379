"""Safety checks of inference: answers are right, and inputs that are private stay where they are."""

from collections.abc import Iterable, Sequence

from protocols.inference.events import Answered, PartReport
from protocols.wire.tensors import NamedTensor
from sims.checks.contract import INPUT, Check, WorldView, computed_from, computed_rows, register, steps_of
from sims.results.result import Recorder


class _Asked:
    """A request that is open."""

    __slots__ = ("inputs", "model")

    def __init__(self, model: str, inputs: tuple[NamedTensor, ...]) -> None:
        self.model, self.inputs = model, inputs


class _Requests(Check):
    """The base of checks that know which requests are open, by node and number of the request."""

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._asked: dict[str, dict[int, _Asked]] = {}

    def started(self, node: str) -> None:
        """See :class:`Check`."""
        self._asked[node] = {}

    def asked(
        self, node: str, request: int, inputs: tuple[NamedTensor, ...], deadline_ns: int, model: str
    ) -> None:  # fmt: skip
        """See :class:`Check`."""
        del deadline_ns
        self._asked.setdefault(node, {})[request] = _Asked(model, inputs)

    def ended(self, node: str, request: int) -> _Asked | None:
        """A request that ends now; None: it is not open."""
        return self._asked.get(node, {}).pop(request, None)


@register
class OneAnswerPerRequest(_Requests):
    """No request is answered twice, and nobody gets an answer to a request that was not made. A stage of a pipeline is
    no request of its caller's."""

    name = "one_answer_per_request"

    def answered(self, node: str, answer: Answered) -> None:
        """See :class:`Check`."""
        kept = self.ended(node, answer.request) is not None
        self.judge(kept, "" if kept else f"{node} got an answer to request {answer.request}, which is not open")


@register
class AnswerIsRight(_Requests):
    """An answer derives from the inputs of its own request. When the model was cut, each of its steps has run once, in
    order, on what the step before it gave; of a batch, each row is in its place. The parts that are reported fit one
    another."""

    name = "answer_is_right"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._works = world.scenario.models

    def answered(self, node: str, answer: Answered) -> None:
        """See :class:`Check`."""
        asked = self.ended(node, answer.request)
        if asked is None or answer.winner is None:
            return
        got = b"".join(bytes(output.tensor.data) for output in answer.outputs)
        what = f"request {answer.request} of {node}"
        if not answer.outputs or got != self._right(asked, len(got)):
            self.judge(False, f"{what} was answered by {answer.winner.node} with another's result")
        else:
            input_bytes = _size_bytes(asked.inputs)
            wrong = _wrong_stages(answer.parts, input_bytes, len(got)) or _wrong_shards(
                answer.parts, input_bytes, len(got)
            )
            self.judge(not wrong, wrong and f"{what}: {wrong}")

    def _right(self, asked: _Asked, output_bytes: int) -> bytes:
        work = self._works.get(asked.model)
        if work is not None and work.rows > 1:
            return computed_rows(work.rows, asked.inputs, output_bytes // work.rows)
        return computed_from(
            asked.inputs, output_bytes, steps_of(asked.model, len(work.cuts) if work is not None else 0)
        )


def _wrong_stages(parts: Sequence[PartReport], input_bytes: int, output_bytes: int) -> str:
    """What does not fit in the reports of the stages of one request; empty: nothing."""
    stages = [part for part in parts if part.kind == "stage"]
    before_bytes = input_bytes
    for index, stage in enumerate(stages):
        if stage.index != index:
            return f"stage {stage.index} is reported where stage {index} should be"
        if stage.input_bytes != before_bytes:
            return f"stage {index} took {stage.input_bytes} bytes, and there were {before_bytes}"
        before_bytes = stage.output_bytes
    if stages and before_bytes != output_bytes:
        return f"the last stage gave {before_bytes} bytes, and the answer has {output_bytes}"
    return ""


def _wrong_shards(parts: Sequence[PartReport], input_bytes: int, output_bytes: int) -> str:
    """What does not fit in the reports of the shards of one request; empty: nothing."""
    shards = [part for part in parts if part.kind == "shard"]
    if [shard.index for shard in shards] != list(range(len(shards))):
        return f"the shards {[shard.index for shard in shards]} are reported, and not each once, in order"
    taken, given = sum(shard.input_bytes for shard in shards), sum(shard.output_bytes for shard in shards)
    if shards and (taken, given) != (input_bytes, output_bytes):
        return f"its shards took {taken} and gave {given} bytes, and not {input_bytes} and {output_bytes}"
    return ""


@register
class PrivateInputsStay(_Requests):
    """Inputs of a private model never leave the node that asks: no neighbour is sent a request to run the whole model
    or its first stage, or any other that carries these inputs. It judges each request for a part of a private model
    that is sent, whether somebody takes it or not."""

    name = "private_inputs_stay"

    def __init__(self, world: WorldView, recorder: Recorder) -> None:
        super().__init__(world, recorder)
        self._private = {name for name, work in world.scenario.models.items() if work.private}

    def answered(self, node: str, answer: Answered) -> None:
        """See :class:`Check`."""
        self.ended(node, answer.request)

    def request_sent(self, node: str, model: str, inputs: tuple[NamedTensor, ...]) -> None:
        """See :class:`Check`."""
        if not self._private:
            return
        is_private = model.partition(":")[0] in self._private
        if (is_private and any(named.name == INPUT for named in inputs)) or self._carries_private(node, inputs):
            self.judge(False, f"{node} sent a private input away, with a request for {model!r}")
        elif is_private:
            self.judge(True)

    def _carries_private(self, node: str, inputs: Iterable[NamedTensor]) -> bool:
        """Whether one of these tensors is that of an open request for a private model."""
        kept = {
            bytes(named.tensor.data[:32])
            for asked in self._asked.get(node, {}).values() if asked.model in self._private
            for named in asked.inputs
        }  # fmt: skip
        return any(bytes(named.tensor.data[:32]) in kept for named in inputs)


def _size_bytes(tensors: Iterable[NamedTensor]) -> int:
    return sum(len(named.tensor.data) for named in tensors)
