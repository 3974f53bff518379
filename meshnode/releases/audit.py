"""The log of everything that happened to releases at this node, in which nothing can be changed unnoticed.

Each line is a JSON object with the SHA-256 of the line before it, so whoever knows the last line can check all of them.
A line that was cut off by a crash or a full disk stays, and the chain goes on behind it. The file is bounded: at its
bound it becomes ``audit.jsonl.1``, and the new one goes on with the digest of its last line.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshnode.releases.store.disk import Disk
from protocols.base.errors import StorageError

MAX_BYTES: Final = 4 * 1024 * 1024
"""Some 20,000 lines."""
AUDIT_FILE: Final = "audit.jsonl"
"""Its name in the folder of releases of a node."""
_FIRST: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class AuditFault:
    """A place at which the log is not what was written."""

    line: int
    why: str


class AuditLog:
    """The log. Its methods may be called from any thread."""

    def __init__(self, path: Path, disk: Disk | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._path, self._disk, self._max_bytes = path, disk or Disk(), max_bytes
        self._lock = threading.Lock()
        self._last = _FIRST
        self._size = 0
        self._is_cut_off = False
        self._is_unsure = False
        """Whether a part of a line may have been written."""

    def open(self) -> None:
        """Go on behind the last line. :raises StorageError: it can't be read."""
        try:
            self._disk.make_folder(self._path.parent)
            self._look()
        except OSError as error:
            raise StorageError(f"{self._path} can't be read ({error.strerror}): see who owns it") from error

    def _look(self) -> None:
        """See what the last line is, and whether all of it is there."""
        content = self._path.read_bytes() if self._path.exists() else b""
        before = content or (self._older().read_bytes() if self._older().exists() else b"")
        self._size, self._last = len(content), _digest_of_last(before)
        self._is_cut_off, self._is_unsure = bool(content) and not content.endswith(b"\n"), False

    def _older(self) -> Path:
        return self._path.with_name(f"{self._path.name}.1")

    def note(self, what: str, **details: Any) -> None:
        """Add a line. What can't be written is left out: a full disk must not stop anything else."""
        with self._lock:
            try:
                self._note(what, details)
            except OSError:
                self._is_unsure = True

    def _note(self, what: str, details: dict[str, Any]) -> None:
        if self._is_unsure:
            self._look()
        if self._is_cut_off:
            self._disk.append(self._path, b"\n")
            self._is_cut_off = False
        if self._size > self._max_bytes:
            self._disk.rename(self._path, self._older())
            self._size = 0
        line = json.dumps(
            {"utc_s": round(time.time(), 3), "what": what, **details, "before": self._last}, ensure_ascii=False
        ).encode()
        self._disk.append(self._path, line + b"\n")
        self._size += len(line) + 1
        self._last = hashlib.sha256(line).hexdigest()


def _digest_of_last(content: bytes) -> str:
    lines = content.rstrip(b"\n").rsplit(b"\n", 1)
    return hashlib.sha256(lines[-1]).hexdigest() if lines[-1] else _FIRST


def check_audit(path: Path) -> tuple[int, list[AuditFault]]:
    """How many lines there are, and where the chain is broken. :raises StorageError: the file can't be read."""
    count, faults, before = 0, [], ""
    try:
        for number, line in enumerate(audit_lines(path), 1):
            count = number
            try:
                told = str(json.loads(line)["before"])
            except (ValueError, KeyError, TypeError):
                faults.append(
                    AuditFault(number, "is no line of the log: it was cut off by a crash or a full disk, or changed")
                )
            else:
                if before and told != before:
                    faults.append(AuditFault(number, "does not follow the line before it: one of both was changed"))
            before = hashlib.sha256(line).hexdigest()
    except OSError as error:
        raise StorageError(f"{path} can't be read ({os.strerror(error.errno or 0)})") from error
    return count, faults


def audit_lines(path: Path) -> Iterator[bytes]:
    """All lines that are kept, oldest first. :raises OSError: a file can't be read."""
    older = path.with_name(f"{path.name}.1")
    for file in (older, path):
        if file.exists():
            with file.open("rb") as opened:
                for line in opened:
                    yield line.rstrip(b"\n")
