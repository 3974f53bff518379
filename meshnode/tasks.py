"""Tasks that nobody awaits before the node closes."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


def told(task: "asyncio.Task[None]") -> None:
    """Log a task that ended by a bug. A done callback."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("the task %s failed", task.get_name(), exc_info=task.exception())


class Tasks:
    """Tasks that end when their owner does. They belong to the event loop. One that ends by a bug is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something. Once this is closed it is not begun any more."""
        if self._is_closed:
            work.close()
            return
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(told)

    async def close(self) -> None:
        """Give up what is under way."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
