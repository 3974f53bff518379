"""Inference of one input after the other: the frames of a camera, or the files of a folder.

    source ──pulled──▶ under way ──answered──▶ waits for the reader ──▶ taken

Rules:

1. At most ``in_flight`` inputs are between the source and the reader: under way, or answered and not taken yet. The
   source is pulled only when there is a place. So a slow reader slows the source down, and memory is bounded.
2. Every input that was pulled gives one item: a result, or the error of this input alone. A late frame does not end the
   stream of a camera.
3. What ends a stream early (its reader leaves, the node closes) cancels what is under way, and waits until it is gone.
   What the source raises comes after the items of all inputs before it.

A stream belongs to the event loop of its node. It uses nothing of a node but its ``infer``, so a node in this process
and one that an application is connected to have the same streams.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from meshnode.inference.result import InferenceResult
from protocols.base.errors import InputInvalid, LocalProtocolError, MeshError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from protocols.wire.tensors import Tensor

    Inputs = Mapping[str, ArrayLike | Tensor]
    """Arrays by name of the input."""
else:
    Inputs = Mapping

Order = Literal["input", "done"]


@dataclass(frozen=True, slots=True)
class StreamItem:
    """What became of one input."""

    index: int
    """The place of the input in its source, from 0. Inputs that were dropped have a place too."""
    outcome: InferenceResult | MeshError

    @property
    def error(self) -> MeshError | None:
        """Why there is no result; None: there is one."""
        return self.outcome if isinstance(self.outcome, MeshError) else None

    def result(self) -> InferenceResult:
        """The result. :raises MeshError: the error of this input."""
        if isinstance(self.outcome, MeshError):
            raise self.outcome
        return self.outcome


class InferenceStream:
    """An async iterator of :class:`StreamItem`, made by ``infer_stream``. One task reads it.

    Nothing is pulled before the first item is asked for. Leaving the loop, or cancelling the task that reads, cancels
    what is under way. ``async with`` does that before the next line of the program, and a loop alone soon after.
    """

    def __init__(self, flow: "_Flow") -> None:
        self._flow = flow
        # The flow knows neither this generator nor this object, so a loop that is left frees both.
        self._items = flow.items()

    @property
    def dropped(self) -> int:
        """How many inputs were left out because a newer one came before there was a place (``newest=True``)."""
        return self._flow.dropped

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        """:raises InferenceError: the node has closed. What the source raises is raised here as it is."""
        return await anext(self._items)

    async def aclose(self) -> None:
        """Cancel what is under way, and wait until it is gone. Idempotent. The source is not closed."""
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class OpenStreams:
    """The streams of one node that are being read."""

    def __init__(self) -> None:
        self._flows: set[_Flow] = set()
        self._why: MeshError | None = None

    def add(self, flow: "_Flow") -> None:
        """Note one that begins. :raises MeshError: they have all ended."""
        if self._why is not None:
            raise self._why
        self._flows.add(flow)

    def discard(self, flow: "_Flow") -> None:
        """Forget one that has ended."""
        self._flows.discard(flow)

    def end(self, why: MeshError) -> None:
        """End all of them, and those to come: their readers get ``why``."""
        self._why = why
        for flow in list(self._flows):
            flow.end(why)


class StreamingInference(ABC):
    """Makes streams: what a node and an application that is connected to one have in common."""

    max_in_flight: ClassVar[int]
    """The most requests that may be under way at once."""
    streams: OpenStreams

    @abstractmethod
    def require_open(self) -> None:
        """:raises LocalProtocolError: outside ``async with``."""

    @abstractmethod
    async def infer(
        self, model: str, inputs: Inputs, *, outputs: tuple[str, ...] = (), deadline_ms: int | None = None,
        hedge: bool | None = None,
    ) -> InferenceResult:  # fmt: skip
        """Have ``model`` computed once."""

    def infer_stream(
        self, model: str, inputs: Iterable[Inputs] | AsyncIterable[Inputs], *, outputs: tuple[str, ...] = (),
        deadline_ms: int | None = None, hedge: bool | None = None, in_flight: int = 4, order: Order = "input",
        newest: bool = False,
    ) -> InferenceStream:  # fmt: skip
        """Have ``model`` computed for one input after the other, several at a time: iterate over the result.

        ``inputs``: gives arrays by input name. A plain iterable is read on the event loop, so one that blocks has to be
        an async iterable. ``in_flight``: the most inputs that are under way, or answered and not taken yet.
        ``order``: ``input`` gives items in the order of the inputs, ``done`` each as soon as it is answered.
        ``newest``: read the source without waiting, and drop an input when a newer one comes before there is a place;
        for a camera that is faster than the model. The other arguments are those of :meth:`infer`, for each input.

        :raises LocalProtocolError: a number is out of range, or the node is not open.
        :raises InputInvalid: ``inputs`` is no sequence, or with ``newest`` not an async one.
        """
        self.require_open()
        if not 1 <= in_flight <= self.max_in_flight:
            raise LocalProtocolError(f"in_flight {in_flight} is out of range: use 1 to {self.max_in_flight}")
        if order not in ("input", "done"):
            raise LocalProtocolError(f"order {order!r} is unknown: use 'input' or 'done'")
        if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable | AsyncIterable):
            raise InputInvalid(
                f"a stream of {model!r} needs a sequence of mappings, not one {type(inputs).__name__}: put it into a "
                "list, or use infer"
            )
        if newest and not isinstance(inputs, AsyncIterable):
            raise InputInvalid("newest=True needs an async iterable, which tells when an input comes")

        def ask(each: Inputs) -> Awaitable[InferenceResult]:
            return self.infer(model, each, outputs=outputs, deadline_ms=deadline_ms, hedge=hedge)

        return InferenceStream(_Flow(ask, inputs, in_flight, order, newest, self.streams))


_Numbered = AsyncGenerator[tuple[int, Inputs], None]


class _Flow:
    """One stream at work. Its tasks know it, and it knows its tasks."""

    def __init__(
        self, ask: Callable[[Inputs], Awaitable[InferenceResult]], inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        in_flight: int, order: Order, newest: bool, streams: OpenStreams,
    ) -> None:  # fmt: skip
        self.dropped = 0
        self._ask, self._order, self._streams = ask, order, streams
        self._source = self._newest(_numbered(inputs)) if newest else _numbered(inputs)
        self._places = asyncio.Semaphore(in_flight)
        self._under_way: set[asyncio.Task[StreamItem]] = set()
        self._ready: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()  # bounded by the places; the pull is its last
        self._pull: asyncio.Task[None] | None = None
        self._why: MeshError | None = None

    async def items(self) -> AsyncGenerator[StreamItem, None]:
        """The items. Closing it cancels what is under way."""
        self._streams.add(self)
        pull = self._pull = asyncio.create_task(self._pull_all(), name="stream: pull")
        pull.add_done_callback(self._ready.put_nowait)
        try:
            while True:
                task = await self._ready.get()
                await asyncio.wait((task,))
                if self._why is not None:
                    raise self._why
                if task is pull:
                    pull.result()  # raises what the source has raised
                    return
                self._places.release()
                yield task.result()
        finally:
            self._streams.discard(self)
            self._cancel()
            await asyncio.gather(pull, *self._under_way, return_exceptions=True)

    def end(self, why: MeshError) -> None:
        """Cancel what is under way; the reader gets ``why``."""
        self._why = why
        self._cancel()

    def _cancel(self) -> None:
        if self._pull is not None:
            self._pull.cancel()
        for task in self._under_way:
            task.cancel()

    async def _pull_all(self) -> None:
        """Start a request for each input, and end when all of them have."""
        try:
            while True:
                await self._places.acquire()
                try:
                    index, inputs = await anext(self._source)
                except StopAsyncIteration:
                    return
                task = asyncio.create_task(self._item(index, inputs), name="stream: item")
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                if self._order == "input":
                    self._ready.put_nowait(task)
                else:
                    task.add_done_callback(self._ready.put_nowait)
        finally:
            await self._source.aclose()
            if self._under_way:
                await asyncio.wait(self._under_way)

    async def _item(self, index: int, inputs: Inputs) -> StreamItem:
        try:
            if not isinstance(inputs, Mapping):
                raise InputInvalid(f"input {index} is a {type(inputs).__name__}: give arrays by name of the input")
            return StreamItem(index, await self._ask(inputs))
        except MeshError as error:
            return StreamItem(index, error)

    async def _newest(self, source: _Numbered) -> _Numbered:
        """Read ``source`` without waiting for anybody, and hand on the newest input whenever one is wanted."""
        held: deque[tuple[int, Inputs]] = deque(maxlen=1)
        came = asyncio.Event()

        async def read() -> None:
            async for each in source:
                self.dropped += len(held)
                held.append(each)
                came.set()

        reading = asyncio.create_task(read(), name="stream: newest")
        reading.add_done_callback(lambda _: came.set())
        try:
            while True:
                if held:
                    yield held.pop()
                elif reading.done():
                    reading.result()  # raises what the source has raised
                    return
                else:
                    came.clear()
                    await came.wait()
        finally:
            reading.cancel()
            await asyncio.wait((reading,))


async def _numbered(source: Iterable[Inputs] | AsyncIterable[Inputs]) -> _Numbered:
    index = 0
    if isinstance(source, AsyncIterable):
        async for inputs in source:
            yield index, inputs
            index += 1
    else:
        for inputs in source:
            yield index, inputs
            index += 1
