"""One insider against a real relay: how long an honest node waits for its acknowledgements, for each trick.

An honest node uploads one record ten times a second, and waits for each acknowledgement. Quiet and attacked windows
alternate, as in :mod:`benchmarks.siege`.
"""

import contextlib
import itertools
import random
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
from msgspec import Raw

from benchmarks.children import ChildFailed
from benchmarks.load import Cores, percentiles
from benchmarks.strangers import HOST, framed, tls_context
from meshnode.identity import create_mesh, issue
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address, CredentialFiles
from protocols.base import limits
from protocols.base.errors import TransportError
from protocols.base.ids import SERVER_NAME, MeshName
from protocols.wire.asking.frames import AskedBox, RecordsAsked
from protocols.wire.codec import decode_untrusted_relay_frame, encode, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Fate, Record

MAX_ACKNOWLEDGED_MS: Final = 2_000.0
"""A node sends a batch again when it has waited for ten seconds; what takes a second on a busy disk is no fault."""
MAX_RELAY_GROWTH_BYTES: Final = 128 * 1024 * 1024
"""Eight threads may each hold a batch, its rows, and the objects of one reading."""
SP_REQUEST: Final = b"\0SP\0\0\x30\0\0"
_MESH: Final = MeshName("hostile")
_HONEST, _INSIDER = "veh-0", "veh-bad-0"
_PAUSE_S: Final = 0.1
_MOST_OPEN: Final = 500
_ANSWER_S: Final = 10.0
"""As long as a node waits."""


@dataclass(slots=True)
class RelayWindows:
    """The windows of one kind, taken together."""

    waits_ms: list[float] = field(default_factory=list)
    unanswered: int = 0
    peak_bytes: int = 0
    others_share: list[float] = field(default_factory=list)


@dataclass(slots=True)
class RelayTrick:
    """What one trick did to a relay. Waits are those of the honest node for an acknowledgement."""

    name: str
    quiet_p50_ms: float
    quiet_p99_ms: float
    acknowledged: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    unanswered: int
    """Batches of the honest node that were refused or not answered in time."""
    growth_bytes: int
    others_share: float
    done: dict[str, int]

    def missed_bars(self) -> list[str]:
        """The promises that were not kept, one sentence each."""
        missed, others = [], f"other programs took {self.others_share:.0%} of the cores"
        if self.unanswered or not self.acknowledged:
            missed.append(f"relay, {self.name}: {self.unanswered} batches not acknowledged, {self.acknowledged} were")
        if self.max_ms > MAX_ACKNOWLEDGED_MS:
            missed.append(f"relay, {self.name}: an acknowledgement took {self.max_ms:.0f} ms ({others})")
        if self.growth_bytes > MAX_RELAY_GROWTH_BYTES:
            missed.append(f"relay, {self.name}: the relay grew by {self.growth_bytes / 2**20:.0f} MiB")
        return missed


def relay_table(tricks: list[RelayTrick]) -> str:
    """For people: the waits of the honest node in milliseconds."""
    head = "relay               p50 quiet  during   p99 quiet  during      max  unanswered  grew MiB  others"
    rows = [
        f"{trick.name:20}{trick.quiet_p50_ms:9.1f} {trick.p50_ms:7.1f} {trick.quiet_p99_ms:11.1f} "
        f"{trick.p99_ms:7.1f} {trick.max_ms:8.1f} {trick.unanswered:11} {trick.growth_bytes / 2**20:9.1f} "
        f"{trick.others_share:7.0%}"
        for trick in tricks
    ]
    return "\n".join((head, *rows))


# --- the tricks ------------------------------------------------------------------------------------------------------
def _reading(number: int, node: str, value: Any = 1.0) -> bytes:
    where, when = Position(48.7657, 11.4237, 1.0), EventTime(time.time_ns(), 1_000_000)
    return encode_reading(Reading(f"veh/{node}/a", node, number, value, where, when, Provenance("benchmark", "1")))


