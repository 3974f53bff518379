"""What is carried for others, on disk: one file for each sealed batch or the reply to it.

The file is called by the id of the batch. Nothing in it can be read here: batches are sealed to the relay. A file that
is damaged is removed; the node that made the batch gives it to somebody again.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from meshnode.identity.private_files import make_private_folder, write_private
from protocols.base.errors import InvalidName
from protocols.base.ids import node_id
from protocols.base.limits import MAX_SEALED_BYTES, SEALED_ID_BYTES, SECOND
from protocols.records.carrying.holding import MAX_CARRIED, CarriedItem

_log = logging.getLogger(__name__)
_Content = tuple[Literal[1], str, bytes, bytes, bytes]
"""Format, node, id of the relay's key, sealed batch, reply. One of the last two is empty."""
_MAX_FILE_BYTES: Final = MAX_SEALED_BYTES + 1_024


class CarriedShelf:
    """The files in one folder. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read_all(self) -> list[CarriedItem]:
        """What a former life of this node has kept, oldest first."""
        found: list[tuple[float, CarriedItem]] = []
        if not self._folder.is_dir():
            return []
        now_s = time.time()
        for file in sorted(self._folder.iterdir())[: 2 * MAX_CARRIED]:
            content = self._read(file)
            if content is None:
                with suppress(OSError):  # a folder stays
                    file.unlink()
                continue
            _, node, key, sealed, reply = content
            age_s = max(now_s - file.stat().st_mtime, 0.0)
            found.append((-age_s, CarriedItem(
                bytes.fromhex(file.name), node_id(node), key, len(sealed) + len(reply), int(age_s * SECOND), reply,
            )))  # fmt: skip
        return [item for _, item in sorted(found, key=lambda aged: aged[0])]

    def keep(self, sealed: bytes, node: str, key: bytes, data: bytes, reply: bytes = b"") -> None:
        """Write a batch or its reply. ``sealed`` is the id. :raises OSError: it can't be written."""
        make_private_folder(self._folder)
        write_private(self._folder / sealed.hex(), msgspec.msgpack.encode((1, node, key, data, reply)))

    def batch(self, sealed: bytes) -> bytes:
        """The sealed bytes of a batch; empty: they are not there."""
        content = self._read(self._folder / sealed.hex())
        return b"" if content is None else content[3]

    def forget(self, sealed: bytes) -> None:
        """Remove a file. :raises OSError: that is not possible."""
        (self._folder / sealed.hex()).unlink(missing_ok=True)

    def _read(self, file: Path) -> _Content | None:
        try:
            if len(bytes.fromhex(file.name)) != SEALED_ID_BYTES:
                return None
            with file.open("rb") as opened:
                content: _Content = msgspec.msgpack.decode(opened.read(_MAX_FILE_BYTES), type=_Content)
            node_id(content[1])
        except (OSError, ValueError, msgspec.DecodeError, InvalidName) as error:
            _log.warning("%s is no batch that is carried: %s", file, error)
            return None
        return content
