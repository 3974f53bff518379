"""Reads and checks the options of one driver, with errors that name driver, option, value and what to do."""

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from protocols.base.errors import ConfigError, InvalidKey, SourceUnavailable
from protocols.base.keys import checked_key

_SHOWN_CHARS = 60
_PASSWORD = re.compile(r"(?<=://)[^/]*@")
"""User and password of an address, up to the last @ before its path: FFmpeg takes passwords with an @ in them."""


def without_password(text: str) -> str:
    """A text that may have an address in it, for people and logs."""
    return _PASSWORD.sub("…@", text)


class Options:
    """The options of one driver. Call :meth:`finish` when all were read, because an unknown option is an error."""

    def __init__(self, driver: str, options: Mapping[str, Any]) -> None:
        self._driver = driver
        self._options = options
        self._asked: list[str] = []

    def has(self, name: str) -> bool:
        """Whether the option was given."""
        self._note(name)
        return name in self._options

    def text(self, name: str, default: str) -> str:
        """A non-empty text of at most 4096 characters."""
        value = self._value(name, default)
        if not isinstance(value, str) or not 1 <= len(value) <= 4096:
            raise self.wrong(name, "give a text")
        return value

    def texts(self, name: str, default: list[str]) -> list[str]:
        """A list of 1 to 1,000 texts, each as :meth:`text`."""
        value = self._value(name, default)
        if not isinstance(value, list) or not 1 <= len(value) <= 1_000:
            raise self.wrong(name, "give a list of texts")
        if not all(isinstance(each, str) and 1 <= len(each) <= 4096 for each in value):
            raise self.wrong(name, "give a list of texts that are not empty")
        return list(value)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of the ``choices``."""
        value = self._value(name, default)
        if value not in choices:
            near = get_close_matches(str(value), choices, n=1)
            raise self.wrong(name, f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(choices)}")
        return str(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "give true or false")
        return value

    def number(self, name: str, default: float, at_least: float, at_most: float) -> float:
        """A finite number between bounds."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, f"give a number from {at_least:g} to {at_most:g}")
        if not at_least <= value <= at_most:
            raise self.wrong(name, f"give a number from {at_least:g} to {at_most:g}")
        return float(value)

    def integer(self, name: str, default: int, at_least: int, at_most: int) -> int:
        """A whole number between bounds."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
            raise self.wrong(name, f"give a whole number from {at_least} to {at_most}")
        return value

    def file(self, name: str, folder: Path, default: Path) -> Path:
        """An existing file; a relative path starts at ``folder``."""
        path = self._path(name, folder, default)
        if not path.is_file():
            raise self.absent(name, f"there is no file {path}")
        return path

    def directory(self, name: str, folder: Path, default: Path) -> Path:
        """An existing folder; a relative path starts at ``folder``."""
        path = self._path(name, folder, default)
        if not path.is_dir():
            raise self.absent(name, f"there is no folder {path}")
        return path

    def key(self, name: str, default: str, prefix: str) -> str:
        """A key below ``prefix``, which it begins with."""
        try:
            return checked_key(f"{prefix}/{self.text(name, default)}")
        except InvalidKey as error:
            raise self.wrong(name, f"give a key below {prefix}: {error}") from error

    def finish(self) -> None:
        """:raises ConfigError: an option was given that nothing asked for; the message suggests the nearest known
        one."""
        for name in self._options:
            if name not in self._asked:
                near = get_close_matches(str(name), self._asked, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self._asked)}"
                raise ConfigError(f"sensor driver {self._driver!r} has no option {str(name)[:_SHOWN_CHARS]!r}: {hint}")

    def need(self, module: str, extra: str) -> None:
        """Check that the driver can import what it needs. :raises ConfigError: the extra is not installed; names it."""
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"sensor driver {self._driver!r} needs {module}: pip install 'meshnode[{extra}]'"
            ) from error

    def wrong(self, name: str, way_out: str) -> ConfigError:
        """The error to raise for an option whose value can't be used."""
        return ConfigError(self._about(name, way_out))

    def absent(self, name: str, way_out: str) -> SourceUnavailable:
        """The error to raise for an option that names something that can't be used now, and may be later."""
        return SourceUnavailable(self._about(name, way_out))

    def _about(self, name: str, way_out: str) -> str:
        shown = without_password(repr(self._options.get(name)))
        shown = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "…"
        return f"sensor driver {self._driver!r}: option {name!r} is {shown}: {way_out}"

    def _path(self, name: str, folder: Path, default: Path) -> Path:
        text = self.text(name, str(default))
        if "\0" in text:
            raise self.wrong(name, "a path has no NUL character")
        return folder / Path(text).expanduser()

    def _value(self, name: str, default: Any) -> Any:
        self._note(name)
        return self._options.get(name, default)

    def _note(self, name: str) -> None:
        if name not in self._asked:
            self._asked.append(name)
