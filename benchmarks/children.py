"""Child processes that carry out orders of a benchmark. None outlives the block that started it."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import Any

ANSWER_S = 90.0


class ChildFailed(Exception):
    """A process did not answer in time, or has ended."""


class Child:
    """A process that carries out orders."""

    def __init__(self, context: BaseContext, target: Any, *arguments: Any) -> None:
        self.orders, theirs = multiprocessing.Pipe()
        self.process = context.Process(target=target, args=(*arguments, theirs), daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()

    def answer(self, timeout_s: float = ANSWER_S) -> Any:
        """Wait for its answer. :raises ChildFailed: when it does not answer in time, or has ended."""
        try:
            if self.orders.poll(timeout_s):
                return self.orders.recv()
        except (EOFError, ConnectionError):
            pass
        raise ChildFailed(f"{self.process.name} did not answer (exit status {self.process.exitcode})")

    def end(self) -> None:
        """End it by closing its orders, and kill it when that is not enough."""
        self.orders.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def child(context: BaseContext, target: Any, *arguments: Any) -> Iterator[Child]:
    """Start a process that runs ``target(*arguments, orders)`` and ends with the block."""
    process = Child(context, target, *arguments)
    try:
        yield process
    finally:
        process.end()
