"""What a sink shows to its receiver: passwords and tokens, and TLS.

Secrets stand in files or in the environment, never in the configuration, and are read whenever a connection is made, so
one that was exchanged is used with the next. No message has one: :func:`scrubbed` takes them out of what libraries say.
"""

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocols.base.errors import ConfigError

MAX_SECRET_BYTES: Final = 64 * 1024
"""The key of a service account as JSON has 2 kB."""
_MIN_SCRUBBED_CHARS: Final = 4
"""A shorter secret would take letters out of every word, and keeps nobody out."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is."""

    place: str
    """The sink and the key of its table, for messages."""
    file: Path | None
    env: str = ""

    def read(self) -> str:
        """The secret as it is now, without spaces and ends of lines around it.

        :raises ConfigError: it is not there.
        """
        if self.file is None:
            text = os.environ.get(self.env, "")
            source = f"the environment variable {self.env}"
        else:
            source = str(self.file)
            try:
                with self.file.open("rb") as opened:
                    text = opened.read(MAX_SECRET_BYTES).decode()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{self.place}: the secret in {source} can't be read ({type(error).__name__}): name a readable file"
                ) from error
        if not text.strip():
            raise ConfigError(f"{self.place}: {source} is empty or missing: put the secret there")
        return text.strip()


@dataclass(frozen=True, slots=True)
class SinkTls:
    """How a receiver is trusted, and what it is shown."""

    ca: Path | None
    """Certificates of authorities in PEM; None: those of the system."""
    client: tuple[Path, Path] | None
    """The files of a certificate and its key."""

    def context(self) -> ssl.SSLContext:
        """A fresh context that checks the name of the receiver. :raises ConfigError: a file can't be used."""
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            if self.client is not None:
                context.load_cert_chain(*self.client)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(file) for file in (self.ca, *(self.client or ())) if file is not None)
            raise ConfigError(
                f"{files or 'the certificates of the system'} can't be used ({error}): use PEM"
            ) from error
        return context


def scrubbed(text: str, secrets: Iterable[Secret]) -> str:
    """``text`` without any of the secrets, printable, and of a bounded length."""
    hidden = without_secrets(text, secrets)
    return "".join(character if character.isprintable() else " " for character in hidden)[:500]


def without_secrets(text: str, secrets: Iterable[Secret]) -> str:
    """``text`` with stars in place of each of the secrets."""
    for secret in secrets:
        try:
            hidden = secret.read()
        except ConfigError:
            continue
        if len(hidden) >= _MIN_SCRUBBED_CHARS:
            text = text.replace(hidden, "***")
    return text
