"""PEM files on disk: read with errors that name the file, written whole or not at all.

Invariants:
- a private key never exists on disk, under any name, with a mode wider than 0600;
- a reader sees the old file or the new one, never half of one, also after a power cut;
- every failure is an ``IdentityError`` that names the file and says what to do.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocols.base.errors import IdentityError

MAX_PEM_BYTES: Final = 64 * 1024
"""A chain of certificates has a few kilobytes; a wrong path could name a device or a disk image."""
PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644


def read_pem(path: Path, what: str) -> bytes:
    """The bytes of a PEM file. Errors call it ``what``. :raises IdentityError: it can't be read."""
    try:
        # O_NONBLOCK: opening a FIFO by a wrong path would otherwise wait for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IdentityError(f"{what} {path} is not a file: name the PEM file itself")
            content = file.read(MAX_PEM_BYTES + 1)
    except FileNotFoundError as error:
        raise IdentityError(
            f"{what} {path} does not exist: create it with 'meshnode mesh init' (authority) or "
            "'meshnode mesh issue' (node), or correct the path"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise IdentityError(f"{what} {path} can't be read ({reason}): check its path, owner and mode") from error
    if len(content) > MAX_PEM_BYTES:
        raise IdentityError(f"{what} {path} is larger than {MAX_PEM_BYTES} bytes: name the PEM file itself")
    return content


def read_certificate(path: Path, what: str) -> x509.Certificate:
    """The first certificate in a PEM file. :raises IdentityError: there is none, or it can't be parsed."""
    content = read_pem(path, what)
    try:
        certificate = x509.load_pem_x509_certificate(content)
        certificate.public_key(), certificate.extensions  # they are parsed lazily, and have to fail here
        return certificate
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise IdentityError(
            f"{what} {path} holds no valid certificate in PEM form ({str(error)[:120]}): "
            "issue it again with 'meshnode mesh issue'"
        ) from error


def read_private_key(path: Path, what: str) -> PrivateKeyTypes:
    """The private key in a PEM file. :raises IdentityError: there is none, or it is encrypted."""
    content = read_pem(path, what)
    try:
        return load_pem_private_key(content, password=None)
    except TypeError as error:
        raise IdentityError(
            f"{what} {path} is encrypted, and a node starts with nobody there to type a password: "
            "store it unencrypted with mode 0600"
        ) from error
    except Exception as error:  # the library raises ValueError, UnsupportedAlgorithm and its own binding's errors
        raise IdentityError(
            f"{what} {path} holds no valid private key in PEM form: issue it again with 'meshnode mesh issue'"
        ) from error


def key_mode_problem(path: Path) -> str | None:
    """A message about who else may read a key file, or None. The rule is PostgreSQL's: a mode of 0600 at most, or of
    0640 when root owns the file.

    :raises IdentityError: the file can't be examined.
    """
    if os.name != "posix":
        return None
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise IdentityError(f"key file {path} can't be examined ({error}): check its path and owner") from error
    allowed = 0o640 if status.st_uid == 0 else PRIVATE_MODE
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o777 & ~allowed & ~0o100:
        return f"key file {path} has mode {mode:04o}, so others can read or change it: run 'chmod 600 {path}'"
    return None


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Create a whole file, with its final mode from the first byte on. :raises IdentityError: it exists already."""
    staged = _stage(path, content, mode)
    try:
        os.link(staged, path)  # unlike a rename, it fails when somebody else was faster
    except FileExistsError as error:
        raise IdentityError(f"{path} exists already and is not overwritten: choose another folder") from error
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        staged.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_together(files: list[tuple[Path, bytes, int]]) -> None:
    """Create or replace files of ``(path, content, mode)``; none is touched before all are safely on disk.

    A power cut between the last renames can leave a new key beside an old certificate; ``inspect`` reports that.

    :raises IdentityError: the folder can't be written.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, content, mode in files:
            staged.append((_stage(path, content, mode), path))
        for temporary, path in staged:
            try:
                temporary.replace(path)
            except OSError as error:
                raise _unwritable(path, error) from error
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
    for folder in {path.parent: None for path, _, _ in files}:
        _sync_folder(folder)


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder and its parents. :raises IdentityError: it can't be made."""
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _unwritable(folder, error) from error


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM text, the only form that NNG takes."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS #8 in PEM text, the one form that both Mbed TLS and OpenSSL take from memory."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _stage(path: Path, content: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    return temporary


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # some file systems don't open folders; the rename itself has happened
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: Exception) -> IdentityError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return IdentityError(f"{path} can't be written ({reason}): choose a folder that you may write to, with space left")
