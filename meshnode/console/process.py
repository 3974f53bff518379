"""A node as a process: it runs until it is told to leave, and its log goes to standard error."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import click

from meshnode.http.running import RunningHttp
from meshnode.running import Host

_log = logging.getLogger("meshnode.run")
_CHATTY = ("asyncio", "uvicorn", "zeroconf", "aiosqlite", "PIL")


_H = TypeVar("_H", bound=Host)


def _nothing(_: Host) -> None:
    pass


async def serve(
    configured: AbstractAsyncContextManager[_H], opened: Callable[[_H], object] = _nothing,
    closing: Callable[[_H], object] = _nothing,
) -> None:  # fmt: skip
    """Run a node until it is told to leave; ``opened`` and ``closing`` are called while it is open."""
    leave = asyncio.Event()

    def told_to_leave(number: int) -> None:
        if leave.is_set():
            _log.warning("second signal: ending at once")
            os._exit(128 + number)
        leave.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_leave, number)
    opening = asyncio.ensure_future(configured.__aenter__())
    told = asyncio.create_task(leave.wait())
    await asyncio.wait((opening, told), return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        return
    node: _H | None = None
    try:
        node = await opening
        listens = asyncio.create_task(node.listens.wait())
        await asyncio.wait((listens, told), return_when=asyncio.FIRST_COMPLETED)
        if not listens.cancel():
            _say_ready(node)
            opened(node)
        await told
        _log.info("%s leaves", node.id)
        closing(node)
    finally:
        told.cancel()
        if node is not None:
            await configured.__aexit__(None, None, None)
    _log.info("%s has left", node.id)


def _say_ready(node: Host) -> None:
    port = node.part(RunningHttp).port
    click.echo(f"ready {node.id} {node.role.value} port {node.port} http {port if port is not None else 'off'}")


def log_to_stderr(level: str, as_json: bool) -> None:
    """Send the log of the process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a log that can't be written must not disturb the node
    logging.captureWarnings(True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


class _TextFormatter(logging.Formatter):
    """One line for each message: what a peer sent must neither look like a line of ours nor move the cursor."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is of the base class
        """The line, without the traceback that may follow."""
        return "".join(c if c.isprintable() else "�" for c in super().formatMessage(record))


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and ``exception`` if there was one."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """The whole record."""
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
