"""Calls over a real server of the library: clients that do not send, do not read, or leave."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from meshnode.grpc import arrivals, calls, patience
from meshnode.grpc.calls import MAX_STREAMS, Calls
from meshnode.grpc.methods import earlier_deadline
from meshnode.grpc.server import MAX_CALLS, GrpcServer
from meshnode.grpc.wire.messages import SERVICE
from protocols.base.errors import BoundExceeded, BudgetExhausted, InputInvalid
from tests.tools.eventually import until
from tests.tools.grpc_fixture import begun_call, hung_up, message_frame, method_path

LARGE = 1024 * 1024


class Methods:
    """Methods of a test behind the real server."""

    def __init__(self) -> None:
        self.calls = Calls(asyncio.get_running_loop())
        self.begun, self.cancelled = threading.Event(), threading.Event()
        self.waiting = 0

    def handlers(self) -> dict[str, Any]:
        """An echo, one that is large, one that waits for ever, and those that fail."""
        return {
            "Echo": self.calls.single(lambda message, _: message),
            "Large": self.calls.single(lambda message, _: bytes(LARGE)),
            "Wait": self.calls.single(self._wait),
            "Bug": self.calls.single(lambda message, _: message / 2),
            "Wrong": self.calls.single(self._wrong),
            "Full": self.calls.single(self._full),
            "Stream": self.calls.stream(self._streamed, lambda text: text.encode()),
        }

    def _wait(self, _: bytes, context: Any) -> bytes:
        async def wait() -> bytes:
            self.waiting += 1
            self.begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.waiting -= 1
                self.cancelled.set()
                raise
            return b""

        return self.calls.on_loop(context, wait())

    def _wrong(self, _: bytes, __: Any) -> bytes:
        raise InputInvalid("ä" * 3_000)

    def _full(self, _: bytes, __: Any) -> bytes:
        raise BoundExceeded("too many: wait")

    def _streamed(self, message: bytes, context: Any) -> bytes:
        return self._wait(message, context) if message == b"wait" else self._wrong(message, context) \
            if message == b"wrong" else message  # fmt: skip


class Served:
    """A running server, and a client of it."""

    def __init__(self, methods: Methods, server: GrpcServer, port: int) -> None:
        self.methods, self.server, self.port = methods, server, port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])

    def call(self, name: str, message: bytes = b"x", timeout_s: float | None = 30.0) -> Any:
        """A call under way."""
        return self.channel.unary_unary(f"/{SERVICE}/{name}").future(message, timeout=timeout_s)

    async def answer(self, name: str, message: bytes = b"x") -> bytes:
        """The answer of a call."""
        answer: bytes = await asyncio.to_thread(self.call(name, message).result)
        return answer

    async def failure(self, call: Any) -> tuple[str, str]:
        """Status and text of a call that fails."""
        error = await asyncio.to_thread(call.exception)
        return error.code().name, error.details()

    def stream(self) -> Any:
        """A stream: ``send`` a message, and iterate over ``answers``."""
        waiting: Any = SimpleNamespace(messages=[], added=threading.Condition())

        def messages() -> Any:
            while True:
                with waiting.added:
                    waiting.added.wait_for(lambda: waiting.messages)
                    message = waiting.messages.pop(0)
                if message is None:
                    return
                yield message

        def send(message: bytes | None) -> None:
            with waiting.added:
                waiting.messages.append(message)
                waiting.added.notify_all()

        return SimpleNamespace(send=send, answers=self.channel.stream_stream(f"/{SERVICE}/Stream")(messages()))


@pytest.fixture(name="served")
async def given_served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(patience, "LOOK_S", 0.02)
    methods = Methods()
    server: Any = GrpcServer(methods)  # type: ignore[arg-type]
    served = Served(methods, server, await server.start("127.0.0.1", 0))
    yield served
    served.channel.close()
    await server.close()


# --- what goes wrong -------------------------------------------------------------------------------------------------
async def test_error_of_a_call_is_a_status_and_its_text(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """A program acts upon the status, and a person reads the text."""
    assert await served.failure(served.call("Full")) == ("RESOURCE_EXHAUSTED", "too many: wait")
    code, text = await served.failure(served.call("Wrong"))
    assert (code, text) == ("INVALID_ARGUMENT", "ä" * 750), "cut, or clients would refuse the whole head"
    assert not caplog.records
    with caplog.at_level(logging.CRITICAL, "meshnode.grpc.calls"):
        code, text = await served.failure(served.call("Bug"))
    assert (code, text) == ("INTERNAL", "internal error, TypeError: the node's log says more")
    assert await served.answer("Echo", b"goes on") == b"goes on"


async def test_call_that_is_cancelled_ends_its_work(served: Served) -> None:
    """Work for somebody who has gone delays everybody who has not."""
    call = served.call("Wait")
    await asyncio.to_thread(served.methods.begun.wait)
    call.cancel()
    assert await asyncio.to_thread(served.methods.cancelled.wait, 30)


async def test_call_whose_deadline_passes_ends_its_work(served: Served) -> None:
    """The library ends the call at both ends; the work must not go on."""
    for timeout_s in (0.2, 1.0, 5.0):  # on a busy machine a call takes its time to begin
        call = served.call("Wait", timeout_s=timeout_s)
        assert (await served.failure(call))[0] == "DEADLINE_EXCEEDED"
        if served.methods.begun.is_set():
            break
    assert await asyncio.to_thread(served.methods.cancelled.wait, 30)


# --- clients that misbehave ------------------------------------------------------------------------------------------
async def test_messages_that_stop_half_way_give_their_room_to_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few stuck senders would keep everybody out for as long as they like."""
    monkeypatch.setattr(arrivals, "GIVE_WAY_S", 0.05)
    stuck = [begun_call(served.port, method_path("Echo")) for _ in range(12)]
    for link in stuck:
        link.sendall(message_frame(b"half", LARGE, last=False))
    await until(lambda: served.methods.calls._arrivals.held_bytes == arrivals.MAX_HELD_BYTES, "all room is taken")
    assert await served.answer("Echo", b"others") == b"others"
    for link in stuck:
        link.close()


