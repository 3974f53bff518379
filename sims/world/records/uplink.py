"""The uplink of a simulated node: performs what ``protocols.records.uplink`` decides, on a disk and over the air.

Below it is TCP over the cellular network (:class:`sims.media.contract.RelayLinks`). Without coverage, or while nobody
answers, what was written stands still and is tried again after increasing pauses, until the node gives the exchange up.
What is under way arrives and is stored even when its node has given up or crashed meanwhile; then the relay gets it
twice.

The machine counts its pauses by virtual time, not by the clock of its node, whose drift is nothing over seconds. CPU
time is left out, since a batch a second costs next to nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final, Protocol, assert_never

from protocols.base.errors import StorageError
from protocols.base.ids import MonotonicNs, UtcNs
from protocols.base.limits import MS, SECOND
from protocols.base.time import NEVER
from protocols.records.events import (
    RecordRefused,
    RecordsDelivered,
    RecordsRenumbered,
    SaveLedger,
    SendBatch,
    ShiftSequences,
    UplinkChanged,
)
from protocols.records.ledger import Ledger
from protocols.records.uplink import Uplink, decode_untrusted_answer
from sims.media.contract import RelayLinks
from sims.virtual.driver import SimDriver
from sims.virtual.node import SimNode
from sims.world.records.disk import Disk
from sims.world.records.relay import Relay

COMMIT_NS: Final = 5 * MS
"""From a batch's arrival until it is on the relay's disk: a transaction of SQLite with ``synchronous=FULL``."""
ANSWER_NS: Final = MS
"""From the commit until the answer is on its way."""
_SYN_RETRY_NS: Final = SECOND
"""The first pause of a connection that nobody answers, doubled each time (RFC 6298)."""
_FIRST_RETRY_NS: Final = 200 * MS
"""The first pause of a stream that stands still, doubled each time."""
_LENGTH_BYTES: Final = 8
"""NNG's length before each message."""


class Watch(Protocol):
    """The contract of the object that keeps the account of records."""

    def taken(self, node: SimNode) -> None:
        """The relay has taken a batch of the node, now."""

    def delivered(self, node: SimNode, sequences: Sequence[int]) -> None:
        """The node learns that the relay has these records."""

    def renumbered(self, node: SimNode, first_sequence: int) -> None:
        """The node goes on where the relay stands, and sequences from there on are new."""

    def reached(self, node: SimNode, answers: bool) -> None:
        """An exchange ended with an answer, or without one."""


class _Exchange:
    """A request, and what becomes of it."""

    __slots__ = ("answer", "over", "relay_life", "request", "wait_ns")

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answer = b""
        self.over = False
        """Whether the node does not wait for the answer any more."""
        self.relay_life = -1
        self.wait_ns = _SYN_RETRY_NS


class SimUplink:
    """The uplink of one life of a node."""

    def __init__(
        self, driver: SimDriver, links: RelayLinks, relay: Relay, random: Random, node: SimNode, disk: Disk,
        ledger: Ledger, watch: Watch,
    ) -> None:  # fmt: skip
        """``ledger``: what was read from ``disk`` for this life."""
        self._driver, self._links, self._relay, self._watch = driver, links, relay, watch
        self._node, self._life, self._disk, self._ledger = node, node.lives, disk, ledger
        self._machine = Uplink(ledger, node.name, node.engine.settings.incarnation, random)
        self._connected: int | None = None
        """The life of the relay to which a connection is open."""

    def begin(self) -> None:
        """Start to carry records."""
        self._set_timer()

    def wake(self) -> None:
        """A record was put into the outbox."""
        due_ns = self._machine.next_timer_at()
        self._machine.wake(MonotonicNs(self._driver.now))
        if self._machine.next_timer_at() < due_ns:
            self._set_timer()

    # --- decisions -------------------------------------------------------------------------------------------------
    def _set_timer(self) -> None:
        due_ns = self._machine.next_timer_at()
        if due_ns < NEVER:
            now = self._driver.now
            self._driver.when_awake(self._node, max(due_ns, now), self._handle_timer, None)

    def _handle_timer(self, _: None) -> None:
        utc_ns = UtcNs(self._node.local(self._driver.now) + self._node.utc_less_mono_ns)
        self._decide(lambda now: self._machine.handle_timer(now, utc_ns))

    def _decide(self, tell: Callable[[MonotonicNs], None]) -> None:
        """Tell the machine something and perform what it decides."""
        tell(MonotonicNs(self._driver.now))
        while effects := self._machine.outgoing():
            for effect in effects:
                match effect:
                    case SendBatch(plan, timeout_ns):
                        self._ask(self._machine.batch(plan, self._disk.read_records(plan.sequences)), timeout_ns)
                    case SaveLedger():
                        self._write(0)
                    case ShiftSequences(shift):
                        self._write(shift)
                    case _:
                        assert_never(effect)
        for event in self._machine.events():
            match event:
                case RecordsDelivered(sequences):
                    self._watch.delivered(self._node, sequences)
                case RecordsRenumbered(first_sequence):
                    self._watch.renumbered(self._node, first_sequence)
                case UplinkChanged() | RecordRefused():  # the ledger counts what is refused
                    pass
                case _:
                    assert_never(event)
        self._set_timer()

    def _write(self, shift: int) -> None:
        now = MonotonicNs(self._driver.now)
        try:
            self._disk.write(self._ledger, shift=shift)
        except StorageError as error:
            self._machine.not_saved(str(error), now)
        else:
            self._machine.saved(now)

    # --- the exchange, at the node ---------------------------------------------------------------------------------
    def _ask(self, request: bytes, timeout_ns: int) -> None:
        exchange = _Exchange(request)
        self._driver.when_awake(self._node, self._driver.now + timeout_ns, self._unanswered, exchange)
        if self._connected is None:
            self._dial(exchange)
        else:
            self._write_request(exchange)

    def _unanswered(self, exchange: _Exchange) -> None:
        """The time is up, or the connection was reset."""
        if exchange.over:
            return
        exchange.over = True
        self._connected = None
        self._watch.reached(self._node, answers=False)
        self._decide(partial(self._machine.unanswered, "nobody answered"))

    def _answered(self, exchange: _Exchange) -> None:
        if exchange.over:
            return
        exchange.over = True
        self._watch.reached(self._node, answers=True)
        self._decide(partial(self._machine.receive, decode_untrusted_answer(exchange.answer)))

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
        open_ns = self._links.uplink_connect_ns(self._node.number, self._driver.now) if self._relay.up else None
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
        self._write_request(exchange)

    def _write_request(self, exchange: _Exchange) -> None:
        assert self._connected is not None
        exchange.relay_life, exchange.wait_ns = self._connected, _FIRST_RETRY_NS
        self._send(exchange)

    def _send(self, exchange: _Exchange) -> None:
        if self._is_void(exchange):
            return
        size_bytes = len(exchange.request) + _LENGTH_BYTES
        there_ns = self._links.uplink_ns(self._node.number, size_bytes, self._driver.now)
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
            reset_ns = self._links.uplink_ns(self._node.number, 0, driver.now, upward=False)
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
        back_ns = self._links.uplink_ns(self._node.number, size_bytes, self._driver.now, upward=False)
        if back_ns is None:
            self._later(exchange, self._respond)
        else:
            self._driver.when_awake(self._node, back_ns, self._answered, exchange)

    def _holds(self, exchange: _Exchange) -> bool:
        """Whether the process of the relay that took the request is still there."""
        return self._relay.up and self._relay.life == exchange.relay_life
