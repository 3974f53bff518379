"""The store for each kind of window."""

from typing import assert_never

from protocols.records.windows.counts import CountStore
from protocols.records.windows.kinds import CountWindow, SessionWindow, TimeWindow, Window
from protocols.records.windows.open import OpenWindows
from protocols.records.windows.sessions import SessionStore
from protocols.records.windows.summary import Functions
from protocols.records.windows.times import TimeStore


def open_windows_for(window: Window, functions: Functions, max_rows: int) -> OpenWindows:
    """The store for a kind of window."""
    match window:
        case TimeWindow():
            return TimeStore(window, functions, max_rows)
        case SessionWindow():
            return SessionStore(window, functions, max_rows)
        case CountWindow():
            return CountStore(window, functions, max_rows)
        case _:
            assert_never(window)
