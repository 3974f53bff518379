"""The Open Inference Protocol v2 on a node: clients written for an inference server work unchanged.

The mesh decides who computes, so models of neighbours are served like the node's own. ``absent`` has the calls that a
node refuses.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshnode.http.guard import BadRequest, error_response, json_response
from meshnode.inference.oip import absent
from meshnode.inference.oip.answers import encode_answer, json_elements, report
from meshnode.inference.oip.catalogue import VERSION, Catalogue, Inferring
from meshnode.inference.oip.forms import index_form
from meshnode.inference.oip.requests import (
    JSON_LENGTH_HEADER,
    MAX_REQUEST_BYTES,
    InferenceCall,
    json_bytes,
    parse_untrusted_request,
)
from meshnode.inference.oip.views import EXTENSIONS, configuration, index_line, listing, metadata
from meshnode.running import Host, HttpService

_T = TypeVar("_T")

_OFF_LOOP_BYTES: Final = 256 * 1024
"""Larger requests and answers are converted on a thread, so that they don't hold up the event loop …"""
_OFF_LOOP_ELEMENTS: Final = 16 * 1024
"""… and more JSON than this one after the other, because it takes seconds and several times the memory of its numbers.
Binary tensors don't wait for it."""
_MAX_INDEX_BYTES: Final = 4_096


class OpenInference:
    """Handlers below ``/v2``, and the list of models."""

    def __init__(self, host: Host, inference: Inferring, service: HttpService) -> None:
        self._host, self._inference, self._service = host, inference, service
        self._catalogue = Catalogue(host, inference)
        self._converting = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Paths of the handlers below."""
        routes = [
            Route("/v1/models", self.models),
            Route("/v2", self.server),
            Route("/v2/", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.all_statistics),
            Route("/v2/repository/index", self.index, methods=["POST"]),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(model, self.model),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/config", self.configuration),
                Route(f"{model}/stats", self.statistics),
                Route(f"{model}/infer", self.infer, methods=["POST"]),
            ]
        return [*routes, *absent.routes()]

    # --- server ----------------------------------------------------------------------------------------------------
    async def server(self, _: Request) -> Response:
        """The name of the server, and which extensions of the protocol it has."""
        return json_response({"name": "meshnode", "version": self._service.version, "extensions": EXTENSIONS})

    async def live(self, _: Request) -> Response:
        """The server is alive."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """The same as ``/readyz``."""
        return await self._service.readyz(request)

    # --- models ----------------------------------------------------------------------------------------------------
    async def models(self, _: Request) -> Response:
        """Every model in reach: loaded here, or offered by a neighbour."""
        return json_response([listing(model) for model in self._catalogue.models()])

    async def index(self, request: Request) -> Response:
        """Every model in reach or in the configuration, and whether it can be computed."""
        async with self._service.body(request, _MAX_INDEX_BYTES) as body:
            only_ready = index_form(body).ready
        entries = self._catalogue.index()
        return json_response([index_line(each) for each in entries if each.state == "READY" or not only_ready])

    async def model(self, request: Request) -> Response:
        """The inputs and outputs of a model."""
        model = self._catalogue.find(request)
        signature = self._inference.signature_of(model.name)
        return json_response(metadata(model, signature, self._catalogue.digest_of(model.name)))

    async def configuration(self, request: Request) -> Response:
        """The same, as Triton tells it."""
        model = self._catalogue.find(request)
        signature, digest = self._inference.signature_of(model.name), self._catalogue.digest_of(model.name)
        return json_response(configuration(model, signature, digest, self._inference.defaults.workers))

    async def model_ready(self, request: Request) -> Response:
        """Whether somebody in reach can compute it."""
        model = self._catalogue.find(request)
        why = "the node is leaving" if self._service.leaving else self._catalogue.why_not_ready(model)
        if why is not None:
            return error_response(503, f"model {model.name!r} is not ready: {why}")
        return json_response({"name": model.name, "ready": True})

    async def statistics(self, request: Request) -> Response:
        """What became of this node's requests for a model."""
        return self._statistics_of(self._catalogue.find(request).name)

    async def all_statistics(self, _: Request) -> Response:
        """The same for every model in reach."""
        return self._statistics_of(*(model.name for model in self._catalogue.models()))

    def _statistics_of(self, *names: str) -> Response:
        return json_response({"model_stats": [self._inference.requests.form(name, VERSION) for name in names]})

    # --- inference -------------------------------------------------------------------------------------------------
    async def infer(self, request: Request) -> Response:
        """Have a model computed by whoever is predicted to be done first."""
        model = self._catalogue.to_compute(request)
        async with self._service.body(request, MAX_REQUEST_BYTES) as body:
            call = await self._parsed(body, request.headers.get(JSON_LENGTH_HEADER))
            if model.loaded is not None:
                model.loaded.check_outputs(call.outputs)
            result = await self._while_wanted(
                request, self._inference.infer(model.name, call.inputs, call.outputs, call.deadline_ms)
            )
        ran = result.model or model.name
        told = report(result, self._host.id, ran, self._catalogue.digest_of(ran))
        encode = partial(
            encode_answer, call, model.name, VERSION, result.outputs, told, request.headers.get("accept-encoding", "")
        )
        in_json = json_elements(call, result.outputs)
        size_bytes = sum(array.nbytes for array in result.outputs.values())
        content, headers = await self._converted(encode, size_bytes > _OFF_LOOP_BYTES, in_json > _OFF_LOOP_ELEMENTS)
        return Response(content, headers=headers)

    async def _parsed(self, body: bytes, json_length: str | None) -> InferenceCall:
        is_long_json = json_bytes(body, json_length) > _OFF_LOOP_BYTES
        return await self._converted(
            lambda: parse_untrusted_request(body, json_length), len(body) > _OFF_LOOP_BYTES, is_long_json
        )

    async def _converted(self, convert: Callable[[], _T], is_large: bool, is_long_json: bool) -> _T:
        """The result of ``convert``, which is called on a thread if it takes long."""
        if is_long_json:
            async with self._converting:
                return await asyncio.to_thread(convert)
        return await asyncio.to_thread(convert) if is_large else convert()

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
