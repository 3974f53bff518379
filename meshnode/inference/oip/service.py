"""What a node answers to the Open Inference Protocol, whatever carries question and answer.

The mesh decides who computes, so models of neighbours are served like the node's own. Answers are plain data in the
layout of the protocol. Called on the event loop of the node only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshnode.inference.oip.calls import InferenceCall, Parameters
from meshnode.inference.oip.catalogue import VERSION, Catalogue, Inferring, ModelInReach
from meshnode.inference.oip.views import configuration, index_line, listing, metadata
from meshnode.inference.result import InferenceResult, parts_text
from meshnode.running import Host
from protocols.base.ids import NodeId
from protocols.inference.relay import where_ran

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Computed:
    """What came of a request."""

    model: str
    """The model that was asked for."""
    version: str
    outputs: "Mapping[str, NDArray[Any]]"
    parameters: Parameters
    """Who computed what, where and for how long."""


class OpenInferenceService:
    """The models in reach of one node."""

    def __init__(self, host: Host, inference: Inferring) -> None:
        self._host, self._inference = host, inference
        self._catalogue = Catalogue(host, inference)

    # --- what is there: all raise ModelUnknown and ModelInvalid as Catalogue.find does --------------------------------
    def models(self) -> list[dict[str, Any]]:
        """Every model in reach: loaded here, or offered by a neighbour."""
        return [listing(model) for model in self._catalogue.models()]

    def index(self, only_ready: bool) -> list[dict[str, str]]:
        """Every model in reach or in the configuration, and whether it can be computed."""
        entries = self._catalogue.index()
        return [index_line(each) for each in entries if each.state == "READY" or not only_ready]

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """The inputs and outputs of a model."""
        model = self._catalogue.find(name, version)
        return metadata(model, self._inference.signature_of(name), self._catalogue.digest_of(name))

    def configuration(self, name: str, version: str) -> dict[str, Any]:
        """The same, as Triton tells it."""
        model = self._catalogue.find(name, version)
        signature, digest = self._inference.signature_of(name), self._catalogue.digest_of(name)
        return configuration(model, signature, digest, self._inference.defaults.workers)

    def why_not_ready(self, name: str, version: str) -> str | None:
        """Why a model can't be computed at the moment; None: it can."""
        return self._catalogue.why_not_ready(self._catalogue.find(name, version))

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """What became of this node's requests for a model."""
        return self._statistics_of(self._catalogue.find(name, version).name)

    def all_statistics(self) -> dict[str, Any]:
        """The same for every model in reach."""
        return self._statistics_of(*(model.name for model in self._catalogue.models()))

    def _statistics_of(self, *names: str) -> dict[str, Any]:
        return {"model_stats": [self._inference.requests.form(name, VERSION) for name in names]}

    # --- computing ---------------------------------------------------------------------------------------------------
    def to_compute(self, name: str, version: str) -> ModelInReach:
        """The model of a request. :raises ModelUnknown, ModelInvalid: there is none."""
        return self._catalogue.to_compute(name, version)

    async def compute(self, model: ModelInReach, call: InferenceCall) -> Computed:
        """Have a model computed by whoever is predicted to be done first. Cancelling it ends the run.

        :raises InferenceError: there is no answer.
        """
        if model.loaded is not None:
            model.loaded.check_outputs(call.outputs)
        if call.shard is None:
            result = await self._inference.infer(model.name, call.inputs, call.outputs, call.deadline_ms)
        else:
            result = await self._inference.infer_batch(
                model.name, call.inputs, call.outputs, call.deadline_ms, shard=call.shard or None
            )
        ran = result.model or model.name
        outputs = {name: result.outputs[name] for name in call.outputs or result.outputs}
        told: Parameters = dict(report(result, self._host.id, ran, self._catalogue.digest_of(ran)))
        if call.shard is not None:
            told["shards"] = ",".join(
                f"{part.node}:{part.size}:{part.compute_us / 1e3:.3f}:{part.replays}" for part in result.parts
            )
        return Computed(model.name, VERSION, outputs, told)


def report(result: InferenceResult, here: NodeId, model: str, digest: str | None) -> dict[str, str | float]:
    """Who computed what, where and for how long, as parameters, which may only be texts, numbers and bools.

    ``model``: the one that ran. ``digest``: of the file that this node means by it; None when nobody in reach still has
    it.
    """
    return {
        "ran_on": result.ran_on,
        "where": where_ran(result.ran_on, here),
        "model": model,
        "digest": digest or "",
        "took_ms": round(result.took_ms, 3),
        "compute_ms": round(result.compute_ms, 3),
        "queued_ms": round(result.queued_ms, 3),
        "attempts": ",".join(f"{run.node}:{run.outcome}" for run in result.attempts),
        "attempt_count": len(result.attempts),
        "parts": parts_text(result.parts),
        "part_count": len(result.parts),
    }
