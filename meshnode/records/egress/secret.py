"""The key by which a node makes pseudonyms. It is made once, kept in the state folder for its owner alone, and never
leaves: whoever has it can tell which node is behind a pseudonym by trying all names."""

import logging
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from meshnode.identity.private_files import make_private_folder, narrow, write_private
from protocols.base.errors import StorageError

_log = logging.getLogger(__name__)
NAME: Final = "egress.key"
_BYTES: Final = 32


def pseudonym_key(folder: Path) -> bytes:
    """The key in a state folder, made if there is none. One that is damaged is moved aside, and the pseudonyms of the
    period change.

    :raises StorageError: when it can't be read or kept.
    """
    path = folder / NAME
    try:
        make_private_folder(folder)
        with suppress(FileNotFoundError), path.open("rb") as kept:
            narrow(path)
            key = kept.read(_BYTES + 1)
            if len(key) == _BYTES:
                return key
            path.replace(path.with_name(f"{NAME}.unusable"))
            _log.warning("%s is not a key of %d bytes and was moved aside: pseudonyms change now", path, _BYTES)
        key = secrets.token_bytes(_BYTES)
        write_private(path, key)
    except OSError as error:
        raise StorageError(
            f"the key of pseudonyms {path} can't be used ({error.strerror}), and without it no record may leave: make "
            "it readable and its folder writable for this user, or free some disk"
        ) from error
    return key
