"""``python -m benchmarks.aggregates [--records N] [--check] [--json]``: aggregates that are kept equal a recomputation.

Records of 1,000 nodes over ten days come to the relay's writer in random order, every tenth of them twice. Among their
values are integers that no float holds, NaN, infinities, truth values, texts, and maps that lack a field. Three
aggregates are kept from the beginning; a fourth is configured afterwards and filled in the background. Then each group
is computed anew from the records as they were made, in their own order, by plain Python: counts, extremes and
correctly rounded sums have to be equal, percentiles have to lie within the error that is told of the exact ones, and
what the store has kept has to be equal to one summary of all of them, byte by byte.

- ``groups``: how many there are, of all aggregates; ``wrong``: those that differ from the recomputation;
- ``stored``, ``repeated``: what the store counted;
- ``plain_us``: processor time of the writer for a record without aggregates, among as many as ``--plain``;
- ``kept_us``: the same with three; ``fill_us``: of the background for a record of the store;
- ``worst_error``: the largest relative error of a percentile; ``told_error``: the largest one that is told;
- ``group_bytes``: what a group takes in the store, its name and indexes included; ``record_bytes``: a record.
"""

import argparse
import json
import math
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.aggregates.measuring import Measured, Unmeasured
from cloud_relay.aggregates.summary import GroupSummary, percentile_name
from cloud_relay.store.aggregates.keeping import stored_definitions
from cloud_relay.store.contract import StorableBatch, StorableRecord
from cloud_relay.store.rows import Cost, row_of
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import MAX_GROUP_BATCHES, Store
from protocols.base.limits import MAX_BATCH_RECORDS, SECOND
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading

NODES: Final = 1_000
KINDS: Final = ("speed", "acceleration", "temperature", "hazard")
HOUR_NS: Final = 3_600 * SECOND
DAYS: Final = 10
BASE_NS: Final = 1_699_920_000 * SECOND
"""A midnight."""
PERCENTILES: Final = (1, 50, 90, 99, 99.9)
KEPT: Final = (
    AggregateDefinition("daily", "veh/**", 24 * HOUR_NS, by=("key", "rule"), percentiles=PERCENTILES),
    AggregateDefinition("map", "veh/*/speed", HOUR_NS, by=("rule",), cell_e7=1_000_000, percentiles=PERCENTILES),
    AggregateDefinition(
        "field", "veh/**", 6 * HOUR_NS, ("a", "0"), "hazard-rule", by=("origin",), percentiles=PERCENTILES
    ),
)
LATER: Final = AggregateDefinition("later", "**", HOUR_NS, by=("rule",), rule="hazard-rule", percentiles=PERCENTILES)
_ODD: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD: Final = 2**64 - 1
"""A number times an odd one, of which 64 bits are kept: cheap, and as good as random here."""


class Made(NamedTuple):
    """A record as it is made, by its number."""

    origin: str
    key: str
    rule: str
    value: Any
    latitude_deg: float
    longitude_deg: float
    utc_ns: int


