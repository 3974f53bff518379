"""Tokens that programs and people show to the relay's HTTP server.

A token is ``mrt_<id>_<secret>`` with 256 random bits, shown once when it is made. The file holds the SHA-256 of it: a
secret that can't be guessed needs no slow hash. The file is read again when it has changed, so a revoked token ends
with the next request. What is compared takes the same time whatever is wrong.
"""

import fcntl
import hmac
import json
import os
import pwd
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from meshnode.identity.private_files import write_private
from protocols.base.errors import LocalProtocolError, StorageError

FILE: Final = "tokens.json"
MAX_TOKENS: Final = 1_000
_TOKEN: Final = re.compile(r"mrt_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class TokenRole(StrEnum):
    """What a token lets its holder do. A later role may do what those before it may."""

    VIEWER = "viewer"
    """Look at records."""
    OPERATOR = "operator"
    """Look at how the relay itself does, too."""


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a token."""

    id: str
    name: str
    role: TokenRole
    sha256: str
    """Of the whole token, in hexadecimal."""
    created_utc_s: int
    expires_utc_s: int | None
    """None: never."""

    def may(self, role: TokenRole) -> bool:
        """Whether its role includes another one."""
        order = list(TokenRole)
        return order.index(self.role) >= order.index(role)

    def has_expired(self, now_utc_s: float) -> bool:
        """Whether it is too late to use it."""
        return self.expires_utc_s is not None and now_utc_s >= self.expires_utc_s


class _Content(Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[Token, ...] = ()


class TokenFile:
    """The tokens in one file, which only its owner can read. Commands and the running relay may use it together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    def tokens(self) -> tuple[Token, ...]:
        """All tokens. :raises StorageError: the file can't be read, or is none of tokens."""
        try:
            status = self._path.stat()
            seen = status.st_ino, status.st_mtime_ns, status.st_size
            if seen != self._seen:
                self._tokens = msgspec.json.decode(self._path.read_bytes(), type=_Content).tokens
                self._seen = seen
        except FileNotFoundError:
            self._tokens, self._seen = (), None
        except (OSError, msgspec.DecodeError) as error:
            raise StorageError(
                f"{self._path} can't be read as tokens ({error}): restore it, or remove it and create tokens anew"
            ) from error
        return self._tokens

    def untrusted_holder(self, text: str, now_utc_s: float) -> Token | None:
        """The token that was shown; None: there is none, or it has expired."""
        found = _TOKEN.fullmatch(text)
        if found is None:
            return None
        shown = sha256(text.encode()).hexdigest()
        for token in self.tokens():
            if token.id == found[1] and hmac.compare_digest(token.sha256, shown):
                return None if token.has_expired(now_utc_s) else token
        return None

    def create(self, name: str, role: TokenRole, now_utc_s: int, expires_utc_s: int | None) -> str:
        """Make a token and return its text, which nobody can ask for later.

        :raises LocalProtocolError: the name is wrong or taken, or there are too many.
        :raises StorageError: the file can't be written.
        """
        if _NAME.fullmatch(name) is None:
            raise LocalProtocolError(
                f"{name[:70]!r} is no name of a token: use up to 64 letters, digits, '.', '_', '@', '-'"
            )
        identifier = secrets.token_hex(6)
        text = f"mrt_{identifier}_{secrets.token_urlsafe(32)}"
        token = Token(identifier, name, role, sha256(text.encode()).hexdigest(), now_utc_s, expires_utc_s)

        def added(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
            if any(other.name == name for other in tokens):
                raise LocalProtocolError(f"there is a token {name!r} already: revoke it first, or choose another name")
            if len(tokens) >= MAX_TOKENS:
                raise LocalProtocolError(f"there are {MAX_TOKENS} tokens: revoke those that nobody uses")
            return (*tokens, token)

        self._change(added)
        return text

    def revoke(self, name: str) -> None:
        """Take a token out. :raises LocalProtocolError: there is none of this name or id."""

        def left(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
            kept = tuple(token for token in tokens if name not in (token.name, token.id))
            if len(kept) == len(tokens):
                raise LocalProtocolError(f"there is no token {name[:70]!r}: 'cloud-relay token list' shows them")
            return kept

        self._change(left)

    def _change(self, change: Callable[[tuple[Token, ...]], tuple[Token, ...]]) -> None:
        try:
            with self._locked() as owner:
                content = _Content(change(self.tokens()))
                write_private(self._path, json.dumps(msgspec.to_builtins(content), indent=1).encode() + b"\n", owner)
        except OSError as error:
            raise StorageError(
                f"{self._path} can't be written ({error.strerror}): run the command as the user of the relay"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, int] | None]:
        """Keep other commands out. Gives who is to own the file, if that is another user than this one."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = self._other_owner()
        descriptor = os.open(self._path.with_name(f"{FILE}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if owner is not None:
                os.fchown(descriptor, *owner)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield owner
        finally:
            os.close(descriptor)

    def _other_owner(self) -> tuple[int, int] | None:
        """The user and the group of the relay's folder, if this is root: the relay could not read what is root's.

        :raises StorageError: the folder is another user's, and this one can't give files away.
        """
        status = self._path.parent.stat()
        if status.st_uid == os.geteuid():
            return None
        if os.geteuid() != 0:
            raise StorageError(
                f"{self._path.parent} belongs to {_user(status.st_uid)}, who could not read tokens that another user "
                f"writes: run the command as that user, as in 'sudo -u {_user(status.st_uid)} cloud-relay token …'"
            )
        return status.st_uid, status.st_gid


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
