"""Tasks that nobody awaits before the node closes."""

import asyncio
import logging

_log = logging.getLogger(__name__)


def told(task: "asyncio.Task[None]") -> None:
    """Log a task that ended by a bug. A done callback."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("the task %s failed", task.get_name(), exc_info=task.exception())
