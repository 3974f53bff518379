"""``python -m benchmarks.pair_ingest``: what two relays on one PostgreSQL commit, against what their stores alone do.

Batches of 256 records with receipts are made before. *Alone*: two processes on one core, each with the relay's store
and eight threads (``--threads``) that hand it batches which are checked already. *Relays*: two relays on that core, and
200 nodes that upload the same batches over mutual TLS, from two processes on the other core. PostgreSQL is on the other
core in both. Wall time and the processor time of the two processes are both given, for other programs may run.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil
from msgspec import Raw
from msgspec.structs import replace

from benchmarks.postgresql import PostgresServer, programs
from cloud_relay.ingest.access import PublishAccess
from cloud_relay.ingest.batches import storable
from cloud_relay.ingest.receipts import ReceiptCheck
from cloud_relay.store.opening import open_store
from cloud_relay.store.places import store_place
from meshnode.identity import create_mesh, issue
from meshnode.identity.signatures import read_authority, read_signing_key, sha256
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address, CredentialFiles
from protocols.access import AccessTable
from protocols.base.ids import Incarnation, MeshName, NodeId, PeerIdentity, Role
from protocols.records.receipts.sealing import BatchSealer
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Record

MESH: Final = MeshName("ingest")
RECORDS: Final = 256
LOADERS: Final = 2
_ROOT: Final = Path(__file__).parents[1]
_RELAY: Final = """
[relay]
id = "relay-{number}"
host = "127.0.0.1"
port = 0
[store]
url = "{url}"
"""


def sealed_batches(folder: Path, node: str, count: int) -> Iterator[Batch]:
    """The batches of a node, in order."""
    credentials = issue(folder / "authority", Role.VEHICLE, node, folder / "nodes").credentials
    key = read_signing_key(credentials)
    sealer = BatchSealer(MESH, NodeId(node), Incarnation(1), lambda: key, sha256)
    for number in range(count):
        first = number * RECORDS + 1
        records = tuple(
            Record(sequence, "speed", Raw(encode_reading(_reading(node, sequence))))
            for sequence in range(first, first + RECORDS)
        )
        batch = Batch(MAJOR, MINOR, node, 1, first + RECORDS, records)
        yield replace(batch, receipt=sealer.sealed(records, b""), certificate=key.certificate)


def _reading(node: str, sequence: int) -> Reading:
    return Reading(
        f"veh/{node}/speed", node, sequence, 13.5 + sequence % 7, Position(48.7 + sequence % 100 / 1e3, 11.4, 2.0),
        EventTime(1_790_000_000_000_000_000 + sequence * 100_000_000, 1_000_000), Provenance("wheel", "m/s", 0.9),
    )  # fmt: skip


# --- the processes that are measured, and those that load them -------------------------------------------------------
def store_alone(folder: Path, url: str, nodes: list[str], count: int, threads: int) -> None:
    """Hand batches to a store, and say how long it took."""
    check = ReceiptCheck(read_authority(folder / "authority" / "authority.crt"))
    access = PublishAccess(AccessTable())
    ready = []
    for node in nodes:
        peer = PeerIdentity(MESH, Role.VEHICLE, NodeId(node))
        made = sealed_batches(folder, node, count)
        ready.append([storable(batch, peer, access, check.checked(batch, peer)) for batch in made])
    gc.freeze()
    store = open_store(store_place(url))

    def hand(mine: list[list[Any]]) -> None:
        for number in range(count):
            for batches in mine:
                answer = store.submit(batches[number]).result()
                assert isinstance(answer, Acknowledgement), answer

    _timed([threading.Thread(target=hand, args=(ready[number::threads],)) for number in range(threads)])
    store.close()


def load(folder: Path, ports: list[int], nodes: list[str], count: int) -> None:
    """Upload the batches of nodes, each over a connection of its own, and say how long it took."""
    with ExitStack() as closing:
        threads = []
        for number, node in enumerate(nodes):
            frames = [encode_frame(batch) for batch in sealed_batches(folder, node, count)]
            base = folder / "nodes" / node
            credentials = CredentialFiles(
                base.with_suffix(".crt"), base.with_suffix(".key"), folder / "nodes" / "authority.crt"
            )
            requester = open_requester(credentials, Address("127.0.0.1", ports[number % len(ports)]), MESH)
            closing.callback(requester.close)
            empty = encode_frame(Batch(MAJOR, MINOR, node, 1, 1))
            decode_untrusted_relay_frame(requester.request(empty, 60.0))

            def upload(requester: Any = requester, frames: list[bytes] = frames) -> None:
                for frame in frames:
                    while not isinstance(decode_untrusted_relay_frame(requester.request(frame, 60.0)), Acknowledgement):
                        time.sleep(0.05)

            threads.append(threading.Thread(target=upload))
        _timed(threads)


def _timed(threads: list[threading.Thread]) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    begin_s, begin_cpu_s = time.time(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        json.dumps({"begin_s": begin_s, "end_s": time.time(), "cpu_s": time.process_time() - begin_cpu_s}), flush=True
    )


# --- the measurement -------------------------------------------------------------------------------------------------
def measured(options: argparse.Namespace, *, relays: bool) -> dict[str, float]:
    """One run, with a server and a mesh of its own."""
    nodes = [f"veh-{number}" for number in range(options.nodes)]
    records = options.nodes * options.batches * RECORDS
    with tempfile.TemporaryDirectory(prefix="mesh-ingest-") as name, PostgresServer() as server, ExitStack() as closing:
        folder, url = Path(name), server.create("records")
        create_mesh(folder / "authority", MESH)
        server.pin({options.cores[1]})
        ours: list[subprocess.Popen[str]] = []
        ports: list[int] = []
        if relays:
            for number in (0, 1):
                home = folder / f"relay-{number}"
                issue(folder / "authority", Role.RELAY, f"relay-{number}", home)
                (home / "relay.toml").write_text(_RELAY.format(number=number, url=url))
                relay = _started(closing, ["cloud_relay", "run", "--log-level", "error", "--config",
                                           str(home / "relay.toml")], options.cores[0])  # fmt: skip
                assert relay.stdout is not None
                ports.append(int(relay.stdout.readline().rsplit(":", 1)[1]))
                ours.append(relay)
        parts = LOADERS if relays else 2
        arguments = ["--load", ",".join(map(str, ports))] if relays else ["--alone", url]
        command = ["benchmarks.pair_ingest", "--threads", str(options.threads), "--batches", str(options.batches),
                   "--folder", name, *arguments]  # fmt: skip
        core = options.cores[1 if relays else 0]
        workers = [_started(closing, [*command, "--of", ",".join(nodes[part::parts])], core) for part in range(parts)]
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != "ready":
                raise RuntimeError("a process did not get ready")
        before_s = sum(_cpu_s(process.pid) for process in ours)
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout is not None]
        used_s = (
            sum(_cpu_s(process.pid) for process in ours) - before_s if relays else sum(one["cpu_s"] for one in told)
        )
        wall_s = max(one["end_s"] for one in told) - min(one["begin_s"] for one in told)
        rows = int(server.sql("SELECT count(*) FROM meshnode.records WHERE receipt IS NOT NULL", "records"))
        assert rows == records, f"{rows} rows of {records}"
        size_bytes = int(server.sql("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind IN ('r')"
                                    " AND relnamespace = 'meshnode'::regnamespace", "records"))  # fmt: skip
    return {"records_per_s": records / wall_s, "processor_us": 1e6 * used_s / records, "bytes": size_bytes / records}


def _started(closing: ExitStack, arguments: list[str], core: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(process.pid, {core})
    closing.callback(process.wait)
    closing.callback(process.terminate)
    return process


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main() -> int:
    """Measure. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pair_ingest", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200, metavar="N", help="that upload (default: 200)")
    parser.add_argument("--batches", type=int, default=3, metavar="N", help="of each of them (default: 3)")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="that load a store alone (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of which the best is told (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one object")
    for hidden in ("--load", "--alone", "--folder", "--of"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of is not None:
        nodes = options.of.split(",")
        if options.alone is not None:
            store_alone(Path(options.folder), options.alone, nodes, options.batches, options.threads)
        else:
            load(Path(options.folder), [int(port) for port in options.load.split(",")], nodes, options.batches)
        return 0
    if programs() is None:
        print("PostgreSQL is not installed: .ci/servers installs it", file=sys.stderr)
        return 2
    cores = sorted(os.sched_getaffinity(0))
    options.cores = (cores[0], cores[-1])
    runs = {
        name: max(
            (measured(options, relays=relays) for _ in range(options.rounds)), key=lambda one: one["records_per_s"]
        )
        for name, relays in (("alone", False), ("relays", True))
    }
    share = runs["relays"]["records_per_s"] / runs["alone"]["records_per_s"]
    if options.json:
        print(json.dumps({**runs, "share": share}))
        return 0
    for name, run in runs.items():
        speed, used_us, size_bytes = run["records_per_s"], run["processor_us"], run["bytes"]
        print(
            f"{name:7} {speed:9,.0f} records/s, each {used_us:.1f} us of processor and {size_bytes:.0f} bytes on disk"
        )
    print(f"the relays commit {share:.2f} of what their stores alone do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
