"""The Open Inference Protocol v2 on a node: clients written for an inference server work unchanged.

The mesh decides who computes, so models of neighbours are served like the node's own. A node has one version of a
model, called ``1``; its digest says which file that is.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.guard import BadRequest, error_response, json_response
from meshnode.inference.oip.requests import (
    JSON_LENGTH_HEADER,
    MAX_REQUEST_BYTES,
    encode_answer,
    parse_untrusted_request,
)
from meshnode.inference.result import InferenceResult
from meshnode.inference.section import InferenceSection
from meshnode.models import LoadedModel, TensorSignature, element_of_short
from meshnode.running import Host, HttpService
from protocols.base.errors import ModelInvalid, ModelUnknown
from protocols.membership.neighbour import State
from protocols.wire.inference import Offer

_T = TypeVar("_T")

VERSION: Final = "1"
_PLATFORM: Final = "onnxruntime_onnx"
_OFF_LOOP_BYTES: Final = 256 * 1024
"""Larger bodies are parsed on a thread, so that they don't hold up the event loop."""


class Inferring(Protocol):
    """What the handlers need of the part that they belong to."""

    @property
    def defaults(self) -> InferenceSection:
        """How this node computes."""

    @property
    def models(self) -> dict[str, LoadedModel]:
        """Models loaded here, by name."""

    def why_not(self, model: str) -> str | None:
        """Why a model could not be loaded here; None: it was, or it has no file here."""

    def infer(
        self, model: str, inputs: Mapping[str, Any], outputs: tuple[str, ...], deadline_ms: int | None
    ) -> Coroutine[Any, Any, InferenceResult]:
        """Have a model computed."""


