"""One life of an application: a process with limits, whose lines go to the log of the node.

Invariant: when a life has ended, nobody of its group of processes lives on. What has left the group (``setsid``) does,
see ADR 42. When the node is killed, the kernel kills the first process of each application.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from meshnode.groups import kill_group, limited
from protocols.base.limits import SECOND
from protocols.local import SOCKET_VARIABLE

_log = logging.getLogger(__name__)
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")
"""Variables of the node that an application gets. Others may hold what is none of its business."""
_LOOK_S: Final = 0.25
_GRACE_S: Final = 2.0
"""How long an application has to end by itself when it is told to."""
_MAX_LINE_BYTES: Final = 1_000
_MAX_LINES: Final = 50
"""How many lines are logged …"""
_LINES_PER_NS: Final = 10 * SECOND
"""… in so long. The rest is counted: an application must not fill the disk."""
_MAX_BYTES_PER_S: Final = 1 << 20
"""How much of what it writes is read. An application that writes more waits: reading the output of `yes` as fast as it
came took half of a core, and held up the event loop of the node by 60 ms on average, and 150 ms at worst."""


def environment_of(name: str, socket: Path) -> dict[str, str]:
    """The environment of an application."""
    kept = {variable: os.environ[variable] for variable in _PASSED_ON if variable in os.environ}
    return kept | {SOCKET_VARIABLE: str(socket), "MESHNODE_APPLICATION": name, "PYTHONUNBUFFERED": "1"}


class Voice(asyncio.SubprocessProtocol):
    """What an application says, line by line, on standard output and standard error."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: dict[int, bytes] = {}
        self._since_ns = self._read_since_ns = 0
        self._lines = self._read_bytes = 0
        self._transport: asyncio.SubprocessTransport
        self.dropped = 0
        """Lines that were not logged."""
        self.last = ""
        """The last line, which most often says why it ended."""
        self.ended = asyncio.Event()
        """Set once the process has ended."""

    def connection_made(self, transport: Any) -> None:
        """It was started."""
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It wrote something."""
        self._slow_down(fd, len(data))
        whole, newline, rest = (self._parts.get(fd, b"") + data).rpartition(b"\n")
        self._parts[fd] = rest[:_MAX_LINE_BYTES]
        if newline:
            *lines, more = whole.split(b"\n", _MAX_LINES)
            for line in lines:
                self._say(line)
            self.dropped += more.count(b"\n")
            self._say(more.rpartition(b"\n")[2])

    def _slow_down(self, fd: int, read_bytes: int) -> None:
        """Read no more for a second when it was too much in this one."""
        now = time.monotonic_ns()
        if now - self._read_since_ns > SECOND:
            self._read_since_ns, self._read_bytes = now, 0
        self._read_bytes += read_bytes
        pipe = self._transport.get_pipe_transport(fd)
        if self._read_bytes > _MAX_BYTES_PER_S and isinstance(pipe, asyncio.ReadTransport):
            pipe.pause_reading()
            asyncio.get_running_loop().call_later(1.0, pipe.resume_reading)

    def pipe_connection_lost(self, fd: int, exc: Any) -> None:
        """It closed a pipe, perhaps behind half a line."""
        self._say(self._parts.pop(fd, b""))

    def process_exited(self) -> None:
        """It has ended."""
        self.ended.set()

    def _say(self, line: bytes) -> None:
        text = line[:_MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if not text:
            return
        self.last = text[:300]
        now = time.monotonic_ns()
        if now - self._since_ns > _LINES_PER_NS:
            self._since_ns, self._lines = now, 0
        self._lines += 1
        if self._lines > _MAX_LINES:
            self.dropped += 1
        else:
            _log.info("%s says: %s", self._name, text.encode("unicode_escape").decode("ascii"))


class Life:
    """One life of an application, from its start to the end of its group."""

    def __init__(self, transport: asyncio.SubprocessTransport, voice: Voice) -> None:
        self._transport, self.voice = transport, voice
        self.since_ns = time.monotonic_ns()
        """When it began, on the monotonic clock."""

    @property
    def pid(self) -> int:
        """The number of its first process, and of its group."""
        return self._transport.get_pid()

    async def run(self, trouble: Callable[[], str]) -> str:
        """Wait until it ends, or until ``trouble`` says why it must. Returns why it ended."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self.voice.ended.wait()
                return self._why()
            if why := trouble():
                return why

    def _why(self) -> str:
        status = self._transport.get_returncode() or 0
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"it {how}{f': {self.voice.last}' if self.voice.last else ''}"

    async def end(self) -> None:
        """Ask it to end, then kill what is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGTERM)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self.voice.ended.wait()
        finally:
            try:
                await kill_group(self.pid)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self.voice.ended.wait()
            finally:
                self._transport.close()


async def begin_life(
    name: str, program: Sequence[str], folder: Path, environment: Mapping[str, str], memory_mib: int, niceness: int
) -> Life:  # fmt: skip
    """Start a program. :raises OSError: it can't be started. :raises ValueError: an argument has a null byte."""
    command = limited(program, memory_mib, "nice", "-n", str(niceness))
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(
        loop.subprocess_exec(
            lambda: Voice(name),
            *command,
            cwd=folder,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    try:
        return Life(*await asyncio.shield(starting))
    except asyncio.CancelledError:  # it must not live on without anybody who knows of it
        with contextlib.suppress(OSError, ValueError):
            await Life(*await starting).end()
        raise
