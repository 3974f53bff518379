"""Has the relay compute the requests that placement gives to it, over connections of their own.

One thread asks the relay what it offers, which also measures the way to it, and tells it what is not wanted any more.
A request takes one of ``MAX_AT_RELAY`` other threads with a connection each, until it is answered, so that it delays
neither records nor questions. Invariant: for each request that the engine sends there is one answer, ``failed`` if the
relay gave none; cancelled ones have none.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from msgspec.structs import replace

from meshnode.backoff import Backoff
from meshnode.driver import Driver
from meshnode.links.requests import RelayRequests, RequestRefused
from meshnode.links.transport import Requester
from protocols.base.errors import MeshError
from protocols.base.limits import MAX_TEXT_CHARS, SECOND
from protocols.inference.events import TellRelay
from protocols.inference.relay import MAX_AT_RELAY
from protocols.wire.inference import InferAnswer, InferCancel, InferRequest, OffersAsked, OffersTold

TOLD_S: Final = 5.0
"""How often the relay is asked for its offers: a few hundred bytes, so about 0.2 MB an hour. Each answer to a request
tells its queue, too."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
"""The pauses while the relay is away, or offers nothing to this node: it may still load its models."""
_DIALLING_S: Final = 5.0
_ASKING_S: Final = 2.0
"""How long the answer to the first question for offers may take, dialling included, and to the next ones. A relay that
needs longer is not asked to compute."""
IDLE_S: Final = 60.0
"""A connection for requests that nobody has used for so long is dialled anew: the NAT of a mobile network may have
forgotten it, and it would show only when the request is late."""
_GRACE_S: Final = 1.0
"""How long after its budget the answer to a request is still waited for: the relay says so when it is late."""
_SMOOTHING: Final = 8
"""The inverse gain of the mean round trip, as between neighbours."""
_log = logging.getLogger(__name__)


