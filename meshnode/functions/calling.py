"""One call of a program: a process with limits, a reading that goes in, and lines that come out.

The process is the leader of a group of its own, and its group is killed when the call ends, in whatever way: what a
program leaves behind does not go on. Its memory is limited by ``RLIMIT_DATA``, which a shell sets before it becomes the
program. What it writes is read up to a bound, and the rest is its loss.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

MAX_OUT_BYTES: Final = 1 << 20
"""What a call may write on standard output …"""
MAX_ERROR_BYTES: Final = 4_096
"""… and what of standard error is kept to say why it failed."""
_LIMITED: Final = 'ulimit -d "$0" && ulimit -c 0 && exec "$@"'
_KILLS: Final = 40
"""How often a group is killed before its rest is left alone: for four seconds."""

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
    limited = ("/bin/sh", "-c", _LIMITED, str(memory_mib * 1_024), *program)
    try:
        process = await asyncio.create_subprocess_exec(
            *limited, cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        return Call("not_started", why=f"{program[0]} can't be started ({error}): correct 'run'")
    try:
        async with asyncio.timeout(timeout_s):
            out, error_text, is_whole = await _talk(process, given)
            status = await process.wait()
    except TimeoutError:
        return Call("late", why=f"it had not ended after {timeout_s:g} s")
    finally:
        await _end(process)
    if status in (126, 127) and error_text:
        return Call("not_started", why=f"{program[0]} can't be started ({error_text}): correct 'run'")
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return Call("failed", why=f"it {how}{f': {error_text}' if error_text else ''}")
    if not is_whole:
        return Call("failed", why=f"it wrote more than {MAX_OUT_BYTES} bytes")
    return Call("done", tuple(line for line in out.splitlines() if line.strip()))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the group until nobody is left in it: a shell that is just starting something was seen to leave that behind
    when the group was killed once. Then nobody holds the pipes any more, for whose end ``wait`` waits too."""
    for attempt in range(_KILLS):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        except PermissionError:  # what is left has another user
            break
        await asyncio.sleep(min(0.001 * 2**attempt, 0.1))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await process.wait()


async def _talk(process: asyncio.subprocess.Process, given: bytes) -> tuple[bytes, str, bool]:
    """What it wrote on standard output, the end of its standard error on one line, and whether that is all."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    writing = asyncio.ensure_future(_write(process.stdin, given))
    reading_errors = asyncio.ensure_future(_read(process.stderr, MAX_ERROR_BYTES))
    try:
        out = await _read(process.stdout, MAX_OUT_BYTES + 1)
        errors = await reading_errors
        await writing
    finally:
        writing.cancel()
        reading_errors.cancel()
    text = " ".join(errors.decode("utf-8", "replace").split())
    return out, text[-300:], len(out) <= MAX_OUT_BYTES


async def _write(stdin: asyncio.StreamWriter, given: bytes) -> None:
    with contextlib.suppress(OSError):  # a program need not read
        stdin.write(given)
        await stdin.drain()
        stdin.close()


async def _read(stream: asyncio.StreamReader, most: int) -> bytes:
    """The first ``most`` bytes. The rest is read and dropped, so that the program does not hang by it."""
    kept = bytearray()
    while piece := await stream.read(65_536):
        kept += piece[: max(0, most - len(kept))]
    return bytes(kept)
