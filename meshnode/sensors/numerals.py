"""Reads numbers as spreadsheets and loggers write them, and never guesses.

What looks like a number is a number or an error, never a text. Whoever wants such a text writes it as JSON, in double
quotes. A decimal comma is read only if it was asked for: ``1,234`` may also be a thousand.
"""

import json
import re
from typing import Any, Final

_DIGITS: Final = re.compile(r"[+-]?\d+", re.ASCII)
_LEADING_ZERO: Final = re.compile(r"[+-]?0\d", re.ASCII)
_POINT: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_COMMA: Final = re.compile(r"[+-]?(?:\d+,\d*|,\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_GROUPED: Final = re.compile(
    r"[+-]?\d{1,3}(?:(?:\.\d{3})+,\d+|(?:,\d{3})+\.\d+|(?:\.\d{3}){2,}|(?:,\d{3}){2,}"
    r"|(?:[ '’\u00a0\u202f]\d{3})+(?:[.,]\d+)?)"
)
"""Thousands apart: ``1.234,5``, ``1,234.5``, ``1.234.567``, ``1 234``."""
_FOREIGN_MINUS: Final = str.maketrans("−–", "--")
_MAYBE_THOUSANDS: Final = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)
"""Beside decimal commas, ``1.234`` may be a thousand. ``0.5`` and ``48.7655`` are not: files mix both signs."""
_NOT_FINITE: Final = re.compile(r"[+-]?(?:nan|inf|infinity)", re.ASCII | re.IGNORECASE)


class NumeralInvalid(ValueError):
    """A text looks like a number, but can't be read as one; says what to do."""


class DecimalMismatch(NumeralInvalid):
    """A number may have another decimal sign than was asked for; others in the file then have it too."""


class Numerals:
    """Numbers with one decimal sign, ``.`` or ``,``."""

    def __init__(self, decimal: str) -> None:
        self._decimal = decimal

    def number(self, text: str) -> float:
        """The number in a cell that must have one. :raises NumeralInvalid: there is none."""
        if self._decimal == "." and text.isascii() and "_" not in text:
            try:  # Most cells are plain numbers, and this is the fastest way to read them.
                return float(text)
            except ValueError:
                pass
        found = self._numeral(text.strip())
        if found is None:
            raise NumeralInvalid("give a number")
        return float(found)

    def value(self, text: str) -> Any:
        """The value in a cell that may have any: a number, other JSON (true, a list, a text in double quotes, …), or
        else a text. :raises NumeralInvalid: it looks like a number that can't be read."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return self._other(text)
        if (type(found) is float and self._decimal == ",") or type(found) is int:
            return self._numeral(text.strip())
        return found

    def _other(self, text: str) -> Any:
        stripped = text.strip()
        if _LEADING_ZERO.match(stripped) and (_POINT.fullmatch(stripped) or _COMMA.fullmatch(stripped)):
            raise NumeralInvalid("remove the leading zeros of a number, or put a text into double quotes of JSON")
        found = self._numeral(stripped)
        return text if found is None else found

    def _numeral(self, text: str) -> int | float | None:
        """None: the text does not look like a number."""
        if _POINT.fullmatch(text):
            if _DIGITS.fullmatch(text) and len(text) <= 20:
                value = int(text)
                # An integer beyond 64 bits can travel only as a float.
                return value if -(2**63) <= value < 2**64 else float(value)
            if self._decimal == "," and _MAYBE_THOUSANDS.fullmatch(text):
                raise DecimalMismatch("with decimal = ',' its point may set thousands apart, write it without")
            return float(text)
        text = text.translate(_FOREIGN_MINUS)
        if _COMMA.fullmatch(text):
            if self._decimal == ".":
                raise DecimalMismatch("set decimal = ',' if the comma is the decimal sign")
            return float(text.replace(",", "."))
        if _POINT.fullmatch(text):
            return self._numeral(text)
        if _GROUPED.fullmatch(text):
            raise NumeralInvalid("remove what sets the thousands apart, or put a text into double quotes of JSON")
        return float(text) if _NOT_FINITE.fullmatch(text) else None
