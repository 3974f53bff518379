"""What a trial can be told while it runs, by lines of JSON on its standard input (``--hold``).

    ["clock", offset_ns, drift_ppb, since_ns]
                              UTC is wrong by so much, and gains so many nanoseconds in each second since that instant
                              of the monotonic clock
    ["slow", factor]          timed models take so many times as long; 1: as long as planned
    ["understate", factor]    neighbours are told 1/factor of what models take, and that nothing waits; 1: the truth
    ["entries"]               write every gossip entry that is held, or comes to be held, into the journal
    ["send", frame]           send a frame (base64) to every neighbour as it is, genuine or not

Any other line is written into the journal and skipped.
"""

import os
import threading
from collections.abc import Callable
from typing import Annotated, Final, assert_never

import msgspec
from msgspec import Meta, Struct

from meshnode.trial.clock import WallClock
from meshnode.trial.node import TrialNode
from protocols.base.effects import Event
from protocols.base.limits import MAX_FRAME_BYTES, SECOND
from protocols.gossip.events import EntryAccepted

MAX_LINE_BYTES: Final = 2 * 1024 * 1024
_READ_BYTES: Final = 65_536
_DAYS_100_YEARS: Final = 36_525
_MOST_OFF_NS: Final = _DAYS_100_YEARS * 86_400 * SECOND
_Factor = Annotated[float, Meta(ge=1, le=1_000_000)]


class SetClock(Struct, frozen=True, array_like=True, tag="clock"):
    """See the module."""

    offset_ns: Annotated[int, Meta(ge=-_MOST_OFF_NS, le=_MOST_OFF_NS)]
    drift_ppb: Annotated[int, Meta(ge=-SECOND, le=SECOND)]
    since_ns: Annotated[int, Meta(ge=0)]


class SlowModels(Struct, frozen=True, array_like=True, tag="slow"):
    """See the module."""

    factor: _Factor


class UnderstateLoad(Struct, frozen=True, array_like=True, tag="understate"):
    """See the module."""

    factor: _Factor


class TellEntries(Struct, frozen=True, array_like=True, tag="entries"):
    """See the module."""


class SendRaw(Struct, frozen=True, array_like=True, tag="send"):
    """See the module."""

    frame: Annotated[bytes, Meta(min_length=1, max_length=MAX_FRAME_BYTES)]


Command = SetClock | SlowModels | UnderstateLoad | TellEntries | SendRaw


class Lines:
    """Lines that come in on a descriptor. ``sys.stdin`` has a lock, which a waiting daemon thread would still hold when
    the process ends; this has none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = b""

    def next(self) -> bytes | None:
        """Wait for the next line, cut to ``MAX_LINE_BYTES``; None when there is none left."""
        line = b""
        while True:
            part, end, self._waiting = self._waiting.partition(b"\n")
            line = (line + part)[:MAX_LINE_BYTES]
            if end:
                return line
            self._waiting = os.read(self._descriptor, _READ_BYTES)
            if not self._waiting:
                return line or None


class Control:
    """Does what lines say."""

    def __init__(self, node: TrialNode, clock: WallClock, note: Callable[..., None]) -> None:
        """``note(what, …)`` writes a line into the journal."""
        self._node, self._clock, self._note = node, clock, note
        self._decoder = msgspec.json.Decoder(Command)
        self._told: dict[bytes, None] = {}
        self._telling = threading.Lock()
        self._watches = False
        node.on_event(self._happened)

    def listen(self, lines: Lines) -> None:
        """Obey lines on a thread of its own until none is left."""
        threading.Thread(target=self._listen, args=(lines,), name="control", daemon=True).start()

    def _listen(self, lines: Lines) -> None:
        while (line := lines.next()) is not None:
            self.obey(line)

    def obey(self, line: bytes) -> None:
        """Carry out one line."""
        try:
            command: Command = self._decoder.decode(line)
        except msgspec.MsgspecError as error:
            self._note("failed", "control", f"{line[:80]!r}: {error}")
            return
        match command:
            case SetClock():
                self._clock.set(command.offset_ns, command.drift_ppb, command.since_ns)
            case SlowModels():
                self._node.slow_models(command.factor)
            case UnderstateLoad():
                self._node.understate_load(command.factor)
            case TellEntries():
                self._watches = True
                self._tell_entries()
            case SendRaw():
                self._note("sent", self._node.send_raw(command.frame))
            case _:
                assert_never(command)

    def _happened(self, event: Event) -> None:
        if self._watches and isinstance(event, EntryAccepted):
            self._tell_entries()

    def _tell_entries(self) -> None:
        with self._telling:
            held = [entry.data for entry in self._node.stored_entries()]
            fresh = [data for data in held if data not in self._told]
            self._told = dict.fromkeys(held)
        if fresh:
            self._note("entries", fresh)
