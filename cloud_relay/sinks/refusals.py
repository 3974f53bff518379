"""The records that a receiver will never take, with its reasons: one JSON object a line.

The file is bounded. When it is full it becomes the older one, which is replaced then, so the newest refusals are kept.
After a crash the last record may be in it twice.
"""

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from cloud_relay.query.searching import StoredRecord
from cloud_relay.sinks.contract import sent_form
from protocols.base.errors import StorageError

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""Of each of the two files. The largest record fits many times."""


class RefusedRecords:
    """The file of one sink."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.refused.jsonl"
        self._older = folder / f"{name}.refused.older.jsonl"

    def add(self, number: int, record: StoredRecord, reason: str) -> None:
        """Keep a record. It is on disk when this returns. :raises StorageError: it can't be written."""
        line = {"utc_s": int(time.time()), "number": number, "reason": reason, "record": sent_form(record)}
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(descriptor, "ab") as out:
                out.write(msgspec.json.encode(line) + b"\n")
                out.flush()
                os.fsync(descriptor)
                size_bytes = out.tell()
            if size_bytes >= MAX_FILE_BYTES:
                self._path.replace(self._older)
        except OSError as error:
            raise StorageError(
                f"{self._path} can't be written ({error.strerror}): free space on that disk; the sink waits meanwhile"
            ) from error
