"""The journal of what is installed, which two threads change."""

import threading
from pathlib import Path

from meshnode.releases.install.journal import InstalledPath, InstallJournal
from meshnode.releases.store.disk import Disk

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
