"""Which messages of quality of service 2 were delivered last, so that one that a broker gives again is known.

A receiver may forget a number once it has sent PUBCOMP: if that is lost, the sender repeats PUBREL and never PUBLISH.
mosquitto does otherwise (``src/persist_read.c``, up to 2.0.20 at least). A message that it reads back after a restart
goes to those not yet sent if as many as ``max_inflight_messages`` were read before it, and is published again with its
number and the flag DUP. Up to 2.0.12 it has more than that under way whenever messages had to wait.

So a message with DUP is a repetition if the last one of this number had the same topic and payload. With a broker that
uses each number again at once, it could be a new message that is equal and whose first sending was lost. Such a broker
is found out by its numbers: what it says is then believed until it has used many different ones.
"""

import hashlib
from collections import OrderedDict
from typing import Final

MAX_REMEMBERED: Final = 10_000
"""About 2 MB. mosquitto 2.0.11 may have thousands under way after it was away."""
MIN_DIFFERENT: Final = 20
"""How many different numbers in a row tell a broker that counts on: what mosquitto has under way by default."""


class Delivered:
    """See the module. Of one session."""

    def __init__(self) -> None:
        self._digests: OrderedDict[int, bytes] = OrderedDict()
        self._needed = MIN_DIFFERENT

    def forget(self) -> None:
        """The broker has begun a new session: it numbers messages anew."""
        self._digests.clear()
        self._needed = MIN_DIFFERENT

    def is_repeated(self, mid: int, dup: bool, topic: str, payload: bytes) -> bool:
        """Whether this message was delivered before. Otherwise it is delivered now.

        ``mid``: its number. ``dup``: the broker says that it may have sent it before.
        """
        digest = hashlib.blake2b(topic.encode() + b"\0" + payload, digest_size=16).digest()  # no topic has a NUL
        if mid in self._digests and not dup:
            self._digests.clear()
            self._needed = MAX_REMEMBERED
        elif self._digests.get(mid) == digest and len(self._digests) >= self._needed:
            return True
        self._digests.pop(mid, None)
        self._digests[mid] = digest
        if len(self._digests) > MAX_REMEMBERED:
            self._digests.popitem(last=False)
        return False
