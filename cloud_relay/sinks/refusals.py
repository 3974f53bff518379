"""The records that a receiver will never take, with its reasons: one JSON object a line, the newest last.

The file is bounded. When it is full it is written anew at half the size, without the oldest records of the nodes that
have most in it: what one node sends that is refused pushes out no other's. After a crash those of the last portion
may be in it twice.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cloud_relay.query.searching import StoredRecord
from cloud_relay.sinks.contract import sent_form
from meshnode.identity.private_files import write_private
from protocols.base.errors import StorageError

MAX_FILE_BYTES: Final = 32 * 1024 * 1024
"""The largest record fits many times."""


class SetAside(NamedTuple):
    """A record, its number in the store, and why the receiver will never take it."""

    number: int
    record: StoredRecord
    reason: str


class RefusedRecords:
    """The file of one sink."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.refused.jsonl"

    def add(self, refusals: Sequence[SetAside]) -> None:
        """Keep records. They are on disk when this returns. :raises StorageError: they can't be written."""
        now_utc_s = int(time.time())
        lines = [
            {"utc_s": now_utc_s, "number": each.number, "reason": each.reason, "record": sent_form(each.record)}
            for each in refusals
        ]
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(descriptor, "ab") as out:
                out.write(msgspec.json.Encoder().encode_lines(lines))
                out.flush()
                os.fsync(descriptor)
                size_bytes = out.tell()
            if size_bytes >= MAX_FILE_BYTES:
                write_private(self._path, b"".join(_fair_half(self._path.read_bytes().splitlines(keepends=True))))
        except OSError as error:
            raise StorageError(
                f"{self._path} can't be written ({error.strerror}): free space on that disk; the sink waits meanwhile"
            ) from error


class _RecordOf(msgspec.Struct):
    origin: str


class _Line(msgspec.Struct):
    record: _RecordOf


def _fair_half(lines: list[bytes]) -> list[bytes]:
    """The newest lines of each node, of half the bytes that a file may have, and no node with more than needs be."""
    by_node: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        try:
            by_node.setdefault(msgspec.json.decode(line, type=_Line).record.origin, []).append(place)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a crash cut it off
            continue
    left_bytes, kept = MAX_FILE_BYTES // 2, []
    sizes = {node: sum(len(lines[place]) for place in places) for node, places in by_node.items()}
    for done, node in enumerate(sorted(sizes, key=lambda node: sizes[node])):
        share_bytes = left_bytes // (len(sizes) - done)
        for place in reversed(by_node[node]):
            if len(lines[place]) > share_bytes:
                break
            share_bytes -= len(lines[place])
            left_bytes -= len(lines[place])
            kept.append(place)
    return [lines[place] for place in sorted(kept)]