def _fates() -> Iterator[bytes]:
    """Fates that overlap, and as many as are allowed that do not, between ever more that were told before."""
    for number in itertools.count():
        first = number * 4 * limits.MAX_FATES_PER_BATCH + 1
        most = limits.MAX_FATES_PER_BATCH
        overlapping = tuple(Fate(first + n, first + 4 * most, "expired") for n in range(most))
        sparse = tuple(Fate(first + 2 * n, first + 2 * n, "expired") for n in range(most))
        across = tuple(Fate(first + 2 * n, first + 2 * n + 1, "evicted") for n in range(most))
        for fates in (overlapping, sparse, across):
            yield encode(Batch(MAJOR, MINOR, _INSIDER, 1, first + 8 * most, (), fates))


def _maps() -> Iterator[bytes]:
    """Batches whose readings consist of empty maps, of the largest size that is taken and of the largest of a link."""
    for size_bytes, records in itertools.cycle(((1, 1), (1, 8), (1, 256), (16, 64))):
        head = _reading(1, _INSIDER, "?")
        at = head.index(b"\xa1?")
        count = (size_bytes * limits.MAX_BATCH_BYTES - 1_000) // records - 200
        data = Raw(head[:at] + b"\xdd" + count.to_bytes(4) + b"\x80" * count + head[at + 2 :])
        yield encode(
            Batch(MAJOR, MINOR, _INSIDER, 1, records + 1, tuple(Record(n + 1, "r", data) for n in range(records)))
        )


def _records() -> Iterator[bytes]:
    """As many records as a batch takes."""
    for first in itertools.count(1, limits.MAX_BATCH_RECORDS):
        numbers = range(first, first + limits.MAX_BATCH_RECORDS)
        records = tuple(Record(number, "r", Raw(_reading(number, _INSIDER, "x" * 3_000))) for number in numbers)
        yield encode(Batch(MAJOR, MINOR, _INSIDER, 1, numbers[-1] + 1, records))


def _questions() -> Iterator[bytes]:
    """Questions for records that look at everything and find nothing, or take all."""
    nowhere = AskedBox(-60.0, -170.0, 40.0, 170.0)
    for newest, box in itertools.cycle(((False, nowhere), (True, nowhere), (False, None), (True, None))):
        yield encode(RecordsAsked("**", newest, 0, 0, box, limits.MAX_TOLD_RECORDS, ""))


