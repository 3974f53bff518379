"""What one insider does to a node in ``benchmarks.hostile``: a neighbour with a valid certificate that does its worst.

``TRICKS`` names each way and the coroutine that goes about it. A trick has an identity of its own, so that what one did
to the allowances of its identity does not weaken the next. No pipe sends more than ``PIPE_BYTES_PER_S``: two of them
fill the radio of a vehicle, and what the insider itself takes of the cores does not hide what it costs the node.
"""

import asyncio
import contextlib
import itertools
import os
import random
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

from msgspec.structs import replace

from benchmarks.model import ELEMENTS, INPUT, NAME
from benchmarks.strangers import HOST, SP_PULL, SP_PUSH, framed, tls_context
from meshnode.gossip.notary import Notary
from meshnode.links.transport import CredentialFiles
from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.base.ids import SERVER_NAME, Lane, MeshName
from protocols.base.sequences import first_sequence
from protocols.wire.codec import decode_untrusted_node_frame, encode, encode_frame
from protocols.wire.entries import encode_entry, entry_statement
from protocols.wire.gossip import Carried, Entry, GossipDigest, GossipEntries, GossipHave, GossipPull
from protocols.wire.inference import InferAnswer, InferRequest, Offer, Offers
from protocols.wire.membership import MAJOR, MINOR, Heartbeat, Hello
from protocols.wire.parcels import encode_signed, reading_statement
from protocols.wire.readings import EventTime, Interest, Position, Provenance, Reading, Readings, Want
from protocols.wire.tensors import NamedTensor, Tensor

PIPE_BYTES_PER_S: Final = 5_000_000
TINY_BYTES_PER_S: Final = 1_000_000
KEYS: Final = 20_032
"""More than all streams that a node remembers."""
_CHUNK_BYTES: Final = 16 * 1024
_HEARTBEATS_AT_ONCE: Final = 200
"""In 250 ms: a few more would end the pipe."""
_MOST_OPEN: Final = 300
_AGAIN_S: Final = 0.02
_WHERE: Final = Position(48.7657, 11.4237, 1.0)
_HOW: Final = Provenance("benchmark", "1")
_LARGEST_HOW: Final = Provenance("x" * 200, "x" * 200, 1.0, "x" * 200, ("x" * 200,) * limits.MAX_LINEAGE)


@dataclass(frozen=True, slots=True)
class Target:
    """The node under attack, and what an insider knows of its mesh."""

    port: int
    mesh: MeshName
    model_digest: str
    honest: tuple[str, ...]
    """Its neighbours."""


