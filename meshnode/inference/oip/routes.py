"""The Open Inference Protocol v2 over HTTP: clients written for an inference server work unchanged.

``absent`` has the calls that a node refuses.
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
from meshnode.inference.oip.answers import encode_answer, json_elements
from meshnode.inference.oip.catalogue import VERSION, Inferring
from meshnode.inference.oip.forms import index_form
from meshnode.inference.oip.requests import (
    JSON_LENGTH_HEADER,
    MAX_REQUEST_BYTES,
    HttpInferenceCall,
    json_bytes,
    parse_untrusted_request,
)
from meshnode.inference.oip.service import OpenInferenceService
from meshnode.inference.oip.views import EXTENSIONS
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
        self._service, self._answers = service, OpenInferenceService(host, inference)
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
        return json_response(self._answers.models())

    async def index(self, request: Request) -> Response:
        """Every model in reach or in the configuration, and whether it can be computed."""
        async with self._service.body(request, _MAX_INDEX_BYTES) as body:
            only_ready = bool(index_form(body).ready)
        return json_response(self._answers.index(only_ready))

    async def model(self, request: Request) -> Response:
        """The inputs and outputs of a model."""
        return json_response(self._answers.metadata(*_path(request)))

    async def configuration(self, request: Request) -> Response:
        """The same, as Triton tells it."""
        return json_response(self._answers.configuration(*_path(request)))

    async def model_ready(self, request: Request) -> Response:
        """Whether somebody in reach can compute it."""
        name, version = _path(request)
        why = self._answers.why_not_ready(name, version)
        if self._service.leaving:
            why = "the node is leaving"
        if why is not None:
            return error_response(503, f"model {name!r} is not ready: {why}")
        return json_response({"name": name, "ready": True})

    async def statistics(self, request: Request) -> Response:
        """What became of this node's requests for a model."""
        return json_response(self._answers.statistics(*_path(request)))

    async def all_statistics(self, _: Request) -> Response:
        """The same for every model in reach."""
        return json_response(self._answers.all_statistics())

    # --- inference -------------------------------------------------------------------------------------------------
    async def infer(self, request: Request) -> Response:
        """Have a model computed by whoever is predicted to be done first."""
        model = self._answers.to_compute(*_path(request))
        async with self._service.body(request, MAX_REQUEST_BYTES) as body:
            call = await self._parsed(body, request.headers.get(JSON_LENGTH_HEADER))
            computed = await self._while_wanted(request, self._answers.compute(model, call))
        encode = partial(encode_answer, call, computed, request.headers.get("accept-encoding", ""))
        in_json = json_elements(call, computed.outputs)
        size_bytes = sum(array.nbytes for array in computed.outputs.values())
        content, headers = await self._converted(encode, size_bytes > _OFF_LOOP_BYTES, in_json > _OFF_LOOP_ELEMENTS)
        return Response(content, headers=headers)

    async def _parsed(self, body: bytes, json_length: str | None) -> HttpInferenceCall:
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


def _path(request: Request) -> tuple[str, str]:
    """Name and version of the model that a request is about."""
    return request.path_params["name"], request.path_params.get("version", VERSION)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
