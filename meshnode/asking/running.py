"""Asks the relay one question after the other, on a thread and a connection of its own; and has it compute, if the
configuration allows that for a model."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, Final

from meshnode.asking.computing import RelayComputing
from meshnode.asking.question import (
    RelayAnswer,
    RelayQuestion,
    answer_of,
    plain_relay_answer,
    relay_question_of_untrusted,
)
from meshnode.links.requests import RelayRequests, RequestRefused
from meshnode.links.transport import Requester
from meshnode.records.section import RelaySection
from meshnode.running import Host, HttpService, RunningPart
from protocols.base.errors import BoundExceeded, LocalProtocolError, MeshError, NotPermitted, RemoteProtocolError
from protocols.base.ids import Role
from protocols.base.limits import MS
from protocols.inference.events import TellRelay
from protocols.wire.asking.frames import RecordsTold

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

MAX_ASKED: Final = 16
"""Questions that wait for an answer here."""
TIMEOUT_S: Final = 10.0
"""How long one answer may take, the way to the relay included; 512 KiB at 60 kB/s."""
APPLICATION_TIMEOUT_S: Final = 4.0
"""The same for a local application, which gives up a question to the node after 5 s."""


class RunningAsking(RunningPart):
    """See the module."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._relay = host.config.given(RelaySection)
        self._requests: RelayRequests | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._places = BoundedSemaphore(MAX_ASKED)
        self._asked = self._failed = self._readings = 0
        self._computing: RelayComputing | None = None

    def performers(self) -> Mapping[type[Any], Callable[[Any], object]]:
        """It sends requests for inference to the relay."""
        return {TellRelay: self._perform}

    def _perform(self, effect: TellRelay) -> None:
        assert self._computing is not None, "only a relay that has told offers is asked"
        self._computing.perform(effect)

    async def prepare(self, closing: AsyncExitStack) -> None:
        """Be ready to ask. Nothing is dialled before the first question."""
        if self._relay is None:
            return
        if self._relay.infer:
            allowed = self._relay.infer
            self.host.driver.act(lambda engine, _: engine.inference.allow_relay(allowed))
            self._computing = RelayComputing(self.host.driver, self._connect)
            closing.push_async_callback(asyncio.to_thread, self._computing.close)
        self._requests = RelayRequests(self._connect)
        self._thread = ThreadPoolExecutor(1, "meshnode-asking")
        closing.push_async_callback(asyncio.to_thread, self._thread.shutdown)
        closing.callback(self._requests.close)  # first: whoever waits is told so

    async def serve(self, closing: AsyncExitStack) -> None:
        """Ask what the relay computes, if requests may go there."""
        if self._computing is not None:
            self._computing.start()

    def _connect(self) -> Requester:
        from meshnode.links.nng.library import open_requester  # only a node with a relay loads libnng

        host, relay = self.host, self._relay
        assert relay is not None, "questions without a relay are refused"
        return open_requester(host.config.identity.credentials, relay.address, host.mesh, Role.RELAY, relay.id)

    # --- questions ---------------------------------------------------------------------------------------------------
    def begin(self, question: RelayQuestion, timeout_s: float = TIMEOUT_S) -> "Future[RelayAnswer]":
        """Ask. May be called from any thread. The future raises

        - ``NotPermitted``: the relay's table of access does not let this node have that;
        - ``BoundExceeded``: this node asks too much, or others ask now;
        - ``TransportError``: the relay is away, or is another one than it should be;
        - ``RemoteProtocolError``: it is of an earlier version and answers no questions, or can't read its store.

        :raises LocalProtocolError: the node has no relay, or has closed. :raises BoundExceeded: too many ask here.
        """
        if self._relay is None:
            raise LocalProtocolError(
                f"the node {self.host.id} has no relay to ask: add [relay] with its address to the configuration"
            )
        if self._thread is None:
            raise LocalProtocolError(f"the node {self.host.id} is not open yet")
        if not self._places.acquire(blocking=False):
            raise BoundExceeded(f"{MAX_ASKED} questions wait for the relay: ask again later")
        try:
            answer = self._thread.submit(self._ask, question, timeout_s)
        except RuntimeError as error:
            self._places.release()
            raise LocalProtocolError(f"the node {self.host.id} has closed") from error
        answer.add_done_callback(lambda _: self._places.release())
        return answer

    async def find(self, question: RelayQuestion, timeout_s: float = TIMEOUT_S) -> RelayAnswer:
        """An answer. It raises the errors of :meth:`begin`."""
        return await asyncio.wrap_future(self.begin(question, timeout_s))

    def _ask(self, question: RelayQuestion, timeout_s: float) -> RelayAnswer:
        assert self._requests is not None, "it was prepared"
        self._asked += 1
        try:
            answer = answer_of(self._requests.request(question.frame, RecordsTold, timeout_s), question)
        except RequestRefused as error:
            self._failed += 1
            raise _meant(error) from error
        except MeshError:
            self._failed += 1
            raise
        self._readings += len(answer.readings)
        return answer

    def questions(self) -> Mapping[str, Callable[[Any], Any]]:
        """``query``: a page of the relay's records, for local applications."""
        return {"query": self._told}

    def _told(self, argument: Any) -> "Future[dict[str, Any]]":
        question = relay_question_of_untrusted(argument)
        told: Future[dict[str, Any]] = Future()
        self.begin(question, APPLICATION_TIMEOUT_S).add_done_callback(partial(_hand_on, told))
        return told

    # --- what it tells -----------------------------------------------------------------------------------------------
    def routes(self, service: HttpService) -> "list[BaseRoute]":
        """``GET /v1/query``."""
        from meshnode.asking.routes import query_routes

        return query_routes(self.begin)

    def node_view(self) -> Mapping[str, Any]:
        """``relay_computes``, if requests may go there: the relay, its offers, and the round trip; nulls and an empty
        list while it is away."""
        if self._computing is None:
            return {}
        told, round_trip_ns = self._computing.told or (None, 0)
        offers = () if told is None else told.offers.offers
        return {
            "relay_computes": {
                "relay": None if told is None else told.relay,
                "round_trip_ms": None if told is None else round(round_trip_ns / MS, 3),
                "offers": [
                    {"model": each.model, "digest": each.digest, "compute_us": each.compute_us, "p95_us": each.p95_us}
                    for each in offers
                ],
            }
        }

    def statistics(self) -> Mapping[str, int]:
        """Questions to the relay, those without an answer, and the readings that came; requests for inference that
        went there, and those without a result."""
        computing = self._computing
        return {
            "asking_questions": self._asked,
            "asking_failed": self._failed,
            "asking_readings": self._readings,
            "asking_inferences": 0 if computing is None else computing.asked,
            "asking_inferences_failed": 0 if computing is None else computing.failed,
        }


def _meant(refused: RequestRefused) -> MeshError:
    """What a refusal means to whoever asked."""
    match refused.code:
        case "access" | "identity":
            return NotPermitted(str(refused))
        case "busy":
            return BoundExceeded(str(refused))
        case "malformed" if "cursor" not in str(refused):
            return RemoteProtocolError(
                f"{refused}. A relay before wire 1.8 answers no questions of nodes: update it if it is one"
            )
        case _:
            return refused


def _hand_on(told: "Future[dict[str, Any]]", answer: "Future[RelayAnswer]") -> None:
    if answer.cancelled():
        told.set_exception(LocalProtocolError("the node has closed"))
        return
    error = answer.exception()
    if error is not None:
        told.set_exception(error)
    else:
        told.set_result(plain_relay_answer(answer.result()))
