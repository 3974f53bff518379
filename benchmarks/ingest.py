"""``python -m benchmarks.ingest [--rounds N] [--check] [--json]``: how fast a relay takes records, against its store.

Batches are made and signed before: 256 records each, with receipts, of 200 nodes. Then, in turn:

- *store*: a process pinned to one core gives the batches, decoded before, to :meth:`Store.submit` from eight threads;
- *relay*: a whole relay pinned to the same core takes their bytes over 200 connections with mutual TLS, each of a node
  of its own, from two processes on the other cores. A node sends its next batch when the one before was acknowledged.

Each round has a new store. What is printed are the medians of all rounds:

- ``store_per_s``, ``relay_per_s``: records on disk for each second;
- ``store_us``, ``relay_us``: processor time of the process for each record, which other programs hardly change;
- ``ratio``, ``cpu_ratio``: the relay as a share of its store, by either. The bar, 0.6, is for both;
- ``record_bytes``, ``packed_bytes``: what the disk has of each record, with receipts, as rows and when packed.
"""

import argparse
import multiprocessing
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from ssl import PROTOCOL_TLS_CLIENT, SSLSocket
from statistics import median
from typing import Any, Final

import msgspec

from benchmarks.figures import print_figures
from benchmarks.relay_queries import PACK_TABLES, record_of, table_bytes
from benchmarks.relay_siege import SP_REQUEST
from benchmarks.strangers import HOST, framed, tls_context
from cloud_relay.ingest.access import PublishAccess
from cloud_relay.ingest.batches import decode_untrusted_batch, storable
from cloud_relay.ingest.receipts import ReceiptCheck
from cloud_relay.store.packs.packing import Packer, PackingPolicy
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import MAX_WAITING_BATCHES, Store
from meshnode.identity import create_mesh, issue
from meshnode.identity.signatures import read_authority, read_signing_key, sha256
from meshnode.links.transport import CredentialFiles
from protocols.access import AccessTable
from protocols.base.ids import SERVER_NAME, Incarnation, MeshName, NodeId, PeerIdentity, Role
from protocols.records.receipts.sealing import BatchSealer
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.records import Acknowledgement, Batch, Record

BARS: Final = {"ratio": 0.6, "cpu_ratio": 0.6}
PACKED_BAR_BYTES: Final = 200.0
NODES: Final = 200
LOAD_PROCESSES: Final = 2
STORE_THREADS: Final = 8
_AT_ONCE: Final = MAX_WAITING_BATCHES // STORE_THREADS
_RECORDS: Final = 256
_MESH: Final = MeshName("ingest")
_TIMEOUT_S: Final = 120.0
_RELAY: Final = """
[relay]
id = "relay-1"
host = "127.0.0.1"
port = 0
state_dir = {state!r}
[store]
pack_beyond = {beyond}
"""


def made_batches(folder: Path, nodes: int, batches: int) -> list[CredentialFiles]:
    """Make a mesh, and the signed batches of each node in a file of its own. Returns the credentials of the nodes."""
    create_mesh(folder / "authority", _MESH)
    issue(folder / "authority", Role.RELAY, "relay-1", folder)
    random, credentials = Random(1), []
    for node in range(nodes):
        name = NodeId(f"veh-{node}")
        files = issue(folder / "authority", Role.VEHICLE, name, folder / "nodes").credentials
        key = read_signing_key(files)
        sealer = BatchSealer(_MESH, name, Incarnation(1), lambda key=key: key, sha256)  # type: ignore[misc]
        frames = []
        for first in range(1, batches * _RECORDS + 1, _RECORDS):
            made = [record_of(node, number, batches * _RECORDS, random) for number in range(first, first + _RECORDS)]
            records = tuple(Record(one.sequence, one.rule, msgspec.Raw(one.encoded)) for one in made)
            receipt = sealer.sealed(records, b"")
            certificate = key.certificate if first == 1 else b""
            frames.append(encode_frame(Batch(
                MAJOR, MINOR, name, 1, first + _RECORDS, records, (), receipt, certificate,
            )))  # fmt: skip
        (folder / f"{name}.batches").write_bytes(msgspec.msgpack.encode(frames))
        credentials.append(files)
    return credentials


