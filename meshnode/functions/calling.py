"""One call of a program: a process with limits, a reading that goes in, and lines that come out.

The process is the leader of a group of its own, and its group is killed when the call ends, in whatever way: what a
program leaves behind does not go on, unless it has left its session. Its memory is limited by ``RLIMIT_DATA``, which a
shell sets before it becomes the program. What it writes is read up to a bound, at which it is ended.

When the node is killed, the kernel kills the process of the call. What that has started itself is not killed then.

Invariant: when a call has ended, its pipes are closed, whoever else still holds them.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from meshnode.groups import kill_group, limited

MAX_OUT_BYTES: Final = 1 << 20
"""What a call may write on standard output …"""
MAX_ERROR_BYTES: Final = 4_096
"""… what of standard error is kept to say why it failed …"""
MAX_READ_BYTES: Final = 16 << 20
"""… and what of it is read. A call that writes more on either is ended: reading on took a third of a core."""
_GRACE_S: Final = 0.2
"""How long is read on when the program has ended and something that it started still holds its pipes."""
_STDIN, _STDOUT, _STDERR = 0, 1, 2

Outcome = Literal["done", "failed", "late", "not_started"]


@dataclass(frozen=True, slots=True)
class Call:
    """How a call ended."""

    outcome: Outcome
    lines: tuple[bytes, ...] = ()
    """What it wrote, if it is done."""
    why: str = ""
    """Why it is not done."""


async def call(
    program: Sequence[str], folder: Path, given: bytes, timeout_s: float, memory_mib: int
) -> Call:  # fmt: skip
    """Run a program with ``given`` on its standard input. It never raises for what the program does."""
    try:
        transport, talk = await _started(limited(program, memory_mib), folder)
    except (OSError, ValueError) as error:
        return Call("not_started", why=f"{program[0]} can't be started ({error}): correct 'run'")
    try:
        stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(_STDIN))
        stdin.write(given)
        stdin.close()
        async with asyncio.timeout(timeout_s):
            await talk.over.wait()
        if talk.ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await talk.said_all.wait()
    except TimeoutError:
        return Call("late", why=f"it had not ended after {timeout_s:g} s")
    finally:
        await _end(transport, talk)
    return _judged(program, transport.get_returncode(), talk)


async def _started(program: Sequence[str], folder: Path) -> "tuple[asyncio.SubprocessTransport, _Talk]":
    """Start a program. It is whole before a call that is cancelled ends it: asyncio itself would kill the leader alone,
    and wait for the pipes that others in its group hold."""
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(loop.subprocess_exec(_Talk, *program, cwd=folder, start_new_session=True))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError, ValueError):
            await _end(*await starting)
        raise


def _judged(program: Sequence[str], status: int | None, talk: "_Talk") -> Call:
    """What became of a call that ended with a status."""
    error_text = talk.error_text
    if talk.too_much:
        return Call("failed", why=talk.too_much)
    if status in (126, 127) and error_text:
        return Call("not_started", why=f"{program[0]} can't be started ({error_text}): correct 'run'")
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return Call("failed", why=f"it {how}{f': {error_text}' if error_text else ''}")
    return Call("done", tuple(line for line in bytes(talk.out).splitlines() if line.strip()))


class _Talk(asyncio.SubprocessProtocol):
    """Gathers what a process writes, up to the bounds."""

    def __init__(self) -> None:
        self.out, self._errors = bytearray(), bytearray()
        self._error_bytes = 0
        self.too_much = ""
        """What it wrote too much of; empty: nothing."""
        self.over = asyncio.Event()
        """Set once it has ended or wrote too much."""
        self.ended = asyncio.Event()
        """Set once the process itself has ended."""
        self.said_all = asyncio.Event()
        """Set once nobody can write any more."""
        self._open = {_STDOUT, _STDERR}

    @property
    def error_text(self) -> str:
        """The end of its standard error on one line."""
        return " ".join(self._errors.decode("utf-8", "replace").split())[-300:]

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It wrote something."""
        kept, most = (self.out, MAX_OUT_BYTES + 1) if fd == _STDOUT else (self._errors, MAX_ERROR_BYTES)
        kept += data[: max(0, most - len(kept))]
        if fd != _STDOUT:
            self._error_bytes += len(data)
        if len(self.out) > MAX_OUT_BYTES:
            self.too_much = f"it wrote more than {MAX_OUT_BYTES} bytes"
        elif self._error_bytes > MAX_READ_BYTES:
            self.too_much = f"it wrote more than {MAX_READ_BYTES} bytes on standard error"
        if self.too_much:
            self.over.set()

    def pipe_connection_lost(self, fd: int, exc: Any) -> None:
        """A pipe has ended. That of standard input may: a program need not read."""
        self._open.discard(fd)
        if not self._open:
            self.said_all.set()

    def process_exited(self) -> None:
        """The process itself has ended."""
        self.ended.set()
        self.over.set()


async def _end(transport: asyncio.SubprocessTransport, talk: _Talk) -> None:
    """Kill the group. Then close the pipes, which what has left the session may hold."""
    try:
        await kill_group(transport.get_pid())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await talk.ended.wait()
    finally:
        stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(_STDIN))
        if stdin.get_write_buffer_size():
            stdin.abort()  # it would stay open until somebody has read all of it
        transport.close()
