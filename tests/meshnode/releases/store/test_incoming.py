"""What is put on the disk of a node from a stick, and what becomes of it."""

import shutil
from pathlib import Path

import pytest

from benchmarks.failing_disk import FailingDisk, PowerLost
from meshnode.releases.store.incoming import FOLDER, put_in
from meshnode.releases.store.stick import BUNDLE
from tests.tools.release_fixture import Publisher


@pytest.fixture(name="publisher")
def given_publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path / "repository")
    made.release(1)
    return made


def test_bundle_is_there_as_a_whole_or_not_at_all_whenever_the_power_fails(
    tmp_path: Path, publisher: Publisher
) -> None:
    """The node takes in what is there at its next start, and half a bundle says nothing about the chunks."""
    disk = FailingDisk()
    put_in(publisher.folder, tmp_path / "releases", disk=disk)
    assert (tmp_path / "releases" / FOLDER / BUNDLE).read_bytes() == publisher.bundle
    for number in range(1, len(disk.steps) + 1):
        shutil.rmtree(tmp_path / "releases", ignore_errors=True)
        with pytest.raises(PowerLost):
            put_in(publisher.folder, tmp_path / "releases", disk=FailingDisk(number, "power"))
        path = tmp_path / "releases" / FOLDER / BUNDLE
        assert not path.exists() or path.read_bytes() == publisher.bundle