def _frames(folder: Path, node: int) -> list[bytes]:
    return msgspec.msgpack.decode((folder / f"veh-{node}.batches").read_bytes(), type=list[bytes])


# --- the store alone -------------------------------------------------------------------------------------------------
def store_alone(folder: Path, nodes: int, core: int, parent: Connection) -> None:
    """The main function of a process: sends seconds and processor seconds."""
    os.sched_setaffinity(0, {core})
    check, access = ReceiptCheck(read_authority(folder / "authority" / "authority.crt")), PublishAccess(AccessTable())
    queues = []
    for node in range(nodes):
        peer = PeerIdentity(_MESH, Role.VEHICLE, NodeId(f"veh-{node}"))
        batches = [decode_untrusted_batch(frame) for frame in _frames(folder, node)]
        queues.append([storable(batch, peer, access, check.checked(batch, peer)) for batch in batches])
    with closing(Store(folder / "alone.sqlite")) as store, ThreadPoolExecutor(STORE_THREADS) as threads:

        def upload(share: int) -> None:
            own = [batch for batches in zip(*queues[share::STORE_THREADS], strict=True) for batch in batches]
            for at in range(0, len(own), _AT_ONCE):  # together as many as may wait
                for done in [store.submit(batch) for batch in own[at : at + _AT_ONCE]]:
                    done.result()

        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        list(threads.map(upload, range(STORE_THREADS)))
        parent.send((time.perf_counter() - began_s, time.process_time() - began_cpu_s))


# --- the relay -------------------------------------------------------------------------------------------------------
def upload_all(folder: Path, port: int, nodes: list[tuple[int, CredentialFiles]], parent: Connection) -> None:
    """The main function of a process: connects all of its nodes, waits to be told, and uploads."""
    ready, go = threading.Barrier(len(nodes) + 1), threading.Event()
    failures: list[str] = []

    def upload(node: int, files: CredentialFiles) -> None:
        frames = _frames(folder, node)
        plain = socket.create_connection((HOST, port), _TIMEOUT_S)
        with tls_context(files, PROTOCOL_TLS_CLIENT).wrap_socket(plain, server_hostname=SERVER_NAME) as sock:
            sock.sendall(SP_REQUEST)
            _receive(sock, 8)
            ready.wait(_TIMEOUT_S)
            go.wait()
            for number, frame in enumerate(frames):
                sock.sendall(framed((number + 1 | 1 << 31).to_bytes(4) + frame))
                (length,) = struct.unpack(">Q", _receive(sock, 8))
                answer = decode_untrusted_relay_frame(_receive(sock, length)[4:])
                if not isinstance(answer, Acknowledgement) or len(answer.stored) != _RECORDS:
                    failures.append(str(answer)[:200])

    threads = [threading.Thread(target=upload, args=node) for node in nodes]
    for thread in threads:
        thread.start()
    ready.wait(_TIMEOUT_S)
    parent.send(None)
    parent.recv()
    go.set()
    for thread in threads:
        thread.join()
    parent.send(failures)


def _receive(sock: SSLSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (chunk := sock.recv(size - len(data))):
            raise ConnectionError("the relay hung up")
        data += chunk
    return bytes(data)


@contextmanager
def _relay(folder: Path, core: int, beyond: int) -> Iterator[tuple[int, int]]:
    shutil.rmtree(folder / "state", ignore_errors=True)
    config = folder / "relay.toml"
    config.write_text(_RELAY.format(state=str(folder / "state"), beyond=beyond))
    (folder / "authority.crt").write_bytes((folder / "authority" / "authority.crt").read_bytes())
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "cloud_relay", "run"]
    process = subprocess.Popen(
        [*command, "--config", str(config), "--log-level", "error"], stdout=subprocess.PIPE, text=True
    )
    try:
        os.sched_setaffinity(process.pid, {core})
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {core})
        yield int(line.rsplit(":", 1)[1]), process.pid
    finally:
        process.terminate()
        process.wait()


