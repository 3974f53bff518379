"""Processes that are told what to do by one JSON object a line, and answer each with one."""

import contextlib
import subprocess
from typing import TypeVar

import msgspec

from benchmarks.children import ChildFailed

_GRACE_S = 20.0
_A = TypeVar("_A", bound=msgspec.Struct)


class LineProcess:
    """One such process, with pipes to its standard input and output."""

    def __init__(self, process: "subprocess.Popen[str]", setting: msgspec.Struct) -> None:
        """``setting``: the first line."""
        self.process = process
        self.tell(setting)

    def tell(self, line: msgspec.Struct) -> None:
        """Say what it should do. :raises ChildFailed: it has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(msgspec.json.encode(line).decode() + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailed(f"a process has ended (exit status {self.process.poll()})") from error

    def answer(self, kind: type[_A]) -> _A:
        """Wait for its answer. :raises ChildFailed: it has ended without one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildFailed(f"a process has ended (exit status {self.process.wait(_GRACE_S)})")
        return msgspec.json.decode(line, type=kind)

    def end(self) -> None:
        """End it by closing its input, and kill it when that is not enough."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
