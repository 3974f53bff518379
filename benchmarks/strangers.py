"""Bad neighbours for ``benchmarks.hostile``, in one process: strangers without a certificate, and insiders with one.

Everything is bounded: ``Crowd`` gives the number of each kind, none tries again sooner than its pause, and all ends
with the run. Only loopback is dialled.
"""

import asyncio
import contextlib
import os
import random
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from meshnode.links.transport import CredentialFiles
from protocols.base.ids import SERVER_NAME, Lane
from protocols.wire.codec import encode_frame
from protocols.wire.membership import MAJOR, MINOR, Hello
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Reading, Readings, Want

HOST = "127.0.0.1"
SP_PUSH = b"\0SP\0\0\x50\0\0"
SP_PULL = b"\0SP\0\0\x51\0\0"
_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505)
_WHERE = Position(48.7657, 11.4237, 1.0)


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many there are of each kind, and how long each waits before it connects again."""

    half_open: int = 500
    half_open_pause_s: float = 1.0
    slow: int = 50
    never_reading: int = 5
    resetting: int = 5
    garbage_outside: int = 5
    garbage_inside: int = 5
    pause_s: float = 0.2

    @property
    def insiders(self) -> int:
        """How many certificates are needed."""
        return self.never_reading + self.resetting + self.garbage_inside


def torment(port: int, files: list[CredentialFiles], crowd: Crowd, orders: Connection) -> None:
    """Begin at once, end at the first order, and answer it with what was done. This is the main function of a
    process."""
    orders.send(None)
    orders.send(asyncio.run(_Torment(port, files, crowd).run(orders)))
    os._exit(0)


class _Torment:
    def __init__(self, port: int, files: list[CredentialFiles], crowd: Crowd) -> None:
        self._port, self._files, self._crowd = port, files, crowd
        self._done: Counter[str] = Counter()
        self._most_open = self._open = 0

    async def run(self, orders: Connection) -> dict[str, float]:
        crowd, files = self._crowd, list(self._files)
        begin_s, cpu_s = time.monotonic(), time.process_time()
        tasks = [self._again(crowd.half_open_pause_s, self._half_open) for _ in range(crowd.half_open)]
        tasks += [self._again(crowd.pause_s, self._slow) for _ in range(crowd.slow)]
        tasks += [self._again(crowd.pause_s, self._garbage_outside) for _ in range(crowd.garbage_outside)]
        for count, way in (
            (crowd.never_reading, self._never_reading),
            (crowd.resetting, self._resetting),
            (crowd.garbage_inside, self._garbage_inside),
        ):
            for _ in range(count):
                tasks.append(self._again(crowd.pause_s, _with(way, files.pop())))
        running = [asyncio.create_task(task) for task in tasks]
        with contextlib.suppress(EOFError, ConnectionError):
            await asyncio.to_thread(orders.recv)
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=5)
        return {
            **self._done,
            "most_open_at_once": self._most_open,
            "core_share": round((time.process_time() - cpu_s) / (time.monotonic() - begin_s), 3),
        }

    async def _again(self, pause_s: float, way: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(random.random() * pause_s)
        while True:
            with contextlib.suppress(OSError, EOFError, ssl.SSLError):
                await way()
            await asyncio.sleep(pause_s)

    # --- strangers -----------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def _plain(self, kind: str):  # type: ignore[no-untyped-def]
        reader, writer = await asyncio.open_connection(HOST, self._port)
        self._done[kind] += 1
        self._open += 1
        self._most_open = max(self._most_open, self._open)
        try:
            yield reader, writer
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _half_open(self) -> None:
        async with self._plain("half_open") as (reader, _):
            await reader.read()

    async def _slow(self) -> None:
        async with self._plain("one_byte_a_second") as (reader, writer):
            for byte in _CLIENT_HELLO:
                writer.write(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        if not await reader.read(100):
                            return

    async def _garbage_outside(self) -> None:
        async with self._plain("garbage_outside_tls") as (reader, writer):
            writer.write(random.randbytes(65_536))
            async with asyncio.timeout(10.0):
                await reader.read()

    # --- insiders ------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def _inside(self, kind: str, files: CredentialFiles, inbox_port: int = 9):  # type: ignore[no-untyped-def]
        context = tls_context(files, ssl.PROTOCOL_TLS_CLIENT)
        reader, writer = await asyncio.open_connection(
            HOST, self._port, ssl=context, server_hostname=SERVER_NAME, ssl_handshake_timeout=10
        )
        self._done[kind] += 1
        try:
            name = files.certificate.stem
            hello = Hello(MAJOR, MINOR, name, 1, inbox_port, Lane.REALTIME.value)
            writer.write(SP_PUSH + framed(encode_frame(hello)))
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _never_reading(self, files: CredentialFiles) -> None:
        """Ask for readings and never read them, and stay alive by publishing some."""
        name = files.certificate.stem
        held = []

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(SP_PULL)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            held.append(writer)

        server = await asyncio.start_server(serve, HOST, 0, ssl=tls_context(files, ssl.PROTOCOL_TLS_SERVER), limit=1)
        try:
            inbox_port = server.sockets[0].getsockname()[1]
            async with self._inside("never_reading", files, inbox_port) as (reader, writer):
                writer.write(framed(encode_frame(Interest(1, (Want("rsu/**"),)))))
                for number in range(1_000_000):
                    writer.write(framed(_reading(name, number)))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            if not await reader.read(100):
                                return
        finally:
            server.close()
            for writer in held:
                writer.transport.abort()

    async def _resetting(self, files: CredentialFiles) -> None:
        async with self._inside("reset_in_a_frame", files) as (_, writer):
            writer.write(struct.pack(">Q", 1_000_000) + bytes(100_000))
            await writer.drain()
            plain = writer.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _garbage_inside(self, files: CredentialFiles) -> None:
        async with self._inside("garbage_inside_tls", files) as (reader, writer):
            for _ in range(20):
                if writer.transport.is_closing():
                    return
                writer.write(framed(random.randbytes(10_000)))
                await writer.drain()
            async with asyncio.timeout(10.0):
                await reader.read()


def _with(way: Callable[[CredentialFiles], Awaitable[None]], files: CredentialFiles) -> Callable[[], Awaitable[None]]:
    return lambda: way(files)


def framed(frame: bytes) -> bytes:
    """A frame as it travels inside of TLS."""
    return struct.pack(">Q", len(frame)) + frame


def _reading(name: str, number: int) -> bytes:
    when, how = EventTime(time.time_ns(), 1_000_000), Provenance("benchmark", "1")
    return encode_frame(Readings((Reading(f"veh/{name}/bad", name, number + 1, 1.0, _WHERE, when, how),)))


def tls_context(files: CredentialFiles, side: int) -> ssl.SSLContext:
    """TLS of a node of the mesh; ``side`` is the protocol of a client or of a server."""
    context = ssl.SSLContext(side)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def insiders(crowd: Crowd) -> list[str]:
    """The names of the insiders, which need certificates."""
    return [f"veh-bad-{number}" for number in range(crowd.insiders)]