def relay_round(folder: Path, credentials: list[CredentialFiles], core: int) -> tuple[float, float]:
    """Seconds and processor seconds of a relay that takes all batches.

    :raises RuntimeError: a batch was not acknowledged whole.
    """
    spawn = multiprocessing.get_context("spawn")
    others = set(os.sched_getaffinity(0)) - {core}
    with _relay(folder, core, 2**40) as (port, process):
        ends = []
        for share in range(LOAD_PROCESSES):
            ours, theirs = spawn.Pipe()
            nodes = list(enumerate(credentials))[share::LOAD_PROCESSES]
            child = spawn.Process(target=upload_all, args=(folder, port, nodes, theirs))
            child.start()
            os.sched_setaffinity(child.pid or 0, others or {core})
            ends.append((ours, child))
        for end, _ in ends:
            _told(end)
        before, began_s = _cpu_s(process), time.perf_counter()
        for end, _ in ends:
            end.send(None)
        failures = [failure for end, _ in ends for failure in _told(end)]
        took_s, took_cpu_s = time.perf_counter() - began_s, _cpu_s(process) - before
        for _, child in ends:
            child.join()
    if failures:
        raise RuntimeError(f"{len(failures)} batches were not taken whole: {failures[0]}")
    return took_s, took_cpu_s


def store_round(folder: Path, nodes: int, core: int) -> tuple[float, float]:
    """Seconds and processor seconds of a store that takes all batches."""
    for file in folder.glob("alone.sqlite*"):
        file.unlink()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=store_alone, args=(folder, nodes, core, theirs))
    child.start()
    took: tuple[float, float] = _told(ours)
    child.join()
    return took


def _told(end: Connection) -> Any:
    if not end.poll(_TIMEOUT_S):
        raise TimeoutError(f"a process said nothing for {_TIMEOUT_S:g} s")
    return end.recv()


def _cpu_s(process_id: int) -> float:
    """Processor time of a process with all its threads, by its clock (``man clock_getcpuclockid``). What ``/proc`` has
    is in hundredths of a second, and a few batches take less than one."""
    return time.clock_gettime(~process_id << 3 | 2)


# --- sizes -----------------------------------------------------------------------------------------------------------
def sizes(path: Path, records: int) -> dict[str, float]:
    """Bytes for each record, before and after all of them were packed."""
    figures = {"record_bytes": path.stat().st_size / records}
    with closing(Store(path)) as store:
        packer = Packer(lambda: open_for_reading(path), store.maintain, PackingPolicy(0.0, 0, clock=lambda: 2**62))
        while packer.pack_once():
            pass
    with closing(open_for_reading(path)) as db:
        figures["packed_bytes"] = sum(table_bytes(db).get(name, 0) for name in PACK_TABLES) / records
    return figures


def measured(folder: Path, nodes: int, batches: int, rounds: int) -> dict[str, float]:
    """All figures."""
    credentials, core = made_batches(folder, nodes, batches), min(os.sched_getaffinity(0))
    records = nodes * batches * _RECORDS
    alone, whole = [], []
    for _ in range(rounds):
        alone.append(store_round(folder, nodes, core))
        whole.append(relay_round(folder, credentials, core))
    store_s, store_cpu_s = (median(times) for times in zip(*alone, strict=True))
    relay_s, relay_cpu_s = (median(times) for times in zip(*whole, strict=True))
    return {
        "store_per_s": records / store_s,
        "relay_per_s": records / relay_s,
        "store_us": store_cpu_s / records * 1e6,
        "relay_us": relay_cpu_s / records * 1e6,
        "ratio": store_s / relay_s,
        "cpu_ratio": store_cpu_s / relay_cpu_s,
        **sizes(folder / "alone.sqlite", records),
    }


def main() -> int:
    """Measure, print and judge. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of store and relay, in turn")
    parser.add_argument("--nodes", type=int, default=NODES, metavar="N", help="nodes, each with a connection")
    parser.add_argument("--batches", type=int, default=3, metavar="N", help="batches of 256 records of each node")
    parser.add_argument("--folder", type=Path, help="where stores are made (default: that of temporary files)")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a bar is missed")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="mesh-ingest-", dir=options.folder))
    try:
        figures = measured(scratch, options.nodes, options.batches, options.rounds)
    finally:
        shutil.rmtree(scratch)
    missed = [name for name, bar in BARS.items() if figures[name] < bar]
    missed += ["packed_bytes"] * (figures["packed_bytes"] > PACKED_BAR_BYTES)
    print_figures(figures, missed, as_json=options.json)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
