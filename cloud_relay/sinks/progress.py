"""How far each sink has come, in one small file each, which survives whatever ends the relay.

``position`` is the number of the last record that the receiver has confirmed, or that was given up by name: a record
with a number up to it is delivered, was refused by the receiver and is in the file of refused records, or is in a gap
that is listed. The file is written after the receiver's confirmation, so after a crash at most one portion comes twice.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from meshnode.identity.private_files import make_private_folder, write_private
from protocols.base.errors import LocalProtocolError, StorageError

FOLDER: Final = "sinks"
"""In the state folder of the relay."""
MAX_GAPS: Final = 100
"""Gaps that are listed. All that is skipped is counted."""
MAX_REFUSED_NODES: Final = 100
"""Nodes of which is listed what was refused. The one that was refused longest ago gives way; all is counted."""
MAX_REASON_CHARS: Final = 300
MAX_BYTES: Final = 1024 * 1024
"""A file that is larger is not one of ours: the largest one has less than 300 kB."""


class SkippedRecords(Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers that were skipped because the sink was too far behind, or because an operator said so, or among which are
    some whose records retention deleted before the sink came to them."""

    first: int
    last: int
    utc_s: int
    deleted: int | None = None
    """How many of them retention deleted; None: all of them were skipped, and may still be in the store."""


class RefusedOrigin(Struct, frozen=True, forbid_unknown_fields=True):
    """What a receiver refused of one node."""

    origin: str
    records: int
    first: int
    last: int
    """The numbers of the first and the last of them. ``cloud-relay sinks move`` goes back to before one."""
    utc_s: int
    """When it refused the last one."""
    reason: str
    """And why."""


class SinkProgress(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one sink."""

    position: int
    under_way: int | None = None
    """The last number of a portion that has to be sent as it was, because it may have arrived."""
    delivered: int = 0
    """Records that the receiver confirmed."""
    refused: int = 0
    """Records that it will never take."""
    refused_by: tuple[RefusedOrigin, ...] = ()
    """Which nodes sent them; the one that was refused last is the last."""
    skipped: int = 0
    """Records in gaps, whether or not the sink's query selects them; in SQLite the numbers."""
    deleted: int = 0
    """Numbers whose records retention deleted before the sink came to them, whether or not its query selects them."""
    failures: int = 0
    """Deliveries that failed and were tried again."""
    gaps: tuple[SkippedRecords, ...] = ()
    """The newest of them."""
    delivered_utc_s: int = 0
    failed_utc_s: int = 0
    error: str = ""
    """What the last failure was; empty: something has been delivered since."""

    def skipping_to(self, position: int, records: int, utc_s: int) -> "SinkProgress":
        """The progress that goes on after the number ``position``, with so many records between as a gap."""
        gap = SkippedRecords(self.position + 1, position, utc_s)
        return msgspec.structs.replace(
            self, position=position, under_way=None, skipped=self.skipped + records,
            gaps=(*self.gaps, gap)[-MAX_GAPS:],
        )  # fmt: skip

    def refusing(self, node: RefusedOrigin) -> "SinkProgress":
        """The progress with more records of a node refused."""
        reason = node.reason[:MAX_REASON_CHARS]
        fresh = msgspec.structs.replace(node, reason=reason)
        others = []
        for known in self.refused_by:
            if known.origin == node.origin:
                fresh = RefusedOrigin(
                    node.origin, known.records + node.records, min(known.first, node.first),
                    max(known.last, node.last), node.utc_s, reason,
                )  # fmt: skip
            else:
                others.append(known)
        return msgspec.structs.replace(
            self, refused=self.refused + node.records, refused_by=(*others, fresh)[-MAX_REFUSED_NODES:]
        )

    def past_deleted(self, first: int, last: int, deleted: int, utc_s: int) -> "SinkProgress":
        """The progress with so many deleted records noted among some numbers. Neighbours are one gap."""
        if not deleted:
            return self
        gaps, gap = self.gaps, SkippedRecords(first, last, utc_s, deleted)
        if gaps and gaps[-1].deleted is not None and gaps[-1].last + 1 == first:
            gap = SkippedRecords(gaps[-1].first, last, utc_s, gaps[-1].deleted + deleted)
            gaps = gaps[:-1]
        return msgspec.structs.replace(self, deleted=self.deleted + deleted, gaps=(*gaps, gap)[-MAX_GAPS:])


class ProgressFile:
    """The file of one sink."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.json"

    def load(self) -> SinkProgress | None:
        """What was saved last; None: nothing was. :raises StorageError: it can't be read."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=SinkProgress)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(
                f"{self._path} can't be read as the progress of a sink ({error}): restore it, or remove it and the "
                "sink begins anew"
            ) from error

    def save(self, progress: SinkProgress) -> None:
        """Have it on disk. :raises StorageError: it can't be written."""
        try:
            write_private(self._path, msgspec.json.format(msgspec.json.encode(progress), indent=1) + b"\n")
        except OSError as error:
            raise StorageError(
                f"{self._path} can't be written ({error.strerror}): free space on that disk; the sink waits meanwhile"
            ) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Be the only one who changes the progress of sinks in a folder, which is made if it is missing.

    :raises LocalProtocolError: somebody else is.
    :raises StorageError: the folder can't be written.
    """
    try:
        make_private_folder(folder)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"the folder {folder} can't be written ({error.strerror}): run as the user of the relay"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LocalProtocolError(f"the relay is running on {folder}: stop it first") from error
        yield
    finally:
        os.close(descriptor)
