"""The part of a peer that is the same over every link: readings and requests on top of frames."""

import abc
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import model
from benchmarks.contender import BenchmarkFailed, Ports, Setting
from benchmarks.readings import Answer, Inbox, Request, pack_answer, pack_request, publisher

ANSWER_DEADLINE_S = 5.0


class Peer(abc.ABC):
    """A contender made of a link for frames and nothing else.

    A subclass feeds ``self.inbox.receive``, all frames of one key from one thread.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.inbox = Inbox()
        self._requests = itertools.count(1)
        self._answers: dict[int, Answer] = {}
        self._answered = threading.Event()
        self.inbox.on_answer = self._take_answer
        if setting.end == "far":
            self.inbox.on_request = self._serve(setting.model)

    @abc.abstractmethod
    def listen(self, ports: Ports) -> Ports:
        """See :class:`benchmarks.contender.Contender`."""

    @abc.abstractmethod
    def connect(self, ports: Ports) -> None:
        """See :class:`benchmarks.contender.Contender`."""

    @abc.abstractmethod
    def sender(self, *, batched: bool) -> Callable[[bytes], object]:
        """A function that sends one frame and waits while the link is full."""

    def request_sender(self) -> Callable[[bytes], object]:
        """The function that sends requests and answers of 300 kB."""
        return self.sender(batched=False)

    @abc.abstractmethod
    def versions(self) -> dict[str, str]:
        """See :class:`benchmarks.contender.Contender`."""

    @abc.abstractmethod
    def close(self) -> None:
        """See :class:`benchmarks.contender.Contender`."""

    def subscribe(self, key: str, callback: Callable[[Any], object]) -> None:
        """See :class:`benchmarks.contender.Contender`."""
        self.inbox.subscribe(key, callback)

    def publisher(self, key: str, *, batched: bool) -> Callable[[Any], None]:
        """See :class:`benchmarks.contender.Contender`."""
        return publisher(self.sender(batched=batched), key, self.setting.node)

    def gatherer(self, key: str) -> Callable[[list[Any]], None]:
        """See :class:`benchmarks.contender.Contender`. Each value is put by itself, unless a subclass gathers them."""
        put = self.publisher(key, batched=True)

        def put_all(values: list[Any]) -> None:
            for value in values:
                put(value)

        return put_all

    def infer(self, array: Any, seconds: float) -> list[int]:
        """See :class:`benchmarks.contender.Contender`."""
        import numpy as np

        send = self.request_sender()
        overheads_ns: list[int] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begin_ns = time.perf_counter_ns()
            request = next(self._requests)
            self._answered.clear()
            send(pack_request(request, array))
            if not self._answered.wait(ANSWER_DEADLINE_S):
                raise BenchmarkFailed(f"no answer to request {request} in {ANSWER_DEADLINE_S:.0f} s")
            answer = self._answers.pop(request)
            output = np.asarray(answer.value)
            overheads_ns.append(time.perf_counter_ns() - begin_ns - answer.compute_ns)
            if output.shape != array.shape or output[-1] != array[-1] + 1:
                raise BenchmarkFailed(f"the answer to request {request} is wrong: shape {output.shape}")
        return overheads_ns

    def _take_answer(self, answer: Answer) -> None:
        self._answers[answer.request] = answer
        self._answered.set()

    def _serve(self, path: Path) -> Callable[[Request], None]:
        import numpy as np

        session = model.bare_session(path)

        def compute(request: Request) -> None:
            array = np.asarray(request.value)
            begin_ns = time.perf_counter_ns()
            (output,) = session.run([model.OUTPUT], {model.INPUT: array})
            compute_ns = time.perf_counter_ns() - begin_ns
            self.request_sender()(pack_answer(request.request, compute_ns, output))

        return compute
