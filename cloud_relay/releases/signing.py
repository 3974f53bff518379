"""Keys that sign metadata: Ed25519, one PEM file each, encrypted if there is a passphrase.

The keys of root belong on something that is locked away, at least two of them in different places. Those of the other
roles lie below the repository, or on whatever is named with ``--keys``.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

from meshnode.identity.private_files import make_private_folder, write_private
from protocols.base.errors import ReleaseInvalid, StorageError

MAX_KEY_FILE_BYTES: Final = 16 * 1024
Passphrase = Callable[[Path], bytes]
"""Asks for the passphrase of a key file."""


def make_key(path: Path, passphrase: bytes = b"") -> CryptoSigner:
    """Make a key and write it to a file of its owner alone. ``passphrase``: empty: the file is not encrypted.

    :raises ReleaseInvalid: there is a file already. :raises StorageError: it can't be written.
    """
    if path.exists():
        raise ReleaseInvalid(f"{path} exists already, and a key that is lost can't be made again: choose another name")
    key = Ed25519PrivateKey.generate()
    encryption: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return _signer(key)


def keep_key(folder: Path, role: str, signer: CryptoSigner) -> Path:
    """Write the key of a role into a folder, and return its file. The id of the key is a part of its name, so that a
    command that failed afterwards can be repeated with another key. :raises StorageError: it can't be written."""
    path = folder / f"{role}-{signer.public_key.keyid[:16]}.pem"
    _write(path, signer.private_bytes)
    return path


def load_key(path: Path, passphrase: Passphrase | None = None) -> CryptoSigner:
    """Read a key. ``passphrase``: asked only if the file is encrypted.

    :raises ReleaseInvalid: it can't be read, is no such key, or the passphrase is wrong.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise ReleaseInvalid(
            f"the key {path} can't be read ({error.strerror}): make one with 'cloud-relay release key make {path.name}'"
        ) from error
    try:
        key = load_pem_private_key(data, None)
    except TypeError as error:
        if passphrase is None:
            raise ReleaseInvalid(f"the key {path} is encrypted: name it on the command line") from error
        try:
            key = load_pem_private_key(data, passphrase(path))
        except ValueError as wrong:
            raise ReleaseInvalid(f"the passphrase of {path} is wrong: try again") from wrong
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ReleaseInvalid(f"{path} is no private key in PEM: name another file") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ReleaseInvalid(f"{path} is no Ed25519 key: make one with 'cloud-relay release key make'")
    return _signer(key)


def keys_in(folders: Iterable[Path]) -> dict[str, Signer]:
    """The keys below folders that can be read without a passphrase, by their ids. Others are passed over."""
    found: dict[str, Signer] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.pem")):
            try:
                signer = load_key(path)
            except ReleaseInvalid:
                continue
            found[signer.public_key.keyid] = signer
    return found


def _write(path: Path, content: bytes) -> None:
    try:
        if not path.parent.exists():
            make_private_folder(path.parent)
        write_private(path, content)
    except OSError as error:
        raise StorageError(f"{path} can't be written ({error.strerror}): name a place that you may write to") from error


def _signer(key: Ed25519PrivateKey) -> CryptoSigner:
    return CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))
