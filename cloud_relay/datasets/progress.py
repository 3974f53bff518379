"""How far a long command came: a bar on a terminal, and plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

TOLD_EACH_S: Final = 10.0
"""Between two lines in a log."""
_LOOK_EACH: Final = 256
"""Records between two looks at the clock."""


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on standard error how many of ``total`` records are done; None: nobody knows how many there are. Gives a
    function that takes how many are done."""
    if sys.stderr.isatty():
        with _bar(what, total) as told:
            yield told
        return
    yield _Lines(what, total).tell


class _Lines:
    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._of = what, "" if total is None else f" of {total:,}"
        self._following_s = time.monotonic() + TOLD_EACH_S

    def tell(self, done: int) -> None:
        if done % _LOOK_EACH == 0 and time.monotonic() >= self._following_s:
            self._following_s = time.monotonic() + TOLD_EACH_S
            sys.stderr.write(f"{self._what}: {done:,}{self._of} records\n")
            sys.stderr.flush()


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    counts = "{task.completed:,} records" if total is None else "{task.completed:,} of {task.total:,} records"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn(counts), TimeElapsedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=total)

        def told(done: int) -> None:
            if done % _LOOK_EACH == 0 or done == total:
                bar.update(task, completed=done)

        yield told
