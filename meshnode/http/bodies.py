"""Bodies of requests and answers: bounded one by one and together, in time, and unpacked or packed as HTTP asks for.

A compressed body counts as what it unpacks to, because 65 kB can become 64 MiB. It is unpacked piece by piece: each one
is counted before the next one is made, and a body that becomes too large ends there. Only gzip and deflate are spoken,
one at a time.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final, Literal

from starlette.requests import Request

from meshnode.http.guard import BadRequest

MAX_BODIES_BYTES: Final = 192 * 1024 * 1024
"""The most bytes of all request bodies held at once: 128 connections could otherwise take all memory."""
BODY_TIMEOUT_S: Final = 30.0
"""A body that takes longer to arrive is given up, because a stuck sender would hold its share for ever."""
PIECE_BYTES: Final = 1024 * 1024
"""What is unpacked at a time, on a thread: it takes a few milliseconds."""
_STEP_BYTES: Final = 256 * 1024
LEAST_PACKED_BYTES: Final = 1_024
"""Shorter answers are sent as they are: they fit into one packet anyway."""

Coding = Literal["gzip", "deflate"]
_ALIASES: Final[dict[str, Coding | None]] = {
    "": None, "identity": None, "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate",
}  # fmt: skip
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""zlib's names for what stands around deflated data."""


class Bodies:
    """Reads request bodies within the bounds."""

    def __init__(self) -> None:
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request, max_bytes: int) -> AsyncIterator[bytes]:
        """The body, unpacked, which counts as held until the ``with`` block ends.

        :raises BadRequest: 413 beyond ``max_bytes``, 415 for a compression other than gzip and deflate, 400 when it
            can't be unpacked, 408 when it doesn't arrive, 503 when too many bodies are held already.
        """
        coding = _coding(request.headers.get("content-encoding", ""))
        held = _Held(self, max_bytes)
        try:
            held.check(int(request.headers.get("content-length", "0")))  # h11 has checked that it is a number
            body = await held.arrived(request)
            if coding is not None:
                body = await held.unpacked(body, coding)
            yield body
        finally:
            held.release()


class _Held:
    """What one request holds of what all may."""

    def __init__(self, bodies: Bodies, max_bytes: int) -> None:
        self._bodies, self._max_bytes = bodies, max_bytes
        self._packed_bytes = self._size_bytes = 0

    async def arrived(self, request: Request) -> bytes:
        """The body as it was sent."""
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.stream():
                    self._take(part)
                    parts.append(part)
        except TimeoutError as error:
            raise BadRequest(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", 408) from error
        return b"".join(parts)

    async def unpacked(self, body: bytes, coding: Coding) -> bytes:
        """What it unpacks to. Both are held meanwhile."""
        self._packed_bytes, self._size_bytes = self._size_bytes, 0
        pieces, parts = unpacked_pieces(body, coding), list[bytes]()
        while piece := await asyncio.to_thread(next, pieces, b""):
            self._take(piece)
            parts.append(piece)
        self._bodies.held_bytes -= self._packed_bytes
        self._packed_bytes = 0
        return b"".join(parts)

    def _take(self, part: bytes) -> None:
        self.check(len(part))
        self._bodies.held_bytes += len(part)
        self._size_bytes += len(part)

    def check(self, more_bytes: int) -> None:
        """:raises BadRequest: with so many more bytes there would be too many."""
        if self._size_bytes + more_bytes > self._max_bytes:
            unpacked = " once it is unpacked" if self._packed_bytes else ""
            raise BadRequest(f"the body is larger than {self._max_bytes} bytes{unpacked}: send less at a time", 413)
        if self._bodies.held_bytes + more_bytes > MAX_BODIES_BYTES:
            raise BadRequest("too many bodies are held already: try again in a moment", 503)

    def release(self) -> None:
        """The request has ended."""
        self._bodies.held_bytes -= self._packed_bytes + self._size_bytes


def _coding(header: str) -> Coding | None:
    name = header.strip().lower()
    if name not in _ALIASES:
        raise BadRequest(
            f"Content-Encoding {header[:40]!r} is not supported: use gzip or deflate, or send the body as it is", 415
        )
    return _ALIASES[name]


def unpacked_pieces(body: bytes, coding: Coding) -> Iterator[bytes]:
    """What ``body`` unpacks to, in pieces of at most ``PIECE_BYTES``, none of them empty.

    ``deflate`` stands for data with zlib's head around it, as the standard has it. Some clients leave that head out.

    :raises BadRequest: it is not in that coding, is cut off, or something stands behind its end.
    """
    unpacker = zlib.decompressobj(_GZIP if coding == "gzip" else _ZLIB if _has_zlib_head(body) else _RAW)
    view, at = memoryview(body), 0
    while not unpacker.eof:
        waiting: bytes | memoryview = unpacker.unconsumed_tail
        if not waiting:  # in steps, because zlib copies what it leaves
            waiting = view[at : at + _STEP_BYTES]
            at += len(waiting)
        try:
            piece = unpacker.decompress(waiting, PIECE_BYTES)
        except zlib.error as error:
            raise BadRequest(f"the body can't be unpacked as Content-Encoding {coding} ({error})") from error
        if piece:
            yield piece
        elif not waiting and not unpacker.eof:
            raise BadRequest(f"the body is cut off: it ends in the middle of Content-Encoding {coding}")
    behind = len(unpacker.unused_data) + len(view) - at
    if behind:
        raise BadRequest(f"{behind} bytes stand behind the end of Content-Encoding {coding}: pack the body at once")


def _has_zlib_head(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0


# --- answers ---------------------------------------------------------------------------------------------------------
def coding_for(accept: str, is_numbers: bool) -> Coding | None:
    """How to pack an answer for a client with this ``Accept-Encoding``; None: not at all.

    ``is_numbers``: whether the answer is raw numbers. These are packed only for a client that names one coding and no
    other. Libraries name all that they know unasked, and packing numbers takes long and saves little.
    """
    wanted = dict(_preferences(accept))
    known = {name: weight for name, weight in wanted.items() if name in ("gzip", "deflate") and weight > 0}
    if not known or (is_numbers and len(wanted) > 1) or wanted.get("identity", 0.0) > max(known.values()):
        return None
    return "gzip" if known.get("gzip", 0.0) >= known.get("deflate", 0.0) else "deflate"


def _preferences(accept: str) -> Iterator[tuple[str, float]]:
    for part in accept.lower().split(","):
        name, _, weight = part.partition(";")
        try:
            yield name.strip(), float(weight.strip().removeprefix("q=")) if weight else 1.0
        except ValueError:
            continue  # what can't be read is not asked for


def packed(content: bytes, coding: Coding) -> bytes:
    """``content`` in that coding, packed fast rather than small."""
    packer = zlib.compressobj(1, wbits=_GZIP if coding == "gzip" else _ZLIB)
    return packer.compress(content) + packer.flush()