def made(number: int, records: int) -> Made:
    """The record of a number, from 0 on."""
    node, kind = number % NODES, KINDS[number // NODES % len(KINDS)]
    first, second, third = (((number + at) * _ODD[at] & _WORD) / _WORD for at in range(3))
    odd = number % 97
    value: Any = 60 * first * second - 10 if kind != "hazard" else int(40 * first)
    if odd in (1, 2):
        value = {"a": [value, 1], "b": "x"}
    elif odd < 12:
        value = {
            3: 2**53 + 1 + number % 7 * 2, 4: math.nan, 5: math.inf, 6: -math.inf, 7: True, 8: "7", 9: {"b": 1},
            10: -0.0, 11: [1.5, number], 0: -(2**63) + number,
        }[odd]  # fmt: skip
    utc_ns = BASE_NS + number * DAYS * 24 * HOUR_NS // records + int(third * SECOND)
    return Made(
        f"veh-{node}", f"veh/veh-{node}/{kind}", f"{kind}-rule", value,
        48.5 + node // 40 * 0.014 + second * 0.05, 11.2 + node % 40 * 0.014 + third * 0.05, utc_ns,
    )  # fmt: skip


def record_of(number: int, records: int) -> StorableRecord:
    """The same as the store takes it."""
    record = made(number, records)
    where, when = Position(record.latitude_deg, record.longitude_deg, 3.0), EventTime(record.utc_ns, 1_000_000)
    sequence = number // NODES + 1
    reading = Reading(record.key, record.origin, sequence, record.value, where, when, Provenance("wheel", "m/s", 0.9))
    encoded = encode_reading(reading)
    return StorableRecord(sequence, record.rule, row_of(reading, encoded, Cost()), encoded)


def shuffled(records: int) -> Iterator[int]:
    """The numbers of all records in random order, every tenth twice."""
    repeated = -(-records // 10)
    for place in np.random.default_rng(7).permutation(records + repeated).astype(np.int32):
        yield int(place) if place < records else (int(place) - records) * 10


def fill(path: Path, records: int, numbers: Iterator[int], kept: tuple[AggregateDefinition, ...]) -> dict[str, float]:
    """Send records to a store. Returns what it counted, and the processor time that its writer took in seconds."""
    buffers: list[list[StorableRecord]] = [[] for _ in range(NODES)]
    ready: list[StorableBatch] = []
    progress = _Progress(records + records // 10)
    with closing(Store(path, aggregates=kept)) as store:
        _leave_out_indexes(path)

        def send(most: int) -> None:
            if len(ready) >= most:  # the writer works while nobody else needs the interpreter
                for done in [store.submit(batch) for batch in ready]:
                    done.result()
                ready.clear()

        def put(node: int) -> None:
            ready.append(StorableBatch(f"veh-{node}", 1, records // NODES + 2, tuple(buffers[node]), (), ()))
            buffers[node].clear()

        for number in numbers:
            progress.step()
            node = number % NODES
            buffers[node].append(record_of(number, records))
            if len(buffers[node]) >= MAX_BATCH_RECORDS:
                put(node)
                send(MAX_GROUP_BATCHES)
        for node, buffer in enumerate(buffers):
            if buffer:
                put(node)
                send(MAX_GROUP_BATCHES)
        send(0)
        return {**store.statistics(), "writer_s": _writer_s()}


def _leave_out_indexes(path: Path) -> None:
    """Take out the indexes that serve questions about records. In random order each record would write a page of each
    of them, 24 KB and more, of which nothing is about aggregates."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for index in ("records_in_streams", "records_in_time", "records_in_cells"):
            db.execute(f"DROP INDEX IF EXISTS {index}")


def fill_later(path: Path, kept: tuple[AggregateDefinition, ...]) -> float:
    """Configure one more aggregate and wait until it is filled. Returns the processor time of the writer in seconds."""
    with closing(Store(path, aggregates=kept)), closing(open_for_reading(path)) as db:
        while db.execute("SELECT count(*) FROM aggregates WHERE filled_to < fill_end").fetchone()[0]:
            time.sleep(0.05)
        return _writer_s()


class Recomputed:
    """One group, as plain Python computes it."""

    def __init__(self) -> None:
        self.floats, self.integers, self.odd = array("d"), list[int](), list[Unmeasured]()

    def take(self, value: Measured) -> None:
        """Add a value."""
        if isinstance(value, Unmeasured):
            self.odd.append(value)
        elif isinstance(value, int):
            self.integers.append(value)
        else:
            self.floats.append(value)

    def faults(self, summary: GroupSummary) -> tuple[list[str], float, float]:
        """What is wrong with a summary; the largest error of a percentile, and the one that is told."""
        anew = GroupSummary()
        anew.add([*self.floats, *self.integers, *self.odd])
        faults = [] if anew.encoded() == summary.encoded() else ["bytes"]
        told = summary.told(PERCENTILES)
        numbers: list[float | int] = sorted([*self.floats, *self.integers])
        expected: dict[str, Any] = {
            "records": len(numbers) + len(self.odd), "numbers": len(numbers), "nans": self.odd.count(Unmeasured.NAN),
            "infinities": self.odd.count(Unmeasured.INFINITE), "missing": self.odd.count(Unmeasured.MISSING),
            "others": self.odd.count(Unmeasured.OTHER),
        }  # fmt: skip
        worst = 0.0
        if numbers:
            whole = Fraction(math.fsum(self.floats)) if not self.integers else sum(map(Fraction, numbers), Fraction(0))
            expected |= {"min": numbers[0], "max": numbers[-1], "sum": float(whole)}
            for share in PERCENTILES:
                exact = float(numbers[max(1, math.ceil(Fraction(str(share)) * len(numbers) / 100)) - 1])
                error = abs(told[percentile_name(share)] - exact) / abs(exact) if exact else 0.0
                worst = max(worst, error)
            if worst > told["percentile_error"]:
                faults.append("percentiles")
        faults += [name for name, value in expected.items() if told[name] != value]
        return faults, worst, told["percentile_error"] or 0.0


Anew = dict[tuple[Any, ...], Recomputed]


def recomputed(definitions: tuple[AggregateDefinition, ...], records: int) -> dict[str, Anew]:
    """All groups of aggregates by their names, from the records as they were made. How records are put into groups
    shares no code with the relay."""
    found: dict[str, Anew] = {definition.name: {} for definition in definitions}
    about = [(definition, _about(definition), found[definition.name]) for definition in definitions]
    progress = _Progress(records)
    for number in range(records):
        progress.step()
        record = made(number, records)
        for definition, of, groups in about:
            if (name := of(record)) is not None:
                group = groups.get(name)
                if group is None:
                    group = groups[name] = Recomputed()
                group.take(_value(definition, record.value))
    return found


def compared(path: Path, records: int, definitions: tuple[AggregateDefinition, ...]) -> dict[str, float]:
    """Compare all groups of a store with a recomputation."""
    groups = wrong = 0
    worst = told = 0.0
    anew = recomputed(definitions, records)
    with closing(open_for_reading(path)) as db:
        names = {number: definition.name for number, definition in stored_definitions(db).items()}
        for number, *name, summary in db.execute(
            "SELECT aggregate, bucket_utc_ns, key, origin, rule, south_e7, west_e7, summary FROM aggregate_groups"
        ):
            groups += 1
            group = anew[names[number]].pop(tuple(name), None)
            faults, error, may = ["not there"], 0.0, 0.0
            if group is not None:
                faults, error, may = group.faults(GroupSummary.decode(summary))
            worst, told = max(worst, error), max(told, may)
            if faults:
                wrong += 1
                print(f"{names[number]} {name}: {', '.join(faults)}", file=sys.stderr)
    wrong += sum(map(len, anew.values()))
    return {"groups": groups, "wrong": wrong, "worst_error": worst, "told_error": told}


def _about(definition: AggregateDefinition) -> Callable[[Made], tuple[Any, ...] | None]:
    by, side, only_speed = definition.by, definition.cell_e7, definition.key == "veh/*/speed"

    def of(record: Made) -> tuple[Any, ...] | None:
        if definition.rule not in (None, record.rule) or (only_speed and not record.key.endswith("/speed")):
            return None
        south = west = 0
        if side is not None:
            south, west = (
                math.floor(Decimal(f"{degrees:.7f}") / (Decimal(side) / 10**7)) * side
                for degrees in (record.latitude_deg, record.longitude_deg)
            )
        return (
            record.utc_ns // definition.bucket_ns * definition.bucket_ns, record.key if "key" in by else "",
            record.origin if "origin" in by else "", record.rule if "rule" in by else "", south, west,
        )  # fmt: skip

    return of


def _value(definition: AggregateDefinition, value: Any) -> Measured:
    if definition.field:
        if not isinstance(value, dict) or "a" not in value:
            return Unmeasured.MISSING
        value = value["a"][0]
    if type(value) not in (int, float):
        return Unmeasured.OTHER
    if isinstance(value, float) and not math.isfinite(value):
        return Unmeasured.NAN if math.isnan(value) else Unmeasured.INFINITE
    if isinstance(value, int) and Fraction(float(value)) != value:
        return value
    return float(value) if value else 0.0


def _sizes(path: Path) -> dict[str, float]:
    with closing(open_for_reading(path)) as db:
        (records,) = db.execute("SELECT count(*) FROM records").fetchone()
        groups, size_bytes = db.execute("SELECT count(*), sum(length(summary)) FROM aggregate_groups").fetchone()
        with suppress(db.OperationalError):  # of an SQLite without these figures, names and indexes are left out
            (size_bytes,) = db.execute("SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'aggregate_groups%'").fetchone()
    return {
        "records": records,
        "group_bytes": size_bytes / max(1, groups),
        "record_bytes": path.stat().st_size / max(1, records),
    }


def _writer_s() -> float:
    """Processor time of the thread that writes the only store of this process."""
    thread = next(thread for thread in threading.enumerate() if thread.name == "store")
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


class _Progress:
    def __init__(self, total: int) -> None:
        self._total, self._count = total, 0
        self._shows = sys.stderr.isatty() or total >= 1_000_000

    def step(self) -> None:
        self._count += 1
        if self._shows and self._count % 500_000 == 0:
            print(f"{time.strftime('%H:%M:%S')} {self._count:,} of {self._total:,}", file=sys.stderr, flush=True)


def measured(folder: Path, store: Path | None, records: int, plain: int) -> dict[str, float]:
    """All figures."""
    path = store or folder / "relay.sqlite"
    figures: dict[str, float] = {}
    if plain:
        without = fill(folder / "plain.sqlite", plain, shuffled(plain), ())
        figures["plain_us"] = without["writer_s"] / (without["stored"] + without["repeated"]) * 1e6
    if not path.exists():
        began_s = time.perf_counter()
        counts = fill(path, records, shuffled(records), KEPT)
        taken = counts["stored"] + counts["repeated"]
        figures |= {"stored": counts["stored"], "repeated": counts["repeated"]}
        figures |= {"kept_us": counts["writer_s"] / taken * 1e6, "took_s": time.perf_counter() - began_s}
        print(json.dumps(figures), file=sys.stderr)
        figures["fill_us"] = fill_later(path, (*KEPT, LATER)) / records * 1e6
        print(json.dumps(figures), file=sys.stderr)
    return figures | _sizes(path) | compared(path, records, (*KEPT, LATER))


def main() -> int:
    """Measure, print and judge. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aggregates", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--records", type=int, default=200_000, metavar="N", help="records, of which a tenth come twice"
    )
    parser.add_argument("--plain", type=int, default=50_000, metavar="N", help="records without aggregates")
    parser.add_argument("--folder", type=Path, help="where the store is made (default: that of temporary files)")
    parser.add_argument("--store", type=Path, help="keep the store in this file, and use it if it is there")
    parser.add_argument("--check", action="store_true", help="end with status 1 when a group is wrong")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mesh-aggregates-", dir=options.folder))
    try:
        figures = measured(folder, options.store, options.records, options.plain)
    finally:
        shutil.rmtree(folder)
    is_right = figures["wrong"] == 0 and figures["records"] == options.records
    if options.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:16} {figure:16.4f}")
        print("every group is equal to the recomputation" if is_right else "WRONG")
    return 1 if options.check and not is_right else 0


if __name__ == "__main__":
    sys.exit(main())
