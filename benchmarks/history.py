"""``python -m benchmarks.history [--check] [--json]``: how fast a full history answers, and what a reading costs.

It fills a store with readings of 65 nodes, four keys each, as fast as it takes them, until ``max_mib`` is reached. The
readings are a second's worth at a time; rare events are among them. Then it asks typical questions in turn, while no
readings come and while 1,000 a second do, and tells the time from the question to decoded readings.

- ``…_p50_ms``, ``…_p99_ms``: of each question, with ``busy_`` while readings come;
- ``consider_us``: processor time on the thread that publishes or receives a reading;
- ``write_us``: processor time on the thread that writes, for each reading, sealing and removing included.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from benchmarks.figures import print_figures
from meshnode.history.keeping import HistoryKeeper
from meshnode.history.query import LAST_UTC_NS, sought
from meshnode.history.segment import KeptReading
from meshnode.history.store import HistoryStore
from meshnode.troubles import Troubles
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND
from protocols.wire.parcels import encode_alone, encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading

BAR_MS: Final = 100.0
"""That of the issue that built it, for the 99th percentile of each question."""
_RATE_HZ: Final = 1_000
_NODES: Final = 65
_KINDS: Final = ("speed", "acceleration", "heading", "temperature")
_KEEP_NS: Final = 6 * 3_600 * SECOND


def reading_of(number: int, utc_ns: int, random: Random) -> Reading:
    """A reading of one of the nodes; one in 10,000 is a hazard."""
    node = number % _NODES
    kind = "hazard" if number % 10_007 == 0 else _KINDS[number // _NODES % len(_KINDS)]
    east = number / 1_000_000
    where = Position(48.7 + node * 0.002 + random.random() * 0.001, 11.3 + east * 0.2 + random.random() * 0.01, 3.0)
    return Reading(
        f"veh/veh-{node}/{kind}", f"veh-{node}", number + 1, random.random() * 40, where,
        EventTime(utc_ns, 10_000_000), Provenance("wheel", "m/s"),
    )  # fmt: skip


def kept(reading: Reading) -> KeptReading:
    """The reading as a segment takes it."""
    where = reading.where
    placed = min(reading.when.utc_ns, LAST_UTC_NS), where.latitude_deg, where.longitude_deg
    return KeptReading(reading.key, reading.origin, placed, encode_reading(reading))


def filled(folder: Path, max_mib: int, rows: int | None) -> tuple[HistoryStore, int]:
    """A store that was filled until its oldest readings went, and the number of the next reading."""
    store, random = HistoryStore(folder, max_mib << 20, _KEEP_NS), Random(1)
    begins_ns = time.time_ns() - 4_000 * SECOND  # some of them are older than an hour
    store.open(time.time_ns())
    number, most = 0, 0
    while store.rows >= most and (rows is None or number < rows):
        most = store.rows
        group = [reading_of(number + more, begins_ns + (number + more) * 1_000_000, random) for more in range(_RATE_HZ)]
        store.append([kept(reading) for reading in group], time.time_ns())
        number += len(group)
    return store, number


def questions(first_ns: int, last_ns: int) -> dict[str, dict[str, Any]]:
    """What people and programs ask."""
    middle_ns, minute_ns = (first_ns + last_ns) // 2, 60 * SECOND
    return {
        "newest": {},
        "newest_1000": {"limit": 1_000},
        "one_key": {"expression": "veh/veh-7/speed"},
        "one_key_in_the_middle": {"expression": "veh/veh-7/speed", "since": middle_ns, "until": middle_ns + minute_ns},
        "one_key_oldest": {"expression": "veh/veh-7/speed", "newest_first": False},
        "all_speeds": {"expression": "veh/*/speed"},
        "rare": {"expression": "veh/*/hazard"},
        "origin": {"origin": "veh-9", "since": middle_ns},
        "nothing": {"expression": "rsu/**"},
        "box": {"box": (48.72, 11.35, 48.73, 11.36)},
        "box_rare": {"expression": "veh/*/hazard", "box": (48.70, 11.30, 48.80, 11.40)},
        "box_empty": {"box": (48.7015, 11.3, 48.70151, 11.5)},
    }


def asked(store: HistoryStore, rounds: int, prefix: str) -> dict[str, float]:
    """The times of all questions."""
    page = store.find(sought(newest_first=False, limit=1, now=UtcNs(time.time_ns()))).decoded
    first_ns = page.readings[0].when.utc_ns
    last_ns = store.find(sought(limit=1, now=UtcNs(time.time_ns()))).decoded.readings[0].when.utc_ns
    times_ms: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, options in questions(first_ns, last_ns).items():
            began_s = time.perf_counter()
            _ = store.find(sought(**options, now=UtcNs(time.time_ns()))).decoded
            times_ms.setdefault(name, []).append((time.perf_counter() - began_s) * 1e3)
    figures = {}
    for name, times in times_ms.items():
        figures[f"{prefix}{name}_p50_ms"] = median(times)
        figures[f"{prefix}{name}_p99_ms"] = sorted(times)[max(0, -(-99 * len(times) // 100) - 1)]
    return figures


class Stream:
    """Readings that come while questions are asked, and what they cost."""

    def __init__(self, store: HistoryStore, number: int) -> None:
        self._keeper = HistoryKeeper(store, ["**"], 0, Troubles(), lambda key, reason: None)
        self._number, self._random = number, Random(2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self._considered_ns = self._count = 0

    def during(self, ask: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What ``ask`` gives while readings come, and their costs."""
        self._keeper.start()
        self._thread.start()
        try:
            figures = ask()
        finally:
            self._over.set()
            self._thread.join()
            self._keeper.close()
        return figures | {"consider_us": self._considered_ns / self._count / 1e3}

    def _publish(self) -> None:
        while not self._over.wait(0.02):
            group = [reading_of(self._number + more, time.time_ns(), self._random) for more in range(_RATE_HZ // 50)]
            self._number += len(group)
            whole = [(reading, encode_alone(reading)) for reading in group]
            began_ns = time.thread_time_ns()
            for reading, alone in whole:
                self._keeper.consider(reading, alone)
            self._considered_ns += time.thread_time_ns() - began_ns
            self._count += len(group)


def write_us(store: HistoryStore, number: int, count: int) -> float:
    """Processor time for each reading that is written into a full store."""
    random, took_ns = Random(3), 0
    for first in range(number, number + count, _RATE_HZ):
        group = [reading_of(first + more, time.time_ns(), random) for more in range(_RATE_HZ)]
        began_ns = time.thread_time_ns()
        store.append([kept(reading) for reading in group], time.time_ns())
        took_ns += time.thread_time_ns() - began_ns
    return took_ns / count / 1e3


def measured(folder: Path, max_mib: int, rows: int | None, rounds: int) -> dict[str, float]:
    """All figures."""
    store, number = filled(folder, max_mib, rows)
    figures = {"rows": float(store.rows), "mib": store.size_bytes / (1 << 20)}
    figures |= asked(store, rounds, "")
    figures["write_us"] = write_us(store, number, min(100_000, number))
    return figures | Stream(store, number + 100_000).during(lambda: asked(store, rounds, "busy_"))


def main() -> int:
    """Measure, print and judge. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.history", description=(__doc__ or "").splitlines()[0]
    )  # fmt: skip
    parser.add_argument("--mib", type=int, default=256, metavar="N", help="space of the store (default: 256)")
    parser.add_argument(
        "--rows", type=int, metavar="N", help="stop filling after N readings (default: when it is full)"
    )
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="times that each question is asked")
    parser.add_argument("--folder", type=Path, help="where the store is made (default: that of temporary files)")
    parser.add_argument("--check", action="store_true", help=f"end with status 1 when a p99 exceeds {BAR_MS:g} ms")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="mesh-history-", dir=options.folder))
    try:
        figures = measured(scratch / "history", options.mib, options.rows, options.rounds)
    finally:
        shutil.rmtree(scratch)
    missed = [name for name, figure in figures.items() if name.endswith("_p99_ms") and figure > BAR_MS]
    print_figures(figures, missed, as_json=options.json)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
