"""What the relay signs: the entry that publishes its sealing key, and its replies to carried batches.

The entry is one of gossip, with the relay as its author. A node gets it from the relay, and others get it from nodes.
It is signed again after a third of its lifetime, with the key and certificate that the files have then.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from msgspec.structs import replace

from meshnode.identity.packing import can_pack
from meshnode.identity.sealing import SealingKey
from meshnode.identity.signatures import SigningKey, read_authority, read_signing_key, untrusted_certified_key
from meshnode.links.transport import CredentialFiles
from protocols.base.errors import IdentityError
from protocols.base.ids import MeshName, NodeId
from protocols.base.limits import SECOND
from protocols.base.sequences import first_version
from protocols.records.carrying.sealed import encode_relay_key, encode_reply, reply_statement
from protocols.wire.carrying.contents import RELAY_KEY_KIND, SUITE, RelayKey, SignedReply
from protocols.wire.entries import encode_entry, entry_statement
from protocols.wire.gossip import Entry

LIFETIME_S: Final = 7 * 86_400
"""A vehicle may be away from everybody who has the key for that long, and still seal to it."""
_SHORTEST_S: Final = 60
_log = logging.getLogger(__name__)


class _Signed(NamedTuple):
    entry: bytes
    signed_ns: int
    """By the monotonic clock."""
    lifetime_s: int


class RelaySigner:
    """Signs for one relay. May be called from any thread."""

    def __init__(
        self, files: CredentialFiles, mesh: MeshName, node: NodeId, sealing_key: SealingKey,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:  # fmt: skip
        """``clock`` gives UTC nanoseconds. :raises IdentityError: a file can't be used."""
        self._files, self._mesh, self._node, self._clock = files, mesh, node, clock
        self._body = encode_relay_key(RelayKey(SUITE, sealing_key.public_key, can_pack()))
        self._lock = threading.Lock()
        self._version = 0
        self._key: SigningKey
        self._signed = self._sign()

    def entry(self) -> tuple[bytes, int]:
        """The entry that publishes the sealing key, and its age in nanoseconds."""
        with self._lock:
            age_ns = time.monotonic_ns() - self._signed.signed_ns
            if age_ns > self._signed.lifetime_s * SECOND // 3:
                try:
                    self._signed, age_ns = self._sign(), 0
                except IdentityError as error:  # they may be being exchanged; the entry lives on for a while
                    _log.error("the entry of the sealing key is not signed again: %s", error)
            return self._signed.entry, age_ns

    def reply(self, node: str, sealed: bytes, answer: bytes) -> bytes:
        """What the relay says of a sealed batch of ``node``. ``sealed`` is the id of the batch."""
        key = self._key
        unsigned = SignedReply(self._mesh, self._node, node, sealed, answer, key.certificate, b"")
        return encode_reply(replace(unsigned, signature=key.sign(reply_statement(unsigned))))

    def _sign(self) -> _Signed:
        key = read_signing_key(self._files)
        ends_ns = untrusted_certified_key(key.certificate, read_authority(self._files.authority)).not_after_utc_ns
        now_ns = self._clock()
        lifetime_s = max(_SHORTEST_S, min(LIFETIME_S, (ends_ns - now_ns) // SECOND))  # nobody believes it for longer
        self._version = max(self._version + 1, first_version(now_ns // SECOND))
        draft = Entry(self._node, RELAY_KEY_KIND, self._version, lifetime_s, self._body, b"", b"")
        signature = key.sign(entry_statement(draft))
        entry = encode_entry(replace(draft, credential=key.certificate, signature=signature))
        self._key = key
        return _Signed(entry, time.monotonic_ns(), lifetime_s)
