"""The uplink of a simulated node: carries its outbox to the relay, one batch at a time, for as long as it takes.

Follows ``meshnode.records.uplink`` step by step, with its times: an empty batch introduces a new outbox, the next batch
goes out when the one before is answered, no answer means back-off with jitter and a new connection.

Below it is TCP over the cellular way (:class:`sims.media.contract.Uplink`): without coverage, or while nobody answers,
what was written stands still and is tried again after ever longer pauses, until the node gives the exchange up. What is
under way arrives, and is stored, even when its node has given up or crashed meanwhile: then the relay gets it twice.

Left out: refusals that no simulated relay gives (``malformed``, ``version``), and CPU time, for a batch a second costs
next to nothing.
"""

from collections.abc import Callable
from random import Random
from typing import Final, Protocol

from protocols.base.errors import StorageError
from protocols.base.ids import UtcNs
from protocols.base.limits import MS, SECOND
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.records import Acknowledgement, Batch, RelayFrame, RelayRefusal
from sims.media.contract import Uplink as Way
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.outbox import Outbox, Upload
from sims.world.relay import Relay

RETRY_MIN_S: Final = 0.25
RETRY_MAX_S: Final = 5.0
REFUSED_RETRY_S: Final = 30.0
REQUEST_TIMEOUT_NS: Final = 10 * SECOND
"""These four are those of ``meshnode.records.uplink``."""
COMMIT_NS: Final = 5 * MS
"""From a batch's arrival until it is on the relay's disk: a transaction of SQLite with ``synchronous=FULL``."""
ANSWER_NS: Final = MS
"""From there until the answer is on its way."""
_SYN_RETRY_NS: Final = SECOND
"""Of a connection that nobody answers, doubled each time (RFC 6298)."""
_FIRST_RETRY_NS: Final = 200 * MS
"""Of a stream that stands still, doubled each time."""
_LENGTH_BYTES: Final = 8
"""NNG's length before each message."""


class Watch(Protocol):
    """Whoever keeps the account."""

    def taken(self, node: SimNode) -> None:
        """The relay has taken a batch of the node, now."""

    def acknowledged(self, node: SimNode, upload: Upload, answer: Acknowledgement) -> None:
        """The node learns what became of a batch."""

    def renumbered(self, node: SimNode, first_sequence: int) -> None:
        """The node goes on where the relay stands: sequences from there on are new."""

    def reached(self, node: SimNode, answers: bool) -> None:
        """An exchange came to an end: with an answer, or without."""


class _Exchange:
    """A request, and what becomes of it."""

    __slots__ = ("answer", "over", "relay_life", "request", "settle", "upload", "wait_ns")

    def __init__(
        self, request: bytes, upload: Upload | None, settle: Callable[["_Exchange", RelayFrame], None]
    ) -> None:
        self.request, self.upload, self.settle = request, upload, settle
        self.answer = b""
        self.over = False
        """For the node."""
        self.relay_life = -1
        self.wait_ns = _SYN_RETRY_NS


