"""``python -m benchmarks.relay_queries [--records N] [--packed] [--check] [--json]``: how fast a store answers.

It fills a store with records of 1,000 nodes, four keys each, over ten days, through the relay's own writer. Then it
asks what people ask, and tells the time from the question to the records, each question many times, with other values
each time. The bars are meant for ten million records. At last it exports all of them.

- ``…_p50_ms``, ``…_p99_ms``: of each question; ``day_in_box`` is all pages of it, ``page`` one page of a cursor that
  begins anywhere, ``cold_page`` the same with nothing kept in memory of the questions before, and ``following_page``
  each of the ten pages after one;
- ``…_p99_cpu_ms``: processor time of the same, which other programs on the computer hardly change. The bars are for
  this and for the median;
- ``largest_mib``: the most memory that Python had for one page of everything, with large values;
- ``questions_mib``: the same for all of these questions one after the other, with what is kept of packs in between;
- ``record_us``, ``record_bytes``: what the writer takes for a record, and the disk;
- ``packing_us``, ``packed_bytes``: with ``--packed``, the processor time that packing a record takes, and what the disk
  has of it then: blocks, tables and receipts. ``packing_slice_ms`` is the longest that packing held the writer up, and
  ``packing_slice_p99_ms`` what one slice of a hundred took longer than. All but the newest 5 % are packed;
- ``parquet_us``, ``csv_us``, ``parquet_bytes``, ``csv_bytes``: what ``cloud-relay export`` takes for a record, in
  processor time, and its size in the file.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from random import Random
from sqlite3 import Connection, OperationalError
from statistics import median
from typing import Any, Final, TypeVar

from benchmarks.figures import print_figures
from cloud_relay.query.readers.sqlite import SqliteReader, SqliteReaders
from cloud_relay.query.searching import RecordPage, find_page
from cloud_relay.query.selection import Box, Place, Query, place_of
from cloud_relay.store.contract import StorableBatch, StorableRecord
from cloud_relay.store.packs.packing import Job, Packer, PackingPolicy
from cloud_relay.store.rows import Cost, row_of
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import Store
from protocols.base.limits import SECOND
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading

_BARS_MS: Final = {
    "day_in_box": 1_000.0, "newest_of_each_key": 100.0, "page": 50.0, "cold_page": 50.0, "following_page": 50.0
}  # fmt: skip
BARS: Final = {f"{name}_{of}_ms": bar for name, bar in _BARS_MS.items() for of in ("p50", "p99_cpu")}
MEMORY_BAR_MIB: Final = 128.0
PACKED_BAR_BYTES: Final = 200.0
SLICE_BAR_MS: Final = 50.0
NODES: Final = 1_000
_KINDS: Final = ("speed", "acceleration", "temperature", "hazard")
_DAYS: Final = 10
_DAY_NS: Final = 86_400 * SECOND
_BASE_NS: Final = 1_700_000_000 * SECOND
_BATCH: Final = 256
_COLD: Final = frozenset({"cold_page"})
_FOLLOWING: Final = 10
_LIVE_SHARE: Final = 0.05
ResultT = TypeVar("ResultT")
PACK_TABLES: Final = ("packs", "pack_blocks", "pack_streams", "pack_ranges", "receipts")


def record_of(node: int, number: int, last: int, random: Random) -> StorableRecord:
    """A record of a node that drives around its quarter of a city of 40 by 40 km."""
    kind = _KINDS[number % len(_KINDS)]
    utc_ns = _BASE_NS + number * _DAYS * _DAY_NS // last + node * 1_000_000
    where = Position(
        48.5 + node // 40 * 0.014 + random.gauss(0, 0.01), 11.2 + node % 40 * 0.014 + random.gauss(0, 0.02), 3.0
    )
    reading = Reading(
        f"veh/veh-{node}/{kind}", f"veh-{node}", number, random.random() * 40, where,
        EventTime(utc_ns, 1_000_000), Provenance("wheel", "m/s", round(random.random(), 2)),
    )  # fmt: skip
    encoded = encode_reading(reading)
    return StorableRecord(number, f"{kind}-rule", row_of(reading, encoded, Cost()), encoded)


def fill(path: Path, records: int) -> float:
    """Fill a store with batches of all nodes in turn. Returns the microseconds that the writer took for each."""
    each, random, took_s = -(-records // NODES), Random(1), 0.0
    with closing(Store(path)) as store:
        for first in range(1, each + 1, _BATCH):
            numbers = range(first, min(first + _BATCH, each + 1))
            for start in range(0, NODES, 50):
                batches = [
                    StorableBatch(
                        f"veh-{node}", 1, numbers.stop,
                        tuple(record_of(node, number, each, random) for number in numbers), (), (),
                    )
                    for node in range(start, min(start + 50, NODES))
                ]  # fmt: skip
                began_s = time.perf_counter()
                for done in [store.submit(batch) for batch in batches]:
                    done.result()
                took_s += time.perf_counter() - began_s
    return took_s / (each * NODES) * 1e6


def packed(path: Path) -> dict[str, float]:
    """Pack all but the newest records."""
    with closing(open_for_reading(path)) as db:
        (records,) = db.execute("SELECT max(number) FROM records").fetchone()
    slices_s: list[float] = []

    def timed(job: Job) -> "Future[Any]":
        def slice_(db: Connection) -> None:
            began_s = time.perf_counter()
            job(db)
            slices_s.append(time.perf_counter() - began_s)

        return store.maintain(slice_)

    began_s = time.process_time()
    with closing(Store(path)) as store:
        packer = Packer(lambda: open_for_reading(path), timed, PackingPolicy(1e9, int(records * _LIVE_SHARE)))
        while packer.pack_once():
            pass
    took_s = time.process_time() - began_s
    if not packer.packed:
        return {}  # the store that was named is packed already
    with closing(open_for_reading(path)) as db:
        (left,) = db.execute("SELECT count(*) FROM records").fetchone()
        size_bytes = sum(table_bytes(db).get(name, 0) for name in PACK_TABLES)
    return {
        "packing_us": took_s / packer.packed * 1e6,
        "packing_slice_ms": max(slices_s) * 1e3,
        "packing_slice_p99_ms": _p99(slices_s) * 1e3,
        "packed_share": packer.packed / (packer.packed + left),
        "packed_bytes": size_bytes / packer.packed,
    }


def table_bytes(db: Connection) -> dict[str, int]:
    """The bytes of each table, its indexes among them."""
    try:
        rows = db.execute(
            "SELECT tbl_name, sum(pgsize) FROM dbstat JOIN sqlite_schema USING (name) GROUP BY tbl_name"
        ).fetchall()
    except OperationalError:  # SQLite was built without it
        return {}
    return dict(rows)


def all_pages(reader: SqliteReader, query: Query) -> int:
    """Ask for each page of a question. Returns how many records there were."""
    found = 0
    while True:
        page = reader.page(query)
        found += len(page.records)
        if page.cursor is None:
            return found
        query = replace(query, after=place_of(page.cursor))


def somewhere(random: Random) -> Place:
    """A place where a page begins."""
    return _BASE_NS + random.randrange(_DAYS * _DAY_NS), "veh-1", 1


def questions(random: Random) -> dict[str, Callable[[SqliteReader], Any]]:
    """What is asked, with values of its own each time."""
    day = _BASE_NS + random.randrange(_DAYS) * _DAY_NS
    south, west = 48.5 + random.random() * 0.3, 11.2 + random.random() * 0.5
    small, wide = Box(south, west, south + 0.01, west + 0.01), Box(south, west, south + 0.1, west + 0.15)
    after = somewhere(random)
    node = f"veh-{random.randrange(NODES)}"

    def page(**of: Any) -> Callable[[SqliteReader], Any]:
        return lambda reader: reader.page(Query(**({"limit": 100} | of)))

    return {
        "day_in_box": lambda reader: all_pages(
            reader, Query(box=small, since_utc_ns=day, until_utc_ns=day + _DAY_NS, limit=1_000)
        ),
        "day_in_wide_box_page": page(box=wide, since_utc_ns=day, until_utc_ns=day + _DAY_NS),
        "newest_of_each_key": lambda reader: reader.newest(Query(key="veh/*/speed", limit=1_000)),
        "page": page(after=after),
        "cold_page": page(after=after),
        "page_1000": page(after=after, limit=1_000),
        "page_of_key": page(key=f"veh/{node}/speed", after=after),
        "page_of_pattern": page(key="veh/*/hazard", after=after),
        "page_of_origin": page(origin=node, after=after),
        "page_of_rule": page(rule="hazard-rule", after=after),
        "page_of_quality": page(min_quality=0.99, after=after),
        "page_in_box": page(box=small),
        "nothing": page(key="rsu/**"),
        "nothing_in_box": page(box=Box(0.0, 0.0, 40.0, 180.0)),
    }


def asked(path: Path, rounds: int) -> dict[str, float]:
    """The times of all questions. Each has a reader of its own, as over HTTP."""
    random, times_ms, cpu_ms = Random(2), dict[str, list[float]](), dict[str, list[float]]()
    readers = SqliteReaders(path)

    def ask(name: str, question: Callable[[SqliteReader], ResultT], readers: SqliteReaders) -> ResultT:
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        with readers.reader() as reader:
            answer = question(reader)
        cpu_ms.setdefault(name, []).append((time.thread_time() - began_cpu_s) * 1e3)
        times_ms.setdefault(name, []).append((time.perf_counter() - began_s) * 1e3)
        return answer

    for _ in range(rounds):
        for name, question in questions(random).items():
            ask(name, question, SqliteReaders(path) if name in _COLD else readers)
        query = Query(limit=100, after=somewhere(random))
        for following in range(_FOLLOWING + 1):
            page: RecordPage = ask("following_page" if following else "page", methodcaller("page", query), readers)
            if page.cursor is None:
                break
            query = replace(query, after=place_of(page.cursor))
    figures: dict[str, float] = {}
    for name, times in times_ms.items():
        figures[f"{name}_p50_ms"] = median(times)
        figures[f"{name}_p99_ms"] = _p99(times)
        figures[f"{name}_p99_cpu_ms"] = _p99(cpu_ms[name])
    return figures


def _p99(times: list[float]) -> float:
    return sorted(times)[max(0, -(-99 * len(times) // 100) - 1)]


def largest_mib(folder: Path) -> float:
    """The memory of a page of everything, when each record is as large as one may be."""
    path = folder / "large.sqlite"
    with closing(Store(path)) as store:
        for number in range(1, 41):
            where, value = Position(48.7, 11.4, 1.0), [float(index) for index in range(16_000)]
            reading = Reading("veh/v/large", "v", number, value, where, EventTime(_BASE_NS, 0), Provenance("s", "1"))
            encoded = encode_reading(reading)
            record = StorableRecord(number, "r", row_of(reading, encoded, Cost()), encoded)
            store.submit(StorableBatch("v", 1, number + 1, (record,), (), ())).result()
    with closing(open_for_reading(path)) as db:
        tracemalloc.start()
        try:
            find_page(db, Query(limit=1_000))
            return tracemalloc.get_traced_memory()[1] / (1 << 20)
        finally:
            tracemalloc.stop()


def questions_mib(path: Path, rounds: int) -> float:
    """The memory of questions of each kind, one after the other."""
    random, readers = Random(3), SqliteReaders(path)
    tracemalloc.start()
    try:
        for _ in range(rounds):
            for question in questions(random).values():
                with readers.reader() as reader:
                    question(reader)
        return tracemalloc.get_traced_memory()[1] / (1 << 20)
    finally:
        tracemalloc.stop()


def exported(path: Path, folder: Path) -> dict[str, float]:
    """What an export of everything takes for each record, in both formats."""
    with closing(open_for_reading(path)) as db:
        (records,) = db.execute("SELECT total(records) FROM streams").fetchone()
    figures: dict[str, float] = {}
    for form in ("parquet", "csv"):
        file, before = folder / f"all.{form}", _children_s()
        command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "cloud_relay", "export"]
        subprocess.run([*command, "--store", str(path), str(file)], check=True, stdout=subprocess.DEVNULL)
        figures[f"{form}_us"] = (_children_s() - before) / records * 1e6
        figures[f"{form}_bytes"] = file.stat().st_size / records
    return figures


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure, print and judge. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.relay_queries", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--records", type=int, default=200_000, metavar="N", help="records of the store")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="times that each question is asked")
    parser.add_argument("--folder", type=Path, help="where the store is made (default: that of temporary files)")
    parser.add_argument("--store", type=Path, help="keep the store in this file, and use it if it is there")
    parser.add_argument("--packed", action="store_true", help="pack most of the records first")
    parser.add_argument("--without-export", action="store_true", help="leave the exports out, which take longest")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a bar is missed")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="mesh-relay-", dir=options.folder))
    try:
        path = options.store or scratch / "relay.sqlite"
        figures: dict[str, float] = {}
        if not path.exists():
            figures["record_us"] = fill(path, options.records)
            figures["record_bytes"] = path.stat().st_size / options.records
        if options.packed:
            figures |= packed(path)
        figures |= asked(path, options.rounds)
        figures |= {"largest_mib": largest_mib(scratch), "questions_mib": questions_mib(path, min(10, options.rounds))}
        if not options.without_export:
            figures |= exported(path, scratch)
    finally:
        shutil.rmtree(scratch)
    bars = BARS | dict.fromkeys(("largest_mib", "questions_mib"), MEMORY_BAR_MIB)
    bars |= {"packed_bytes": PACKED_BAR_BYTES, "packing_slice_p99_ms": SLICE_BAR_MS}
    missed = [name for name, figure in figures.items() if figure > bars.get(name, figure)]
    print_figures(figures, missed, as_json=options.json)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
