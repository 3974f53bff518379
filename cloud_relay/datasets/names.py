"""What datasets and their versions are called: ``speeds`` and ``speeds@3``."""

import re
from typing import Final, NamedTuple

from protocols.base.errors import LocalProtocolError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A name is that of a folder, so it has no slash and does not begin with a dot."""
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")


class VersionName(NamedTuple):
    """A dataset, and perhaps one of its versions."""

    name: str
    number: int | None
    """None: none was named."""

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}@{self.number}"


def untrusted_name(text: str) -> str:
    """The name of a dataset. :raises LocalProtocolError: it is none."""
    if _NAME.fullmatch(text) is None:
        raise LocalProtocolError(
            f"{text[:70]!r} is no name of a dataset: use up to 64 letters, digits, '.', '_', '-', and begin with a "
            "letter or digit"
        )
    return text


def untrusted_version(text: str) -> VersionName:
    """A dataset with or without a version. :raises LocalProtocolError: it is neither."""
    name, at, number = text.partition("@")
    if at and _NUMBER.fullmatch(number) is None:
        raise LocalProtocolError(
            f"{text[:80]!r} names no version: write NAME@NUMBER, as in speeds@3, or NAME for the newest"
        )
    return VersionName(untrusted_name(name), int(number) if at else None)