class RelayComputing:
    """See the module."""

    def __init__(self, driver: Driver, connect: Callable[[], Requester]) -> None:
        """``connect`` opens one more connection to the relay."""
        self._driver, self._connect = driver, connect
        self._lock = threading.Lock()
        self._control = RelayRequests(connect)
        self._open = [self._control]
        self._idle: list[tuple[float, RelayRequests]] = []
        """Connections for requests, each with the time since when nobody has used it; the last used one comes last."""
        self._waiting: set[int] = set()
        self._under_way: set[int] = set()
        """Requests by number: those that have no connection yet, and those that were sent."""
        self._cancels: deque[InferCancel] = deque()
        self._look = threading.Event()
        self._closing = False
        self._round_trip_ns = 0
        self._threads = ThreadPoolExecutor(MAX_AT_RELAY, "meshnode-at-relay")
        self._watch = threading.Thread(target=self._keep_told, name="meshnode-relay-offers", daemon=True)
        self.told: tuple[OffersTold, int] | None = None
        """What the relay offers, and the round trip to it in nanoseconds; None: it is away."""
        self.asked = self.failed = 0
        """Requests that went to the relay, and those that it did not answer with a result."""

    def start(self) -> None:
        """Begin to ask what the relay offers."""
        self._watch.start()

    def close(self) -> None:
        """End all connections and threads. Requests under way fail. Blocking."""
        with self._lock:
            self._closing, open_now = True, list(self._open)
        self._look.set()
        for requests in open_now:
            requests.close()
        self._threads.shutdown(cancel_futures=True)
        if self._watch.ident is not None:
            self._watch.join()

    # --- requests; any thread --------------------------------------------------------------------------------------
    def perform(self, effect: TellRelay) -> None:
        """Send a request, or cancel one. Never blocks."""
        match effect.frame:
            case InferRequest() as request:
                deadline_ns = time.monotonic_ns() + request.budget_us * 1_000
                with self._lock:
                    if self._closing:
                        return
                    self._waiting.add(request.request)
                    self._threads.submit(self._ask, request, deadline_ns)
            case InferCancel() as cancel:
                with self._lock:
                    self._waiting.discard(cancel.request)
                    if cancel.request in self._under_way:
                        self._cancels.append(cancel)
                        self._look.set()

    def _ask(self, request: InferRequest, deadline_ns: int) -> None:
        """Have one request answered, on a thread for that."""
        number = request.request
        with self._lock:
            if number not in self._waiting or self._closing:
                return
            self._waiting.discard(number)
            self._under_way.add(number)
            requests = self._connection()
        answer = InferAnswer(number, "failed", detail="the node could not ask the relay")
        try:
            answer = self._answer(requests, request, deadline_ns)
        finally:
            with self._lock:
                self._under_way.discard(number)
                self._idle.append((time.monotonic(), requests))
                self.asked += 1
                self.failed += answer.status != "done"
                closing = self._closing
            if not closing:
                self._driver.act(lambda engine, now: engine.inference.relay_answered(answer, now))

    def _connection(self) -> RelayRequests:
        """The connection that was used last, or a new one. Call it with the lock."""
        if not self._idle:
            requests = RelayRequests(self._connect)
            self._open.append(requests)
            return requests
        since_s, requests = self._idle.pop()
        if time.monotonic() - since_s > IDLE_S:
            requests.hang_up()
        return requests

    def _answer(self, requests: RelayRequests, request: InferRequest, deadline_ns: int) -> InferAnswer:
        left_ns = deadline_ns - time.monotonic_ns()
        if left_ns <= 0:
            return InferAnswer(request.request, "late", detail="others were before it on the way to the relay")
        try:
            asked = replace(request, budget_us=left_ns // 1_000)
            answer = requests.request(asked, InferAnswer, left_ns / SECOND + _GRACE_S)
        except MeshError as error:
            if not isinstance(error, RequestRefused):
                self._look.set()  # it may be away
            return InferAnswer(request.request, "failed", detail=str(error)[:MAX_TEXT_CHARS])
        return replace(answer, request=request.request)

    # --- its own thread --------------------------------------------------------------------------------------------
    def _keep_told(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        due_s, missing, why = 0.0, True, ""
        while not self._closing:
            self._look.wait(max(due_s - time.monotonic(), 0.0))
            self._look.clear()
            if self._closing:
                return
            try:
                if self._send_cancels() and time.monotonic() < due_s:
                    continue
                told = self._ask_offers(signatures=missing)
            except MeshError as error:
                if self._closing:
                    return
                if str(error) != why:
                    why = str(error)
                    _log.warning("the relay computes nothing now: %s", _meant(error))
                self._lose()
                missing, due_s = True, time.monotonic() + backoff.next_s()
                continue
            why, missing = "", self._tell(told)
            if told.offers.offers:
                backoff.reset()
            due_s = time.monotonic() + (TOLD_S if told.offers.offers else backoff.next_s())

    def _send_cancels(self) -> bool:
        """Tell what is not wanted any more, and return whether there was something. :raises MeshError: the relay does
        not answer."""
        sent = False
        while self._cancels:
            sent = True
            try:
                self._control.request(self._cancels.popleft(), OffersTold, _ASKING_S)
            except RequestRefused as error:
                if error.code != "busy":  # it is cancelled all the same
                    raise
        return sent

    def _ask_offers(self, *, signatures: bool) -> OffersTold:
        """Ask for offers. :raises MeshError: the relay does not answer so."""
        if self.told is None:  # the time of the first question includes dialling
            self._control.request(OffersAsked(False), OffersTold, _DIALLING_S)
            self._round_trip_ns = 0
        began_ns = time.monotonic_ns()
        told = self._control.request(OffersAsked(signatures), OffersTold, _ASKING_S)
        sample_ns, old_ns = time.monotonic_ns() - began_ns, self._round_trip_ns
        self._round_trip_ns = old_ns + (sample_ns - old_ns) // _SMOOTHING if old_ns else sample_ns
        return told

    def _tell(self, told: OffersTold) -> bool:
        """Hand the offers on. Returns whether signatures are missing."""
        self.told = told, (round_trip_ns := self._round_trip_ns)
        return bool(self._driver.act(lambda engine, now: engine.inference.relay_told(told, round_trip_ns, now)))

    def _lose(self) -> None:
        """The relay is away. Requests under way end, too: their connections lead to it."""
        self._cancels.clear()
        if self.told is None:
            return
        self.told = None
        self._driver.act(lambda engine, now: engine.inference.relay_gone(now))
        with self._lock:
            open_now = list(self._open)
        for requests in open_now:
            requests.hang_up()


def _meant(error: MeshError) -> str:
    if isinstance(error, RequestRefused) and error.code == "malformed":
        return f"{error}. A relay before wire 1.9 computes nothing for nodes: update it if it is one"
    return str(error)
