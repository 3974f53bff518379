"""What is carried for others, on disk."""

from pathlib import Path

from meshnode.records.carrying.shelf import CarriedShelf
from protocols.base.limits import SEALED_ID_BYTES

SEALED = bytes(range(SEALED_ID_BYTES))


def test_what_is_carried_is_taken_up_again_beside_what_does_not_belong_there(tmp_path: Path) -> None:
    """A folder that a file system makes itself, or that somebody put there, must not cost neighbours their records."""
    shelf = CarriedShelf(tmp_path)
    shelf.keep(SEALED, "v-1", b"key", b"batch")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ("0" * 2 * SEALED_ID_BYTES)).write_bytes(b"damaged")
    assert [(item.sealed, item.node, item.size_bytes) for item in shelf.read_all()] == [(SEALED, "v-1", 5)]
    assert {file.name for file in tmp_path.iterdir()} == {"lost+found", SEALED.hex()}