class Uplink:
    """Of one life of a node."""

    def __init__(
        self, driver: SimDriver, way: Way, relay: Relay, random: Random, node: SimNode, outbox: Outbox, watch: Watch
    ) -> None:
        self._driver, self._way, self._relay, self._random = driver, way, relay, random
        self._node, self._life, self._outbox, self._watch = node, node.lives, outbox, watch
        self._connected: int | None = None
        """To which life of the relay."""
        self._idle = False
        self._failures = 0

    def begin(self) -> None:
        """Start to carry."""
        self._driver.when_awake(self._node, self._driver.now, self._step, None)

    def wake(self) -> None:
        """A record was put."""
        if self._idle:
            self._idle = False
            self._driver.when_awake(self._node, self._driver.now, self._step, None)

    # --- one step --------------------------------------------------------------------------------------------------
    def _step(self, _: None) -> None:
        if not self._outbox.introduced:
            self._ask(None, self._outbox.first_sequence, self._introduced)
            return
        upload = self._outbox.next_upload(self._utc_ns())
        if upload is None:
            self._idle = True
        else:
            self._ask(upload, upload.plan.next_sequence, self._settled)

    def _introduced(self, exchange: _Exchange, answer: RelayFrame) -> None:
        del exchange
        try:
            if isinstance(answer, Acknowledgement):
                self._outbox.introduce()
            elif isinstance(answer, RelayRefusal) and answer.code == "sequence":
                if not self._outbox.renumber(int(answer.detail)):
                    self._refused()
                    return
                self._watch.renumbered(self._node, int(answer.detail))
            else:
                self._refused()
                return
        except StorageError:
            self._failed()
            return
        self._succeeded()

    def _settled(self, exchange: _Exchange, answer: RelayFrame) -> None:
        upload = exchange.upload
        assert upload is not None
        if not isinstance(answer, Acknowledgement):
            self._outbox.abandon()
            self._refused()
            return
        ended = self._outbox.acknowledge(upload.plan, answer)
        self._watch.acknowledged(self._node, upload, answer)
        if upload.records and not ended:
            self._failed()
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        self._failures = 0
        self._driver.when_awake(self._node, self._driver.now, self._step, None)

    def _refused(self) -> None:
        """Somebody has to repair something."""
        self._pause(REFUSED_RETRY_S)

    def _failed(self) -> None:
        pause_s = min(RETRY_MIN_S * 2.0**self._failures, RETRY_MAX_S)
        self._failures = min(self._failures + 1, 16)
        self._pause(pause_s)

    def _pause(self, pause_s: float) -> None:
        pause_ns = int(pause_s * self._random.uniform(0.5, 1.0) * SECOND)
        self._driver.when_awake(self._node, self._driver.now + pause_ns, self._again, None)

    def _again(self, _: None) -> None:
        self._outbox.expire(self._utc_ns())
        self._step(None)

    def _utc_ns(self) -> UtcNs:
        return UtcNs(self._node.local(self._driver.now) + self._node.utc_less_mono_ns)

    # --- the exchange, at the node ---------------------------------------------------------------------------------
    def _ask(self, upload: Upload | None, next_sequence: int, settle: Callable[[_Exchange, RelayFrame], None]) -> None:
        driver, node = self._driver, self._node
        records, fates = ((), ()) if upload is None else (upload.records, upload.plan.fates)
        incarnation = node.engine.settings.incarnation
        batch = Batch(MAJOR, MINOR, node.name, incarnation, next_sequence, records, fates)
        exchange = _Exchange(encode_frame(batch), upload, settle)
        driver.when_awake(node, driver.now + REQUEST_TIMEOUT_NS, self._unanswered, exchange)
        if self._connected is None:
            self._dial(exchange)
        else:
            self._write(exchange)

    def _unanswered(self, exchange: _Exchange) -> None:
        """The time is up, or the connection was reset."""
        if exchange.over:
            return
        exchange.over = True
        self._connected = None
        if exchange.upload is not None:
            self._outbox.abandon()
        self._watch.reached(self._node, answers=False)
        self._failed()

    def _answered(self, exchange: _Exchange) -> None:
        if exchange.over:
            return
        exchange.over = True
        self._watch.reached(self._node, answers=True)
        exchange.settle(exchange, decode_untrusted_relay_frame(exchange.answer))

    # --- the exchange, on its way ----------------------------------------------------------------------------------
    def _is_void(self, exchange: _Exchange) -> bool:
        """Whether the node's end is closed."""
        return exchange.over or not self._node.running or self._node.lives != self._life

    def _later(self, exchange: _Exchange, action: Callable[[_Exchange], None]) -> None:
        self._driver.push(self._driver.now + exchange.wait_ns, action, exchange)
        exchange.wait_ns *= 2

    def _dial(self, exchange: _Exchange) -> None:
        if self._is_void(exchange):
            return
        open_ns = self._way.uplink_connect_ns(self._node.number, self._driver.now) if self._relay.up else None
        if open_ns is None:
            self._later(exchange, self._dial)
        else:
            self._driver.push(open_ns, self._dialled, exchange)

    def _dialled(self, exchange: _Exchange) -> None:
        if self._is_void(exchange):
            return
        if not self._relay.up:
            self._later(exchange, self._dial)
            return
        self._connected = self._relay.life
        self._write(exchange)

    def _write(self, exchange: _Exchange) -> None:
        assert self._connected is not None
        exchange.relay_life, exchange.wait_ns = self._connected, _FIRST_RETRY_NS
        self._send(exchange)

    def _send(self, exchange: _Exchange) -> None:
        if self._is_void(exchange):
            return
        size_bytes = len(exchange.request) + _LENGTH_BYTES
        there_ns = self._way.uplink_ns(self._node.number, size_bytes, self._driver.now)
        if there_ns is None:
            self._later(exchange, self._send)
        else:
            self._driver.push(there_ns, self._arrived, exchange)

    # --- the exchange, at the relay --------------------------------------------------------------------------------
    def _arrived(self, exchange: _Exchange) -> None:
        driver, relay = self._driver, self._relay
        if not relay.up:
            self._later(exchange, self._send)
        elif relay.life == exchange.relay_life:
            driver.push(driver.now + COMMIT_NS, self._commit, exchange)
        else:  # its kernel knows no such connection
            reset_ns = self._way.uplink_ns(self._node.number, 0, driver.now, upward=False)
            if reset_ns is not None and not self._is_void(exchange):
                driver.when_awake(self._node, reset_ns, self._unanswered, exchange)

    def _commit(self, exchange: _Exchange) -> None:
        if not self._holds(exchange):
            return
        exchange.answer = self._relay.answer(self._node.name, exchange.request)
        self._watch.taken(self._node)
        exchange.wait_ns = _FIRST_RETRY_NS
        self._driver.push(self._driver.now + ANSWER_NS, self._respond, exchange)

    def _respond(self, exchange: _Exchange) -> None:
        if self._is_void(exchange) or not self._holds(exchange):
            return
        size_bytes = len(exchange.answer) + _LENGTH_BYTES
        back_ns = self._way.uplink_ns(self._node.number, size_bytes, self._driver.now, upward=False)
        if back_ns is None:
            self._later(exchange, self._respond)
        else:
            self._driver.when_awake(self._node, back_ns, self._answered, exchange)

    def _holds(self, exchange: _Exchange) -> bool:
        """Whether the process of the relay that took the request is still there."""
        return self._relay.up and self._relay.life == exchange.relay_life
