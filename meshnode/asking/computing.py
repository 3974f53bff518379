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
_ASKING_S: Final = 5.0
"""How long the answer to one question for offers may take, dialling included."""
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
        self._idle: list[RelayRequests] = []
        self._wanted: set[int] = set()
        """Requests that wait or are under way."""
        self._cancels: deque[InferCancel] = deque()
        self._look = threading.Event()
        self._closing = False
        self._round_trip_ns = 0
        self._threads = ThreadPoolExecutor(MAX_AT_RELAY, "meshnode-at-relay")
        self._watch = threading.Thread(target=self._keep_told, name="meshnode-relay-offers", daemon=True)
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
                    self._wanted.add(request.request)
                try:
                    self._threads.submit(self._ask, request, deadline_ns)
                except RuntimeError:
                    _log.debug("the node is closing: request %d is not sent", request.request)
            case InferCancel() as cancel:
                with self._lock:
                    if cancel.request in self._wanted:
                        self._wanted.discard(cancel.request)
                        self._cancels.append(cancel)
                self._look.set()

    def _ask(self, request: InferRequest, deadline_ns: int) -> None:
        with self._lock:
            if request.request not in self._wanted:
                return
            requests = self._idle.pop() if self._idle else None
            if requests is None:
                requests = RelayRequests(self._connect)
                self._open.append(requests)
        self.asked += 1
        answer = self._answer(requests, request, deadline_ns)
        with self._lock:
            self._idle.append(requests)
            is_wanted = request.request in self._wanted
            self._wanted.discard(request.request)
        self.failed += answer.status != "done"
        if is_wanted and not self._closing:
            self._driver.act(lambda engine, now: engine.inference.relay_answered(answer, now))

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
        due_s, known, missing = 0.0, False, True
        while not self._closing:
            self._look.wait(max(due_s - time.monotonic(), 0.0))
            self._look.clear()
            if self._closing:
                return
            try:
                self._send_cancels()
                if not known:  # the time of the first question includes dialling
                    self._control.request(OffersAsked(False), OffersTold, _ASKING_S)
                    self._round_trip_ns = 0
                told, round_trip_ns = self._offers(signatures=missing)
            except MeshError as error:
                if known:
                    _log.warning("the relay computes nothing now: %s", error)
                    self._driver.act(lambda engine, now: engine.inference.relay_gone(now))
                    self._hang_up()
                known, missing, due_s = False, True, time.monotonic() + backoff.next_s()
                continue
            known = True
            missing = self._tell(told, round_trip_ns)
            if told.offers.offers:
                backoff.reset()
            due_s = time.monotonic() + (TOLD_S if told.offers.offers else backoff.next_s())

    def _tell(self, told: OffersTold, round_trip_ns: int) -> bool:
        """Hand the offers on. Returns whether signatures are missing."""
        return bool(self._driver.act(lambda engine, now: engine.inference.relay_told(told, round_trip_ns, now)))

    def _send_cancels(self) -> None:
        while True:
            with self._lock:
                if not self._cancels:
                    return
                cancel = self._cancels.popleft()
            self._control.request(cancel, OffersTold, _ASKING_S)

    def _offers(self, *, signatures: bool) -> tuple[OffersTold, int]:
        began_ns = time.monotonic_ns()
        told = self._control.request(OffersAsked(signatures), OffersTold, _ASKING_S)
        sample_ns, old_ns = time.monotonic_ns() - began_ns, self._round_trip_ns
        self._round_trip_ns = old_ns + (sample_ns - old_ns) // _SMOOTHING if old_ns else sample_ns
        return told, self._round_trip_ns

    def _hang_up(self) -> None:
        """End the requests under way: their connections lead to the relay that does not answer."""
        with self._lock:
            open_now = list(self._open)
        for requests in open_now:
            requests.hang_up()
