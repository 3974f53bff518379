"""Bars that show how far something has got, at which rate, and how long it will take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

_LOOK_S: Final = 0.5


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while something is done with ``total`` bytes. Gives a function that takes how many more
    are done."""
    with _bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda size_bytes: bar.advance(task, size_bytes)


def watch_fetching(look: Callable[[], dict[str, Any]]) -> None:
    """Show a bar for each release that a node fetches, until there is none. ``look``: what ``/v1/releases`` gives."""
    tasks: dict[tuple[str, int], Any] = {}
    with _bar() as bar:
        while fetching := [each for path in look().get("paths", ()) for each in path["fetching"]]:
            for each in fetching:
                name = each["path"], each["counter"]
                if name not in tasks:
                    tasks[name] = bar.add_task(f"{each['path']} {each['counter']}", total=each["bytes"])
                bar.update(tasks[name], completed=each["held_bytes"])
            time.sleep(_LOOK_S)
