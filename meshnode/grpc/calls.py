"""One call: its message comes in, somebody answers it, the answer goes out; or a status says why not.

Each call has a thread of the library's pool, which waits for the message, for the event loop of the node, and until the
client has taken the answer. All methods are registered as streams, though most have one message and one answer. On the
wire that is the same, and only so a server decides when a message may come, and knows whether an answer was taken.
"""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc

from meshnode.grpc.arrivals import Arrivals, ClientGone
from meshnode.grpc.patience import ClientPatience
from meshnode.grpc.status import code_of, details_of
from protocols.base.errors import MeshError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
ANSWER_S: Final = 30.0
"""An answer that its client does not take for so long is given up."""
MAX_STREAMS: Final = 4
"""Each may hold a message that has half arrived, for as long as it is open: 64 MiB."""
LEAVING: Final = "the node is leaving"
Answer = Callable[[bytes, Any], bytes]
"""Makes an answer of a message; the other argument is the library's context of the call. :raises MeshError: why not."""


@dataclass(frozen=True, slots=True)
class _Failure:
    code: grpc.StatusCode
    text: str


class Calls:
    """Makes handlers of functions, and ends calls when the node leaves. :meth:`on_loop` is for those functions."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._patience = loop, ClientPatience(loop)
        self._arrivals = Arrivals(self._patience)
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._lock = threading.Lock()
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._idle: set[Any] = set()
        """Contexts of streams that wait for their next message."""
        self.leaving = self._given_up = False

    # --- handlers --------------------------------------------------------------------------------------------------
    def single(self, answer: Answer) -> Any:
        """A handler of a method with one message and one answer."""

        def behave(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            outcome = self._outcome(lambda: self._answered(answer, requests, context))
            if isinstance(outcome, _Failure):
                context.abort(outcome.code, outcome.text)
            elif outcome is not None:
                with self._patience.within(ANSWER_S, context.cancel):
                    yield outcome

        return grpc.stream_stream_rpc_method_handler(behave)

    def _answered(self, answer: Answer, requests: Iterator[bytes], context: Any) -> bytes:
        with self._arrivals.message(requests, context) as message:
            return answer(message, context)

    def stream(self, answer: Answer, failed: Callable[[str], bytes]) -> Any:
        """A handler of a method with many messages, each of which is answered before the next one is taken. ``failed``
        makes the answer to one that can't be answered: the stream goes on."""

        def behave(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            if not self._streams.acquire(blocking=False):
                context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{MAX_STREAMS} streams are open, and no more may be: ask ModelInfer, or close another one",
                )
            try:
                while (message := self._next(requests, context)) is not None:
                    outcome = self._outcome(lambda message=message: answer(message, context))  # type: ignore[misc]
                    if outcome is None:
                        return
                    with self._patience.within(ANSWER_S, context.cancel):
                        yield failed(outcome.text) if isinstance(outcome, _Failure) else outcome
                if self.leaving:
                    context.abort(grpc.StatusCode.UNAVAILABLE, LEAVING)
            finally:
                self._streams.release()

        return grpc.stream_stream_rpc_method_handler(behave)

    def _next(self, requests: Iterator[bytes], context: Any) -> bytes | None:
        """The next message of a stream; None: none comes, or the node leaves."""
        with self._lock:
            if self.leaving:
                return None
            self._idle.add(context)
        try:
            return next(requests, None)
        finally:
            with self._lock:
                self._idle.discard(context)

    @staticmethod
    def refusing(text: str) -> Any:
        """A handler of a method that a node does not have."""

        def behave(_: Iterator[bytes], context: Any) -> Iterator[bytes]:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
            yield b""

        return grpc.stream_stream_rpc_method_handler(behave)

    def _outcome(self, work: Callable[[], bytes]) -> bytes | _Failure | None:
        """What came of ``work``; None: nobody waits for it."""
        try:
            return work()
        except (ClientGone, concurrent.futures.CancelledError):
            return _Failure(grpc.StatusCode.UNAVAILABLE, LEAVING) if self._given_up else None
        except MeshError as error:
            return _Failure(code_of(error), details_of(error))
        except grpc.RpcError:  # the library's own, for a call that was cancelled while its message came
            return None
        except Exception as error:  # noqa: BLE001 - a bug of ours, which the client is told like any other error
            _log.exception("a call failed")
            text = f"internal error, {type(error).__name__}: the node's log says more"
            return _Failure(grpc.StatusCode.INTERNAL, text)

    # --- the event loop --------------------------------------------------------------------------------------------
    def on_loop(self, context: Any, work: Coroutine[Any, Any, _T]) -> _T:
        """What ``work`` returns on the event loop of the node. It is cancelled when the call is: by its client, at its
        deadline, or because the node leaves.

        :raises concurrent.futures.CancelledError: it was.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with self._lock:
            self._waiting.add(future)
            too_late = self._given_up
        try:
            if too_late or not context.add_callback(future.cancel):
                future.cancel()
            return future.result()
        finally:
            with self._lock:
                self._waiting.discard(future)

    # --- the end ---------------------------------------------------------------------------------------------------
    def leave(self) -> None:
        """The node closes: streams end once their message under way is answered."""
        with self._lock:
            self.leaving = True
            idle = list(self._idle)
        for context in idle:
            context.cancel()

    def give_up(self) -> None:
        """Nothing is waited for any longer."""
        with self._lock:
            self._given_up = True
            waiting = list(self._waiting)
        for future in waiting:
            future.cancel()
