"""The audit log: it goes on over restarts and bounds, and shows what was changed."""

import errno
import os
from pathlib import Path

from benchmarks.failing_disk import FailingDisk
from meshnode.releases.audit import AuditLog, check_audit
from meshnode.releases.store.disk import Disk


def opened(path: Path, **more: int) -> AuditLog:
    log = AuditLog(path, **more)  # type: ignore[arg-type]
    log.open()
    return log


def test_chain_goes_on_over_restarts_and_into_the_next_file(tmp_path: Path) -> None:
    """Years of a node are one chain, in a bounded file and the one before it."""
    path = tmp_path / "releases" / "audit.jsonl"
    for life in range(4):
        log = opened(path, max_bytes=1_500)
        for number in range(5):
            log.note("served", path="models/plate", counter=number, life=life)
    assert path.with_name("audit.jsonl.1").exists()
    count, faults = check_audit(path)
    assert count > 10
    assert faults == []


def test_line_that_was_changed_removed_or_moved_breaks_the_chain(tmp_path: Path) -> None:
    """Who has taken a release back must not be able to say that it never was there."""
    path = tmp_path / "audit.jsonl"
    log = opened(path)
    for number in range(5):
        log.note("served", counter=number)
    lines = path.read_text().splitlines(keepends=True)
    for changed, at in (
        ([*lines[:2], lines[2].replace("served", "nobody"), *lines[3:]], 4),
        ([*lines[:2], *lines[3:]], 3),
        ([*lines[:2], lines[3], lines[2], lines[4]], 3),
    ):
        path.write_text("".join(changed))
        _, faults = check_audit(path)
        assert faults[0].line == at


def test_line_cut_off_by_a_crash_is_told_and_the_log_goes_on(tmp_path: Path) -> None:
    """The last moment before a loss of power is the most interesting one."""
    path = tmp_path / "audit.jsonl"
    log = opened(path)
    log.note("served", counter=1)
    log.note("served", counter=2)
    path.write_bytes(path.read_bytes()[:-20])
    opened(path).note("served", counter=3)
    count, faults = check_audit(path)
    assert (count, [fault.line for fault in faults]) == (3, [2])
    assert "cut off by a crash" in faults[0].why


def test_full_disk_stops_nothing(tmp_path: Path) -> None:
    """A model that can't be taken back because a log is full would be the worst of all."""
    disk = FailingDisk()
    log = AuditLog(tmp_path / "audit.jsonl", disk)
    log.open()
    log.note("served", counter=1)
    disk.fails_at = len(disk.steps) + 1
    log.note("served", counter=2)
    log.note("served", counter=3)
    assert check_audit(tmp_path / "audit.jsonl") == (2, [])


class FillingDisk(Disk):
    """A disk that takes the beginning of a line, and then is full."""

    is_full = False

    def append(self, path: Path, data: bytes) -> None:
        super().append(path, data[:40] if self.is_full else data)
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_line_cut_off_by_a_full_disk_leaves_the_chain_whole(tmp_path: Path) -> None:
    """The next line was glued to it, and the check said for ever that somebody had changed the log."""
    disk = FillingDisk()
    log = AuditLog(tmp_path / "audit.jsonl", disk)
    log.open()
    log.note("served", counter=1)
    disk.is_full = True
    log.note("served", counter=2)
    log.note("served", counter=3)
    disk.is_full = False
    for counter in (4, 5):
        log.note("served", counter=counter)
    count, faults = check_audit(tmp_path / "audit.jsonl")
    assert (count, [fault.line for fault in faults]) == (4, [2])
    assert "a full disk" in faults[0].why
