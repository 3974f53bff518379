"""Texts that PostgreSQL can't hold: it has no character 0.

Nodes may send it in the name of a rule, a sensor, a unit or a calibration. Records with it are kept, as SQLite keeps
them: the character 0 is stored as U+E000 U+E002, and U+E000 itself, which is for private use, as U+E000 U+E001. JSON
writes character 0 as six others by itself.
"""

from typing import Final

_ESCAPE: Final = "\ue000"


def stored_text(text: str) -> str:
    """The text as the store has it."""
    if text.isprintable():  # neither character is
        return text
    return text.replace(_ESCAPE, "\ue000\ue001").replace("\0", "\ue000\ue002")


def shown_text(stored: str) -> str:
    """The text that a stored one stands for."""
    if _ESCAPE not in stored:
        return stored
    return stored.replace("\ue000\ue002", "\0").replace("\ue000\ue001", _ESCAPE)