class Insider:
    """One identity: pipes into the node, and an inbox for what the node sends."""

    def __init__(self, target: Target, files: CredentialFiles) -> None:
        self.target, self.files, self.name = target, files, files.certificate.stem
        self.incarnation = int(time.time())
        self.notary = Notary(files, target.mesh)
        self.done: Counter[str] = Counter()
        self.heard: list[bytes] = []
        """Fingerprints that the node announced last."""
        self.asked: asyncio.Queue[int] = asyncio.Queue()
        """Requests of the node for inference."""
        self._inbox_port = 9

    @contextlib.asynccontextmanager
    async def inbox(self) -> AsyncIterator[None]:
        """Take what the node sends, so that it meets this insider."""
        context = tls_context(self.files, ssl.PROTOCOL_TLS_SERVER)
        server = await asyncio.start_server(self._serve, HOST, 0, ssl=context)
        self._inbox_port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SP_PULL)
        with contextlib.suppress(OSError, EOFError, ssl.SSLError, asyncio.CancelledError):  # this task ends with it
            await reader.readexactly(8)
            while True:
                (length,) = struct.unpack(">Q", await reader.readexactly(8))
                frame = await reader.readexactly(length)
                self.done["frames received"] += 1
                if frame[1:2] in (b"\x08", b"\x0c"):
                    self._note(frame)
        writer.transport.abort()

    def _note(self, frame: bytes) -> None:
        with contextlib.suppress(RemoteProtocolError):
            match decode_untrusted_node_frame(frame):
                case InferRequest(request=request):
                    self.asked.put_nowait(request)
                case GossipHave(fingerprints=fingerprints):
                    self.heard = [fingerprints[at : at + 8] for at in range(0, len(fingerprints), 8)]

    @contextlib.asynccontextmanager
    async def pipe(
        self, lane: Lane = Lane.REALTIME
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A pipe into the node that has said Hello."""
        reader, writer = await asyncio.open_connection(
            HOST, self.target.port, ssl=tls_context(self.files, ssl.PROTOCOL_TLS_CLIENT), server_hostname=SERVER_NAME,
            ssl_handshake_timeout=10,
        )  # fmt: skip
        self.done["pipes"] += 1
        try:
            writer.write(SP_PUSH + framed(self.hello(lane)))
            yield reader, writer
        finally:
            writer.transport.abort()

    def hello(self, lane: Lane = Lane.REALTIME) -> bytes:
        """Its Hello with its incarnation of now."""
        return encode_frame(Hello(MAJOR, MINOR, self.name, self.incarnation, self._inbox_port, lane.value))

    async def send(
        self, frames: Iterable[bytes], bytes_per_s: float = PIPE_BYTES_PER_S, lane: Lane = Lane.REALTIME
    ) -> None:
        """Send frames on a pipe of its own, at this rate, until there are no more or the pipe is closed."""
        async with self.pipe(lane) as (_, writer):
            chunk, due_s = bytearray(), time.monotonic()
            for frame in frames:
                chunk += framed(frame)
                self.done["frames"] += 1
                if len(chunk) < _CHUNK_BYTES:
                    continue
                writer.write(bytes(chunk))
                await writer.drain()
                self.done["bytes"] += len(chunk)
                due_s = max(due_s + len(chunk) / bytes_per_s, time.monotonic() - 0.1)
                chunk.clear()
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))  # also lets the loop notice the end of the pipe
                if writer.transport.is_closing():
                    self.done["pipes closed by the node"] += 1
                    return
            writer.write(bytes(chunk))
            await writer.drain()

    async def again(self, way: Callable[[], Awaitable[None]], pause_s: float = _AGAIN_S) -> None:
        """Go about it over and over, whatever becomes of it."""
        while True:
            with contextlib.suppress(OSError, EOFError, ssl.SSLError):
                await way()
            await asyncio.sleep(pause_s)

    async def all(self, *ways: Callable[[], Awaitable[None]]) -> None:
        """Go about several things at once, over and over."""
        async with asyncio.TaskGroup() as group:
            for way in ways:
                group.create_task(self.again(way))


# --- frames ----------------------------------------------------------------------------------------------------------
def _reading(origin: str, key: str, sequence: int, hops: int = 0, how: Provenance = _HOW, value: Any = 1.0) -> Reading:
    return Reading(key, origin, sequence, value, _WHERE, EventTime(time.time_ns(), 1_000_000), how, hops=hops)


def _plain(*readings: Reading) -> bytes:
    return encode_frame(Readings(readings))


def _signed(insider: Insider, parcel: bytes, hops: int) -> bytes:
    """A parcel with the signature of the insider, whoever its readings are of."""
    certificate, signature = insider.notary.reading_seal().sign(reading_statement(parcel))
    return encode_signed(hops, certificate, signature, parcel)


def _hearsay(insider: Insider) -> Iterator[bytes]:
    """Readings in the name of direct neighbours, whose sequences are far ahead: plain, and signed by the insider."""
    for number in itertools.count(1):
        sequence, hops = first_sequence(int(time.time())) + (number << 20), number % (limits.MAX_HOPS + 1)
        victims = [(node, f"veh/{node}/hazard") for node in insider.target.honest]
        yield _plain(*(_reading(*victim, sequence, hops) for victim in (victims * 10)))
        yield _signed(insider, _plain(_reading(*victims[number % len(victims)], sequence, hops)), hops)


def _keys(insider: Insider) -> Iterator[bytes]:
    """New keys of its own and of origins that do not exist, some with as much context as is allowed."""
    most = limits.MAX_READINGS_PER_FRAME
    for sequence in itertools.count(1):
        for first in range(0, KEYS, most):
            how = _LARGEST_HOW if first // most % 8 == 0 else _HOW
            own = [
                _reading(insider.name, f"veh/{insider.name}/{n}", sequence, 0, how) for n in range(first, first + most)
            ]
            yield _plain(*own)
            for number in range(first, first + most, 8):
                invented = _reading(f"veh-x{number}", f"veh/veh-x{number}/hazard", sequence, limits.MAX_HOPS, how)
                yield _signed(insider, _plain(invented), limits.MAX_HOPS)


def _interests() -> Iterator[bytes]:
    """The most wants with the most wildcards, other ones each time, so that history is asked for again."""
    for version in itertools.count(1):
        yield encode_frame(
            Interest(version, tuple(
                Want(f"**/{version % 97}x{number}/*/*/**", hops=limits.MAX_HOPS) if number else Want("**", hops=2)
                for number in range(limits.MAX_SUBSCRIPTIONS)
            ))
        )  # fmt: skip


def _empty_maps(insider: Insider) -> Iterator[bytes]:
    """Its readings, plain and signed, whose values take 64 times as much memory as bytes on the wire."""
    parcels = []
    for count in (limits.MAX_ELEMENTS - 100, limits.LARGE_FRAME_BYTES - 1_000):
        head = _plain(_reading(insider.name, f"veh/{insider.name}/maps", 1, limits.MAX_HOPS, value="?"))
        parcels.append(head.replace(b"\xa1?", b"\xdd" + count.to_bytes(4) + b"\x80" * count, 1))
    frames = [*parcels, *(_signed(insider, parcel, limits.MAX_HOPS) for parcel in parcels)]
    return itertools.cycle(frames)


def _entries(insider: Insider) -> list[bytes]:
    """Frames of entries: its own by the dozen, re-encoded ones, ones with the twin of a signature, and forged ones."""
    frames = []
    for batch in range(64):
        carried = []
        for number in range(8):
            version = int(time.time()) * 1_000 + batch * 8 + number
            draft = Entry(insider.name, f"kind{number}", version, 86_400, random.randbytes(8), b"", b"")
            credential, signature = insider.notary.sign(entry_statement(draft))
            entry = replace(draft, credential=credential, signature=signature)
            data = encode_entry(entry)
            match (batch + number) % 4:
                case 1:
                    data = bytes([data[0] + 1]) + data[1:] + b"\x07"
                case 2:
                    data = encode(replace(entry, author=random.choice(insider.target.honest)))
                case 3:
                    data = encode_entry(replace(entry, signature=signature[:-1] + bytes([signature[-1] ^ 1])))
            carried.append(Carried(0, data))
        frames.append(encode_frame(GossipEntries(tuple(carried))))
    return frames


def _gossip(insider: Insider, entries: list[bytes]) -> Iterator[bytes]:
    for frame in itertools.cycle(entries):
        yield frame
        buckets = random.randbytes(8 * limits.ENTRY_BUCKETS)
        yield encode_frame(GossipDigest(random.getrandbits(64), 1_000, buckets))
        yield encode_frame(GossipHave((1 << limits.ENTRY_BUCKETS) - 1, random.randbytes(8 * 1_024)))
        known = (insider.heard[-limits.MAX_PULL :] * limits.MAX_PULL)[: limits.MAX_PULL]
        yield encode_frame(GossipPull(b"".join(known) or random.randbytes(8 * limits.MAX_PULL)))


def _requests(insider: Insider) -> Iterator[bytes]:
    """Requests with inputs that the model takes, and with the largest that a frame can carry."""
    sound = NamedTensor(INPUT, Tensor("f4", (ELEMENTS,), memoryview(bytes(4 * ELEMENTS))))
    most = (limits.MAX_FRAME_BYTES - 1_000) // 4
    largest = NamedTensor(INPUT, Tensor("f4", (most,), memoryview(bytes(4 * most))))
    for number in itertools.count(1):
        inputs = (largest,) if number % 64 == 0 else (sound,)
        yield encode_frame(InferRequest(number, NAME, insider.target.model_digest, 10_000_000, inputs))


# --- the tricks ------------------------------------------------------------------------------------------------------
async def tiny_frames(insider: Insider) -> None:
    """Frames of two bytes and of no known type, on two pipes."""
    way = partial(insider.send, itertools.repeat(b"\x91\x3f"), TINY_BYTES_PER_S)
    await insider.all(way, way)


async def hearsay(insider: Insider) -> None:
    """Readings of direct neighbours with sequences that are far ahead of theirs."""
    frames = _hearsay(insider)
    await insider.all(lambda: insider.send(frames), lambda: insider.send(frames))


async def invented_keys(insider: Insider) -> None:
    """More keys than a node remembers, of its own and of invented origins."""
    frames = _keys(insider)
    await insider.all(lambda: insider.send(frames), lambda: insider.send(frames))


async def interests(insider: Insider) -> None:
    """The most and worst wants over and over, beside new keys that each want has to be matched with."""
    keys, wants = _keys(insider), _interests()
    await insider.all(lambda: insider.send(keys), lambda: insider.send(wants, TINY_BYTES_PER_S))


async def accusations(insider: Insider) -> None:
    """Heartbeats that suspect all others and want an answer each, as many as a pipe stands."""
    suspects = insider.target.honest[: limits.MAX_SUSPECTS_PER_HEARTBEAT]

    async def accuse() -> None:
        async with insider.pipe() as (_, writer):
            for round_ in itertools.count():
                numbers = range(round_ * _HEARTBEATS_AT_ONCE + 1, (round_ + 1) * _HEARTBEATS_AT_ONCE + 1)
                beats = [Heartbeat(n, time.monotonic_ns(), 0, 0, 0, suspects, True) for n in numbers]
                writer.write(b"".join(framed(encode_frame(beat)) for beat in beats))
                await writer.drain()
                insider.done["frames"] += len(beats)
                await asyncio.sleep(0.25)
                if writer.transport.is_closing():
                    return

    await insider.all(accuse)


async def false_offers(insider: Insider) -> None:
    """The digest of the node's own model at a microsecond, and then wrong answers, complaints or silence."""
    nothing = float("nan")
    wrong = NamedTensor("y", Tensor("f8", (3,), memoryview(struct.pack("<3d", nothing, nothing, nothing))))
    lies: Iterator[Callable[[int], InferAnswer | None]] = itertools.cycle((
        lambda request: InferAnswer(request, "done"),
        lambda request: InferAnswer(request, "done", (wrong,)),
        lambda request: InferAnswer(request, "invalid", detail="your inputs are wrong"),
        lambda request: None,
    ))  # fmt: skip
    versions = itertools.count(1)

    async def lie() -> None:
        async with insider.pipe() as (_, writer):
            while not writer.transport.is_closing():
                offer = Offer(NAME, insider.target.model_digest, 1)
                writer.write(framed(encode_frame(Offers(next(versions), (offer,)))))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        while True:
                            answer = next(lies)(await insider.asked.get())
                            insider.done["requests answered falsely"] += 1
                            if answer is not None:
                                writer.write(framed(encode_frame(answer)))

    await insider.all(lie)


async def requests(insider: Insider) -> None:
    """Requests for inference with the largest inputs, on both lanes."""
    frames = _requests(insider)
    await insider.all(
        lambda: insider.send(frames, 4 * PIPE_BYTES_PER_S, Lane.BULK),
        lambda: insider.send(frames, 4 * PIPE_BYTES_PER_S),
    )


async def gossip(insider: Insider) -> None:
    """Entries that are re-encoded, forged or too many, digests that never agree, and pulls."""
    entries = _entries(insider)
    frames = _gossip(insider, entries)
    await insider.all(lambda: insider.send(frames), lambda: insider.send(frames, TINY_BYTES_PER_S))


async def empty_maps(insider: Insider) -> None:
    """Values that are small on the wire and large in memory."""
    frames = _empty_maps(insider)
    await insider.all(lambda: insider.send(frames), lambda: insider.send(frames))


async def malformed(insider: Insider) -> None:
    """Many Hellos with growing incarnations, then a malformed frame, and again."""

    async def storm() -> None:
        hellos = []
        for _ in range(50):
            insider.incarnation += 1
            hellos.append(insider.hello())
        await insider.send((*hellos, b"\xc1"))

    await insider.all(*[storm] * 4)


async def pipes(insider: Insider) -> None:
    """As many pipes as the node takes, which stay open."""
    places = asyncio.Semaphore(_MOST_OPEN)

    async def hold() -> None:
        async with places, insider.pipe() as (reader, _):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await reader.read()

    await insider.all(*[hold] * 16)


TRICKS: Final[tuple[Callable[[Insider], Awaitable[None]], ...]] = (
    tiny_frames, hearsay, invented_keys, interests, accusations, false_offers, requests, gossip, empty_maps, malformed,
    pipes,
)  # fmt: skip
NAMES: Final = tuple(trick.__name__ for trick in TRICKS)


def insider_name(trick: str) -> str:
    """The node that plays a trick."""
    return f"veh-bad-{NAMES.index(trick)}"


def attack(target: Target, files: dict[str, CredentialFiles], orders: Connection) -> None:
    """Play the trick that each order names until the next one, which is None, and answer that with what was done. This
    is the main function of a process."""
    with contextlib.suppress(OSError):
        os.nice(10)  # an insider has a computer of its own; here it must not take the cores of those it attacks
    asyncio.run(_attack(target, files, orders))
    os._exit(0)


async def _attack(target: Target, files: dict[str, CredentialFiles], orders: Connection) -> None:
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            trick = await asyncio.to_thread(orders.recv)
            insider = Insider(target, files[trick])
            cpu_s = time.process_time()
            async with insider.inbox():
                playing = asyncio.create_task(_play(TRICKS[NAMES.index(trick)], insider))
                try:
                    await asyncio.to_thread(orders.recv)
                finally:
                    playing.cancel()
                    await asyncio.wait((playing,), timeout=5)
            insider.done["processor_ms"] = round(1e3 * (time.process_time() - cpu_s))
            orders.send(dict(insider.done))


async def _play(trick: Callable[[Insider], Awaitable[None]], insider: Insider) -> None:
    await trick(insider)
