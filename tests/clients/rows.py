"""One row for each call of a client: what came of it, in words.

This module and those of the clients run in the interpreter that has the client, so they import nothing of ours and of
others only NumPy, which every one of these clients brings.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

WORKS, CLEAR_ERROR, NOT_THERE, FAILED = "works", "clear error", "n.a.", "FAILED"
MISSING = 3
"""The exit status of a module whose client is not installed."""


class Rows:
    """The rows of one client."""

    def __init__(self, client: str, version: str) -> None:
        self._client = f"{client} {version}"

    def works(self, call: str, attempt: Callable[[], Any]) -> None:
        """A call that has to work; ``attempt`` raises when it does not, or returns False."""
        try:
            good = attempt() is not False
        except Exception as error:  # noqa: BLE001 - whatever a client raises belongs into the table
            self._write(call, FAILED, f"{type(error).__name__}: {error}")
        else:
            self._write(call, WORKS if good else FAILED, "" if good else "a wrong answer")

    def refused(self, call: str, attempt: Callable[[], Any], says: str) -> None:
        """A call that a node does not have, or must refuse: the client has to raise an error that says so."""
        try:
            given = attempt()
        except Exception as error:  # noqa: BLE001 - as above
            self._write(call, CLEAR_ERROR if says in str(error) else FAILED, str(error))
        else:
            self._write(call, FAILED, f"it was not refused, but answered with {given!r}")

    def not_there(self, call: str, why: str) -> None:
        """A call that can't be made of a node."""
        self._write(call, NOT_THERE, why)

    def _write(self, call: str, outcome: str, detail: str) -> None:
        row = {"client": self._client, "call": call, "outcome": outcome, "detail": " ".join(detail.split())[:240]}
        print(json.dumps(row), flush=True)


def same(given: Any, wanted: Any) -> bool:
    """Whether two arrays are of one type and shape and have the same bits, except that any NaN is like another."""
    import numpy as np

    return bool(
        given.dtype == wanted.dtype and given.shape == wanted.shape
        and np.array_equal(given, wanted, equal_nan=wanted.dtype.kind == "f")
    )  # fmt: skip


def missing(client: str, error: ImportError | RuntimeError) -> int:
    """Say that the client is not installed here. Returns the exit status."""
    print(f"{client} is not installed in {sys.executable}: {error}", file=sys.stderr)
    return MISSING
