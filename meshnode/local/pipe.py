"""NNG's wire protocol on a Unix socket: one connected PAIR0 pipe over ``ipc://`` that never blocks.

Each side sends 8 bytes ``00 'S' 'P' 00 <protocol:u16be> 00 00``, then messages as ``01 <length:u64be>`` and payload, as
``nng_ipc(7)`` does, so programs that use libnng can connect. It is implemented here because a round trip takes 129 µs
through libnng's threads and 12 µs on the bare socket (2 cores, 100 bytes, two processes).

Invariants: a length is checked before memory is taken; a frame is sent wholly or not at all, because the rest that a
socket did not take is sent before anything else. One thread receives; sending takes a lock of its own.
"""

import socket
import struct
from contextlib import suppress

from protocols.base.errors import RemoteProtocolError
from protocols.base.limits import MAX_FRAME_BYTES

_PAIR0 = 0x0010
_GREETING = struct.pack(">4sHH", b"\x00SP\x00", _PAIR0, 0)
_HEAD = struct.Struct(">BQ")
_MESSAGE = 1
_BUFFER_BYTES = 64 * 1024
_JOINED_BYTES = 16 * 1024
"""Up to this size, copying a frame behind its header is cheaper than a gathering write of the two."""


class Pipe:
    """One end of a connection. It sends its greeting at once, and expects that of the other end first."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over ``sock``, which is connected."""
        sock.setblocking(False)
        self._sock = sock
        self.descriptor = sock.fileno()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._greeted = False
        self._large: bytearray | None = None
        self._large_filled = 0
        self._rest: memoryview | None = None
        with suppress(OSError):  # gone already: what it said before can still be read
            sock.send(_GREETING)

    # --- sending ---------------------------------------------------------------------------------------------------
    @property
    def backed_up(self) -> bool:
        """Whether the rest of a frame still waits: call :meth:`flush` when the socket takes bytes again."""
        return self._rest is not None

    def try_send(self, frame: bytes) -> bool:
        """Send a frame if the socket takes its beginning now. False: it was not taken, or the other end is gone."""
        if self._rest is not None and not self.flush():
            return False
        head = _HEAD.pack(_MESSAGE, len(frame))
        try:
            if len(frame) <= _JOINED_BYTES:
                head += frame
                sent = self._sock.send(head)
                if sent < len(head):
                    self._rest = memoryview(head)[sent:]
            else:
                sent = self._sock.sendmsg((head, frame))
                if sent < len(head):
                    self._rest = memoryview(head + frame)[sent:]
                elif sent < len(head) + len(frame):
                    self._rest = memoryview(frame)[sent - len(head) :]
        except OSError:  # full; or broken, which the receiving side notices as well
            return False
        return True

    def flush(self) -> bool:
        """Send what is left of a frame; True when nothing is."""
        while self._rest is not None:
            try:
                sent = self._sock.send(self._rest)
            except OSError:
                return False
            self._rest = self._rest[sent:] if sent < len(self._rest) else None
        return True

    # --- receiving -------------------------------------------------------------------------------------------------
    def receive(self) -> list[bytes | bytearray] | None:
        """The frames that one read of the socket completes; None when the other end is gone.

        :raises RemoteProtocolError: for bytes of another protocol, or a frame above ``MAX_FRAME_BYTES``.
        """
        try:
            if self._large is not None:
                return self._receive_large(self._large)
            count = self._sock.recv_into(self._view[self._filled :])
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if count == 0:
            return None
        self._filled += count
        return self._parse()

    def _receive_large(self, large: bytearray) -> list[bytes | bytearray] | None:
        with memoryview(large) as view, view[self._large_filled :] as rest:
            count = self._sock.recv_into(rest)
        if count == 0:
            return None
        self._large_filled += count
        if self._large_filled < len(large):
            return []
        self._large = None
        return [large]

    def _parse(self) -> list[bytes | bytearray]:
        at, end = 0, self._filled
        frames: list[bytes | bytearray] = []
        if not self._greeted:
            if end < len(_GREETING):
                return frames
            if self._buffer[: len(_GREETING)] != _GREETING:
                raise RemoteProtocolError("the other end does not speak NNG's PAIR0 protocol: dial with a Pair0 socket")
            self._greeted, at = True, len(_GREETING)
        while end - at >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer, at)
            if kind != _MESSAGE or length > MAX_FRAME_BYTES:
                raise RemoteProtocolError(
                    f"a message of kind {kind} and {length} bytes: send kind 1 with at most {MAX_FRAME_BYTES}"
                )
            begin = at + _HEAD.size
            if end - begin >= length:
                at = begin + length
                frames.append(bytes(self._view[begin:at]))
            elif _HEAD.size + length > _BUFFER_BYTES:
                self._large = bytearray(length)  # memory pages are only taken as they are written
                self._large_filled = end - begin
                self._large[: self._large_filled] = self._view[begin:end]
                at = end
            else:
                break
        if at and at < end:
            self._buffer[: end - at] = self._buffer[at:end]
        self._filled = end - at
        return frames

    def shut_down(self) -> None:
        """End the connection from any thread. Both ends then read its end, and the receiving thread closes it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent."""
        with suppress(OSError):
            self._sock.close()