async def test_message_that_does_not_arrive_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a thread, also when nobody wants its room."""
    monkeypatch.setattr(arrivals, "ARRIVAL_S", 0.3)
    link = begun_call(served.port, method_path("Echo"))
    link.sendall(message_frame(b"half", LARGE, last=False))
    assert await asyncio.to_thread(hung_up, link)
    link.close()


async def test_call_that_waits_too_long_for_room_is_told_to_come_back(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is refused can ask another node; whoever waits can't."""
    monkeypatch.setattr(arrivals, "ROOM_S", 0.2)
    rooms = arrivals.MAX_HELD_BYTES // arrivals.MAX_MESSAGE_BYTES
    stuck = [begun_call(served.port, method_path("Echo")) for _ in range(rooms)]
    held = served.methods.calls._arrivals
    await until(lambda: held.held_bytes == arrivals.MAX_HELD_BYTES, "all room is taken")
    code, text = await served.failure(served.call("Echo"))
    assert (code, "try again in a moment" in text) == ("RESOURCE_EXHAUSTED", True)
    for link in stuck:
        link.close()
    assert await served.answer("Echo") == b"x"
    await until(lambda: held.held_bytes == 0, "all room is given back")


async def test_answer_that_is_not_taken_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a thread and the memory of its answer."""
    monkeypatch.setattr(calls, "ANSWER_S", 0.3)
    link = begun_call(served.port, method_path("Large"), window_bytes=0)
    link.sendall(message_frame(b"x"))
    assert await asyncio.to_thread(hung_up, link)
    link.close()
    assert len(await served.answer("Large")) == LARGE


async def test_calls_beyond_the_bound_are_refused_until_others_end(served: Served) -> None:
    """Each takes a thread; more of them would slow down everybody."""
    waiting = [served.call("Wait") for _ in range(MAX_CALLS)]
    await until(lambda: served.methods.waiting == MAX_CALLS, "all of them are there")
    assert (await served.failure(served.call("Echo")))[0] == "RESOURCE_EXHAUSTED"
    for call in waiting:
        call.cancel()
    await until(lambda: served.methods.waiting == 0, "all of them are gone")
    server = served.server._server._state
    await until(lambda: server.active_rpc_count == 0, "the library has noticed")
    assert await served.answer("Echo", b"again") == b"again"


# --- streams ---------------------------------------------------------------------------------------------------------
async def test_stream_answers_in_order_and_goes_on_after_an_error(served: Served) -> None:
    """One bad frame must not end the stream of a camera."""
    stream = served.stream()
    for message in (b"a", b"wrong", b"b", None):
        stream.send(message)
    answers = await asyncio.to_thread(list, stream.answers)
    assert [answers[0], answers[1][:2].decode(), answers[2]] == [b"a", "ä", b"b"]


async def test_streams_beyond_the_bound_are_refused_until_one_ends(served: Served) -> None:
    """An open stream may hold half a message for as long as it likes."""
    streams = [served.stream() for _ in range(MAX_STREAMS)]
    for stream in streams:
        stream.send(b"a")
        assert await asyncio.to_thread(next, stream.answers) == b"a"
    more = served.stream()
    with pytest.raises(grpc.RpcError, match="ask ModelInfer, or close another one"):
        await asyncio.to_thread(next, more.answers)
    streams[0].send(None)
    assert await asyncio.to_thread(list, streams[0].answers) == []
    again = served.stream()
    again.send(b"b")
    assert await asyncio.to_thread(next, again.answers) == b"b"
    for stream in (*streams[1:], again):
        stream.answers.cancel()
    more.send(None)


# --- the end ---------------------------------------------------------------------------------------------------------
async def test_server_that_closes_ends_streams_and_gives_calls_a_moment(served: Served) -> None:
    """A node that is told to leave has to leave, and says so to those who wait."""
    call, idle = served.call("Wait"), served.stream()
    idle.send(b"a")
    assert await asyncio.to_thread(next, idle.answers) == b"a"
    await asyncio.to_thread(served.methods.begun.wait)
    began_s = asyncio.get_running_loop().time()
    await served.server.close()
    assert 0.9 < asyncio.get_running_loop().time() - began_s < 30
    assert await served.failure(call) == ("UNAVAILABLE", "the node is leaving")
    with pytest.raises(grpc.RpcError):
        await asyncio.to_thread(next, idle.answers)
    assert (await served.failure(served.call("Echo")))[0] == "UNAVAILABLE"
    idle.send(None)


# --- deadlines -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked_ms", "left_s", "deadline_ms"),
    [(None, 9.2e18, None), (500, 9.2e18, 500), (None, 0.25, 250), (500, 0.25, 250), (100, 0.25, 100),
     (None, 86_400, 600_000)],
)  # fmt: skip
def test_deadline_of_a_request_is_the_earlier_one(asked_ms: int | None, left_s: float, deadline_ms: int | None) -> None:
    """The node that computes is told how much time is left, and refuses what it can't do in it."""
    assert earlier_deadline(asked_ms, left_s) == deadline_ms


def test_deadline_that_has_passed_is_told() -> None:
    """A long message may take all the time that its call has."""
    with pytest.raises(BudgetExhausted):
        earlier_deadline(None, 0.0004)
