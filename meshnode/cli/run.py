"""``meshnode run``: one node as a process, until it is told to leave."""

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meshnode.node import Node

_log = logging.getLogger("meshnode.run")
_CHATTY = ("asyncio", "uvicorn", "zeroconf", "aiosqlite", "PIL")


def _nothing() -> None:
    pass


@click.command()
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the log as one JSON object a line.")
def run(config_path: Path, as_json: bool) -> None:
    """Run the node of a configuration file until SIGTERM or Ctrl-C.

    The log goes to standard error. Once the node listens, one line on standard output says so:
    'ready rsu-1 rsu port 41234 http 8470'. A node that is told to leave says goodbye and exits with 0; told twice, it
    drops everything.
    """
    import asyncio

    from meshnode.node import Node
    from meshnode.parts import load

    config = load(config_path)
    log_to_stderr(config.log.level, as_json)
    asyncio.run(serve(Node(config, config_path.parent)))


async def serve(
    node: "Node", opened: Callable[[], object] = _nothing, closing: Callable[[], object] = _nothing
) -> None:
    """Run a node until it is told to leave; ``opened`` and ``closing`` are called while it is open."""
    import asyncio

    leave = asyncio.Event()

    def told_to_leave(number: int) -> None:
        if leave.is_set():
            _log.warning("told twice: dropping everything")
            os._exit(128 + number)
        leave.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_leave, number)
    opening = asyncio.create_task(node.__aenter__())
    told = asyncio.create_task(leave.wait())
    await asyncio.wait((opening, told), return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        return
    try:
        await opening
        http = node.http_port if node.http_port is not None else "off"
        click.echo(f"ready {node.id} {node.role.value} port {node.port} http {http}")
        opened()
        await told
        _log.info("%s leaves", node.id)
        closing()
    finally:
        told.cancel()
        await node.close()
    _log.info("%s has left", node.id)


def log_to_stderr(level: str, as_json: bool) -> None:
    """Where the log of a process goes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a log that can't be written is no reason to disturb the node
    logging.captureWarnings(True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


class _TextFormatter(logging.Formatter):
    """One line a message: what a peer sent must not look like lines of ours, nor move the cursor of a terminal."""

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
