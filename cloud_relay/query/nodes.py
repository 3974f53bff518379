"""Questions of nodes for records: which of them a node may have, and how much of the relay it may take for them.

The table of access of the relay decides, as it does between nodes: a node may ask for what its role lets it subscribe
to, all of it. A part would tell by its cursors of what is left out. Nobody else can say what a question costs, so it is
measured: each node has an allowance of processor time, and few questions are looked for at once, because batches use
the same threads. Beyond, a question is refused at once and not kept waiting. Readings are handed on in the bytes in
which they came.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Final

from msgspec import Raw

from cloud_relay.query.newest import key_cursor
from cloud_relay.query.readers.contract import StoreReaders
from cloud_relay.query.searching import StoredRecord
from cloud_relay.query.selection import Box, Query, cursor_of, place_of
from protocols.access import LINK_ROLES, AccessTable
from protocols.base.allowance import Allowance
from protocols.base.errors import LocalProtocolError, RemoteProtocolError, StorageError
from protocols.base.ids import NodeId, PeerIdentity
from protocols.base.limits import MAX_TEXT_CHARS, MAX_TOLD_BYTES, MS
from protocols.wire.asking.frames import RecordsAsked, RecordsTold, ToldRecord
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.records import RelayRefusal

MAX_AT_ONCE: Final = 2
"""Questions that are looked for at once, of eight threads that batches need."""
PATIENCE_S: Final = 0.25
"""How long a page may be looked for: half of what a program over HTTP gets, because it holds a thread of batches."""
COST_MS: Final = 20
"""Processor time that one token of an allowance stands for; a question takes one at least."""
TOKENS_PER_S: Final = 2
BURST: Final = 40
"""A node may take 40 ms of each second for ever, and 0.8 s at once."""
MAX_NODES: Final = 16_384
"""Nodes whose allowance is remembered. Who asked longest ago is forgotten first, and has a full one by then."""
_NO_STORE: Final = "the relay can't read its store now"
_log = logging.getLogger(__name__)


class NodeQuestions:
    """Answers the frames of questions. ``answer`` may run on any thread."""

    FRAMES: ClassVar[tuple[type[Frame], ...]] = (RecordsAsked,)

    def __init__(self, readers: StoreReaders, access: AccessTable, clock: Callable[[], int] = time.time_ns) -> None:
        """``clock`` gives UTC nanoseconds."""
        self._readers, self._access, self._clock = readers, access, clock
        self._lock, self._places = threading.Lock(), threading.BoundedSemaphore(MAX_AT_ONCE)
        self._allowances: dict[NodeId, Allowance] = {}
        self._counts = {"asked": 0, "records": 0, "refused": 0, "busy": 0, "failed": 0}

    def statistics(self) -> dict[str, int]:
        """Counters: questions (``asked``), ``records`` that were given; questions that were refused because of the
        table of access or because they are wrong (``refused``), because somebody asks too much (``busy``), and because
        the store can't be read (``failed``)."""
        return dict(self._counts)

    def answer(self, peer: PeerIdentity, data: bytes) -> bytes:
        """The answer to one request of ``peer``. Never raises."""
        try:
            asked = decode_untrusted_relay_frame(data)
            assert isinstance(asked, RecordsAsked), "its number says so"
            answer = self._answer(peer, asked)
        except (RemoteProtocolError, LocalProtocolError) as error:
            answer = RelayRefusal("malformed", str(error)[:MAX_TEXT_CHARS])
        except StorageError as error:
            _log.error("a question of %s was not answered: %s", peer.node, error)
            answer = RelayRefusal("storage", _NO_STORE)
        except Exception:  # noqa: BLE001 - a handler must not raise; the node asks again
            _log.exception("a question of %s was not answered: this is a bug of the relay", peer.node)
            answer = RelayRefusal("storage", "the relay failed")
        self._count(answer)
        return encode_frame(answer)

    def _answer(self, peer: PeerIdentity, asked: RecordsAsked) -> RecordsTold | RelayRefusal:
        if peer.role not in LINK_ROLES:
            return RelayRefusal("identity", f"a {peer.role} asks for no records: use a certificate of a node or a tool")
        query = self._query(asked)
        if not self._access.permits_subscribe(peer.role, peer.node, asked.expression):
            why = f"no access rule lets {peer.role} {peer.node} have all of {asked.expression}: ask for less"
            return RelayRefusal("access", why[:MAX_TEXT_CHARS])
        allowance = self._allowance(peer.node)
        with self._lock:
            if not allowance.take(time.monotonic_ns()):
                return RelayRefusal("busy", f"{peer.node} asks too much: ask again in a few seconds, and for less")
        if not self._places.acquire(blocking=False):
            return RelayRefusal("busy", f"the relay answers {MAX_AT_ONCE} questions already: ask again in a second")
        began_ns = time.thread_time_ns()
        try:
            return self._told(asked, query)
        finally:
            self._places.release()
            with self._lock:
                allowance.fine((time.thread_time_ns() - began_ns) // (COST_MS * MS))

    def _query(self, asked: RecordsAsked) -> Query:
        """:raises LocalProtocolError: it has no meaning."""
        oldest = self._clock() - asked.max_age_ms * MS if asked.max_age_ms else 0
        since, box = max(asked.since_utc_ns, oldest), asked.box
        if box is not None and box.south_deg > box.north_deg:
            raise LocalProtocolError(f"the south of the box, {box.south_deg:g}°, is north of {box.north_deg:g}°")
        return Query(
            key=asked.expression,
            since_utc_ns=since or None,
            box=None if box is None else Box(box.south_deg, box.west_deg, box.north_deg, box.east_deg),
            limit=asked.limit,
            after=None if asked.newest or not asked.cursor else place_of(asked.cursor),
        )

    def _told(self, asked: RecordsAsked, query: Query) -> RecordsTold:
        after = key_cursor(asked.cursor) if asked.newest and asked.cursor else None
        with self._readers.reader() as reader:
            found = reader.newest(query, after, PATIENCE_S) if asked.newest else reader.page(query, PATIENCE_S)
        told: list[ToldRecord] = []
        size_bytes, cursor = 0, found.cursor or ""
        for at, record in enumerate(found.records):
            size_bytes += len(record.encoded)
            if size_bytes > MAX_TOLD_BYTES and told:
                cursor = _cursor_after(found.records[at - 1], newest=asked.newest)
                break
            fields = record.fields
            told.append(ToldRecord(fields["origin"], fields["rule"], Raw(record.encoded)))
        return RecordsTold(self._clock(), tuple(told), cursor)

    def _allowance(self, node: NodeId) -> Allowance:
        with self._lock:
            allowance = self._allowances.pop(node, None)
            if allowance is None:
                allowance = Allowance(TOKENS_PER_S, BURST, time.monotonic_ns())
                if len(self._allowances) >= MAX_NODES:
                    del self._allowances[next(iter(self._allowances))]
            self._allowances[node] = allowance
            return allowance

    def _count(self, answer: RecordsTold | RelayRefusal) -> None:
        with self._lock:
            self._counts["asked"] += 1
            match answer:
                case RecordsTold():
                    self._counts["records"] += len(answer.records)
                case RelayRefusal("busy" | "storage" as code):
                    self._counts["busy" if code == "busy" else "failed"] += 1
                case _:
                    self._counts["refused"] += 1


def _cursor_after(record: StoredRecord, *, newest: bool) -> str:
    fields = record.fields
    if newest:
        return str(fields["key"])
    return cursor_of((fields["event_utc_ns"], fields["origin"], fields["sequence"]))
