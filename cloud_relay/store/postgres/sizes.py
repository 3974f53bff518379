"""How large a record counts for retention by size: what it takes of the disk, about, by what is known without looking.

Files of PostgreSQL don't get smaller when rows are deleted, and the server does not tell how much of them is free. So
the sizes of records are added up by stream, in the transactions that store and delete them.
"""

from typing import Final

ROW_BYTES: Final = 480
"""The columns of fixed size and short texts, five index entries half full at worst, and its share of a receipt."""
SIZE: Final = f"(octet_length(encoded) + octet_length(value) + 2 * octet_length(key) + {ROW_BYTES})"
"""The size of a row of ``records``, in SQL."""


def record_size_bytes(encoded: bytes, value: str, key: str) -> int:
    """The same of a record that is about to become a row."""
    return len(encoded) + _text_bytes(value) + 2 * _text_bytes(key) + ROW_BYTES


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