class OpenInference:
    """Handlers below ``/v2``, and the list of models."""

    def __init__(self, host: Host, models: Inferring, service: HttpService) -> None:
        self._host, self._inference, self._service = host, models, service

    def routes(self) -> list[Route]:
        """Paths of the handlers below."""
        routes = [
            Route("/v1/models", self.models),
            Route("/v2", self.server),
            Route("/v2/", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(model, self.model),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/infer", self.infer, methods=["POST"]),
            ]
        return routes

    # --- server ----------------------------------------------------------------------------------------------------
    async def server(self, _: Request) -> Response:
        """The name of the server, and which extensions of the protocol it has."""
        return json_response({
            "name": "meshnode", "version": self._service.version, "extensions": ["binary_tensor_data", "parameters"]
        })  # fmt: skip

    async def live(self, _: Request) -> Response:
        """The server is alive."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """The same as ``/readyz``."""
        return await self._service.readyz(request)

    # --- models ----------------------------------------------------------------------------------------------------
    async def models(self, _: Request) -> Response:
        """Every model in reach: loaded here, or offered by a neighbour."""
        offered = self._offered()
        names = sorted({*self._inference.models, *offered})
        return json_response([
            {
                "name": name,
                "loaded": name in self._inference.models,
                "digest": self._inference.models[name].digest if name in self._inference.models else None,
                "offered_by": [
                    {"node": node, "digest": offer.digest, "compute_us": offer.compute_us, "waiting": offer.waiting}
                    for node, offer in offered.get(name, [])
                ],
            }
            for name in names
        ])  # fmt: skip

    def _offered(self) -> dict[str, list[tuple[str, Offer]]]:
        offered: dict[str, list[tuple[str, Offer]]] = {}
        for peer in self._host.peers():
            if peer.state in (State.ALIVE, State.SUSPECT):
                for offer in peer.offers:
                    offered.setdefault(offer.model, []).append((peer.node, offer))
        return offered

    def _find(self, request: Request) -> tuple[str, LoadedModel | None, list[tuple[str, Offer]]]:
        """The model in the path.

        :raises ModelUnknown: nobody in reach has it, or not in that version.
        :raises ModelInvalid: it could not be loaded here, and no neighbour offers it.
        """
        name = request.path_params["name"]
        version = request.path_params.get("version", VERSION)
        loaded: LoadedModel | None = self._inference.models.get(name)
        offers = self._offered().get(name, [])
        if loaded is None and not offers:
            if (why := self._inference.why_not(name)) is not None:
                raise ModelInvalid(f"{why}; and nobody else in reach computes it")
            known = sorted({*self._inference.models, *self._offered()})
            raise ModelUnknown(
                f"no model {name[:80]!r} here or at a neighbour; known: {', '.join(known) or 'none'}. Add "
                "[models.<name>] to the configuration of a node in reach"
            )
        if version != VERSION:
            raise ModelUnknown(f"model {name!r} has no version {version[:40]!r}: ask for {VERSION!r}, or for none")
        return name, loaded, offers

    async def model(self, request: Request) -> Response:
        """The inputs and outputs of a model. For one that only neighbours have: its name and who offers the file that
        this node would ask for."""
        name, loaded, offers = self._find(request)
        digest = loaded.digest if loaded is not None else self._host.driver.look(
            lambda engine, _: engine.inference.digest_of(name)
        )  # fmt: skip
        offers = [(node, offer) for node, offer in offers if offer.digest == digest]
        return json_response({
            "name": name,
            "versions": [VERSION],
            "platform": _PLATFORM,
            "inputs": [_signature(each) for each in loaded.inputs] if loaded is not None else [],
            "outputs": [_signature(each) for each in loaded.outputs] if loaded is not None else [],
            "parameters": {
                "digest": digest,
                "loaded": loaded is not None,
                "offered_by": ",".join(node for node, _ in offers),
            },
        })  # fmt: skip

    async def model_ready(self, request: Request) -> Response:
        """Whether somebody in reach can compute it."""
        name, loaded, offers = self._find(request)
        here = loaded is not None and self._inference.defaults.local
        if self._service.leaving or not (here or offers):
            why = (
                "the node is leaving"
                if self._service.leaving
                else "this node leaves it to neighbours, and none is there"
            )
            return error_response(503, f"model {name!r} is not ready: {why}")
        return json_response({"name": name, "ready": True})

    # --- inference -------------------------------------------------------------------------------------------------
    async def infer(self, request: Request) -> Response:
        """Have a model computed by whoever is predicted to be done first."""
        name, loaded, _ = self._find(request)
        json_length = request.headers.get(JSON_LENGTH_HEADER)
        async with self._service.body(request, MAX_REQUEST_BYTES) as body:
            if len(body) > _OFF_LOOP_BYTES:
                call = await asyncio.to_thread(parse_untrusted_request, body, json_length)
            else:
                call = parse_untrusted_request(body, json_length)
            if loaded is not None:
                loaded.check_outputs(call.outputs)
            result = await self._while_wanted(
                request, self._inference.infer(name, call.inputs, call.outputs, call.deadline_ms)
            )
        content, headers = encode_answer(call, name, VERSION, result.outputs, _report(result))
        return Response(content, headers=headers)

    async def _while_wanted(self, request: Request, work: "Coroutine[Any, Any, _T]") -> "_T":
        """The result of ``work``, unless the client hangs up or the node has to leave first: both cancel it.

        :raises BadRequest: 503 when the node had to leave; nobody sees it when the client hung up.
        """
        running = asyncio.create_task(work)
        hung_up = asyncio.create_task(_hang_up(request))
        given_up = asyncio.create_task(self._service.given_up.wait())
        others = (hung_up, given_up)
        try:
            await asyncio.wait((running, *others), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            raise BadRequest("the node is leaving" if given_up.done() else "the client hung up", 503)
        finally:
            for task in (running, *others):
                task.cancel()
            await asyncio.gather(running, *others, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _signature(tensor: TensorSignature) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": element_of_short(tensor.dtype).open_inference,
        "shape": [-1 if size is None else size for size in tensor.shape],
    }


def _report(result: InferenceResult) -> dict[str, str | float]:
    """Who computed and for how long, as parameters, which may only be texts, numbers and bools."""
    return {
        "ran_on": result.ran_on,
        "took_ms": round(result.took_ms, 3),
        "compute_ms": round(result.compute_ms, 3),
        "queued_ms": round(result.queued_ms, 3),
        "attempts": ",".join(f"{run.node}:{run.outcome}" for run in result.attempts),
    }
