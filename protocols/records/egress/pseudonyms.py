"""Pseudonyms: names that only who has the key can lead back to a node, and that change from period to period.

Within one period, which is counted in UTC from 1970 on, a name has one pseudonym; those of two periods have nothing in
common. Sequences are replaced too: they grow from period to period, and begin with the second in which the node
started. In one stream no two sequences become the same, but for a chance of one in 2^63. What stands for a sequence
changes with the names: otherwise it would tell which of two periods' names are the same, or that of a rule without
pseudonyms whose a pseudonym is.

What a neighbour says of others is hashed apart from what they say of themselves. Otherwise it could put any name and
any time into a reading, and whoever reads the records would have the pseudonym of that name at that time.
"""

import base64
from collections.abc import Callable
from typing import Final

from msgspec import msgpack

from protocols.base.limits import SECOND
from protocols.base.sequences import MAX_SEQUENCE

_BYTES: Final = 10
"""Of the hash in a pseudonym. Two of a million nodes have the same with a chance of one in 10^12."""
_NAME_DOMAIN, _SAID_DOMAIN, _SEQUENCE_DOMAIN = "name", "said", "sequence"


class Pseudonyms:
    """Pseudonyms by one key."""

    def __init__(self, keyed_hash: Callable[[bytes], bytes]) -> None:
        """``keyed_hash`` returns at least 16 bytes that nobody without the key can tell from random ones."""
        self._hash = keyed_hash

    def of_name(self, name: str, period_s: int, utc_ns: int, said_by: str = "") -> str:
        """The pseudonym of a name in the period that holds ``utc_ns``. It has the form of a node id. ``said_by``: the
        neighbour that says it of another one; empty: a node says it of itself, or this one does."""
        period = utc_ns // (period_s * SECOND)
        named = (
            (_NAME_DOMAIN, period_s, period, name)
            if said_by in ("", name)
            else (_SAID_DOMAIN, period_s, period, name, said_by)
        )
        digest = self._hash(msgpack.encode(named))
        return "p" + base64.b32encode(digest[:_BYTES]).decode().lower()

    def of_sequence(self, origin: str, key: str, sequence: int, period_s: int | None, utc_ns: int) -> int:
        """What stands for the sequence of a reading, where names last for ``period_s``; None: they stay."""
        period = 0 if period_s is None else utc_ns // (period_s * SECOND)
        digest = self._hash(msgpack.encode((_SEQUENCE_DOMAIN, period_s, period, origin, key, sequence)))
        return int.from_bytes(digest[:8]) & MAX_SEQUENCE
