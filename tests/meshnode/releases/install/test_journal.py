"""The journal of what is installed, which two threads change."""

import threading
from pathlib import Path

import msgspec

from meshnode.releases.install.journal import InstalledPath, InstallJournal
from meshnode.releases.store.disk import Disk
from protocols.releases.catalogue import Content, Description, ReleasedFile

PATH = "models/adder"


class CrowdedDisk(Disk):
    """A disk on which somebody else comes first whenever a file is written, if nothing keeps them from it."""

    def __init__(self) -> None:
        self.other: threading.Thread | None = None

    def place(self, path: Path, data: bytes) -> None:
        other, self.other = self.other, None
        if other is not None:
            other.start()
            other.join(0.1)
        super().place(path, data)


def test_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It does not say which files a release has. An update must not cost a vehicle its releases."""
    release = {"counter": 1, "model": "adder.onnx", "digest": "00" * 32}
    kept = {"paths": {PATH: {"current": 1, "previous": [], "installed": [release]}}, "format": 1}
    (tmp_path / "journal.json").write_bytes(msgspec.json.encode(kept))
    journal = InstallJournal(tmp_path / "journal.json", Disk())
    journal.open()
    (installed,) = journal.of(PATH).installed
    file = ReleasedFile(
        name="adder.onnx", content=Content(sha256="11" * 32, size_bytes=1, chunk_bytes=16_384, index="22" * 32)
    )
    assert installed.is_of(Description(path=PATH, counter=1, model="adder.onnx", files=(file,)))


def test_changes_of_two_threads_are_both_kept(tmp_path: Path) -> None:
    """One release is staged while another is taken back. A lost entry would leave a model without its release."""
    disk = CrowdedDisk()
    journal = InstallJournal(tmp_path / "journal.json", disk)
    other = threading.Thread(target=journal.note, args=("models/plate", lambda state: InstalledPath(2)))
    disk.other = other
    journal.change(PATH, lambda state: InstalledPath(1))
    other.join()
    again = InstallJournal(tmp_path / "journal.json", disk)
    again.open()
    assert {path: state.current for path, state in again.paths.items()} == {PATH: 1, "models/plate": 2}