class _Insider:
    """Connections of one identity to the relay, each on a thread of its own, until it is told to end."""

    def __init__(self, port: int, files: CredentialFiles) -> None:
        self._port, self._files = port, files
        self._stop = threading.Event()
        self._context = tls_context(files, ssl.PROTOCOL_TLS_CLIENT)
        self.done: Counter[str] = Counter()

    @contextmanager
    def playing(self, name: str) -> Iterator[None]:
        """Play a trick meanwhile."""
        self._stop.clear()
        ways: dict[str, list[Callable[[], None]]] = {
            "overlapping_fates": [partial(self._ask, _fates())] * 2,
            "frames_of_maps": [partial(self._ask, _maps())] * 2,
            "many_records": [partial(self._ask, _records())] * 2,
            "connections": [self._hold] * 4,
            "questions": [partial(self._ask, _questions())] * 3,
        }
        threads = [threading.Thread(target=self._again, args=(way,), daemon=True) for way in ways[name]]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(10)

    def _again(self, way: Callable[[], None]) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError, ValueError):  # a generator is used on two threads at once: try again
                way()
            self._stop.wait(0.02)

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((HOST, self._port), timeout=5)
        sock = self._context.wrap_socket(plain, server_hostname=SERVER_NAME)
        sock.settimeout(5)
        sock.sendall(SP_REQUEST)
        self.done["connections"] += 1
        return sock

    def _ask(self, frames: Iterator[bytes]) -> None:
        """Send one frame after the other, and wait for each answer."""
        with closing(self._connect()) as sock:
            _receive(sock, 8)
            for frame in frames:
                sock.sendall(framed((random.getrandbits(31) | 1 << 31).to_bytes(4) + frame))
                self.done["frames"] += 1
                (length,) = struct.unpack(">Q", _receive(sock, 8))
                _receive(sock, length)
                if self._stop.is_set():
                    return

    def _hold(self) -> None:
        """Open connections and keep them."""
        with contextlib.ExitStack() as stack:
            for _ in range(_MOST_OPEN // 4):
                stack.enter_context(closing(self._connect()))
                if self._stop.wait(0.005):
                    return
            self._stop.wait(1.0)


def _receive(sock: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (chunk := sock.recv(size - len(data))):
            raise ConnectionError("the relay hung up")
        data += chunk
    return data


RELAY_TRICKS: Final = ("overlapping_fates", "frames_of_maps", "many_records", "connections", "questions")


# --- the run ---------------------------------------------------------------------------------------------------------
@contextmanager
def _relay(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    (folder / "relay.toml").write_text('[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n')
    command = [sys.executable, "-m", "cloud_relay", "run", "--config", str(folder / "relay.toml")]
    process = subprocess.Popen([*command, "--log-level", "error"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
        if not line:
            raise ChildFailed("the relay did not start")
        yield int(line.rsplit(":", 1)[1]), psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def besiege_relay(folder: Path, seconds: float, rounds: int) -> list[RelayTrick]:
    """Play each trick once in each round. :raises ChildFailed: when the relay does not start."""
    create_mesh(folder / "authority", _MESH)
    issue(folder / "authority", "relay", "relay-1", folder)
    honest, bad = (
        issue(folder / "authority", "vehicle", node, folder / node).credentials for node in (_HONEST, _INSIDER)
    )
    quiet: dict[str, RelayWindows] = {name: RelayWindows() for name in RELAY_TRICKS}
    during: dict[str, RelayWindows] = {name: RelayWindows() for name in RELAY_TRICKS}
    done: dict[str, Counter[str]] = {name: Counter() for name in RELAY_TRICKS}
    numbers = itertools.count(1)
    with contextlib.ExitStack() as stack:
        port, process = stack.enter_context(_relay(folder))
        requester = stack.enter_context(closing(open_requester(honest, Address(HOST, port), _MESH)))
        look = partial(_window, requester, numbers, process, seconds)
        look(RelayWindows())  # the first exchange opens the connection
        first_bytes = process.memory_info().rss
        for _ in range(rounds):
            for name in RELAY_TRICKS:
                look(quiet[name])
                insider = _Insider(port, bad)
                with insider.playing(name):
                    look(during[name])
                done[name].update(insider.done)
    tricks = []
    for name in RELAY_TRICKS:
        waits, then = percentiles(during[name].waits_ms), percentiles(quiet[name].waits_ms)
        shares = during[name].others_share
        tricks.append(RelayTrick(
            name, then[0], then[1], len(during[name].waits_ms), *waits, during[name].unanswered,
            max(0, during[name].peak_bytes - first_bytes), round(sum(shares) / len(shares), 3), dict(done[name]),
        ))  # fmt: skip
    return tricks


def _window(
    requester: Any, numbers: Iterator[int], process: psutil.Process, seconds: float, into: RelayWindows
) -> None:
    """Upload one record after the other for this long."""
    cores, ends_s = Cores(), time.monotonic() + seconds
    while time.monotonic() < ends_s:
        number = next(numbers)
        record = Record(number, "r", Raw(_reading(number, _HONEST)))
        frame = encode_frame(Batch(MAJOR, MINOR, _HONEST, 1, number + 1, (record,)))
        began_s = time.monotonic()
        try:
            answer = decode_untrusted_relay_frame(requester.request(frame, _ANSWER_S))
            into.unanswered += answer != Acknowledgement((number,))
        except TransportError:
            into.unanswered += 1
        into.waits_ms.append(round(1e3 * (time.monotonic() - began_s), 2))
        into.peak_bytes = max(into.peak_bytes, process.memory_info().rss)
        time.sleep(_PAUSE_S)
    into.others_share.append(cores.others_share())
