"""A result on disk: ``result.json`` for programs, CSV files for tables, ``report.html`` for people.

A file is there whole or not at all: each is written beside its place and then moved onto it. ``result.json`` comes
last.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from sims.errors import ResultError
from sims.results.result import RESULT_VERSION, Distribution, PartRuns, Result

RESULT_FILE = "result.json"
REPORT_FILE = "report.html"
MAX_RESULT_BYTES = 256 * 1024 * 1024
"""Twenty times what the bounds of the recorder allow. A wrong file is not read into memory."""

Table = tuple[Sequence[str], Iterable[Sequence[object]]]


def save(folder: Path, result: Result, page: str = "") -> None:
    """Write the result, its tables and ``page`` (the HTML report; empty: none) into ``folder``, which is made.

    :raises ResultError: when it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (head, rows) in tables(result).items():
            write_csv(folder / name, head, rows)
        if page:
            write(folder / REPORT_FILE, page.encode("utf-8"))
        write(folder / RESULT_FILE, encode(result))
    except OSError as error:
        raise ResultError(f"can't write a result into {folder}: {error.strerror or error}") from error


def encode(result: Result) -> bytes:
    """The bytes of ``result.json``."""
    return msgspec.json.encode(result)


def load(path: Path) -> Result:
    """Read a result from its file, or from the folder that holds the file.

    :raises ResultError: names the file and what is wrong with it.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_RESULT_BYTES:
            raise ResultError(f"{file} is larger than {MAX_RESULT_BYTES // 1024**2} MiB, so it is not a result")
        data = file.read_bytes()
    except OSError as error:
        raise ResultError(f"can't read {file}: {error.strerror or error}") from error
    try:
        result = msgspec.json.decode(data, type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{file} is not a result, or cut off: {error}") from error
    if result.version != RESULT_VERSION:
        raise ResultError(
            f"{file} has version {result.version}, this program reads {RESULT_VERSION}: run the scenario again"
        )
    return result


def tables(result: Result) -> dict[str, Table]:
    """The CSV files by name: titles and rows."""
    spreads = {
        "latency_histogram.csv": result.latency,
        "urgent_histogram.csv": result.urgent,
        "age_histogram.csv": result.age,
        "discovery_histogram.csv": result.discovery,
        "inference_histogram.csv": result.inference,
    }
    found: dict[str, Table] = {name: _histogram(spread) for name, spread in spreads.items()}
    distances = result.distances
    found["distances.csv"] = (
        ("from_m", "to_m", "wanted", "delivered", "in_range", "known"),
        [
            (index * distances.width_m, (index + 1) * distances.width_m, *row)
            for index, row in enumerate(
                zip(distances.wanted, distances.delivered, distances.in_range, distances.known, strict=True)
            )
        ],
    )
    found["happenings.csv"] = (
        ("at_s", "kind", "node", "other", "detail"),
        [(f"{h.at_s:.6f}", h.kind, h.node, h.other, h.detail) for h in result.happenings],
    )
    found["dissemination.csv"] = (
        ("author", "version", "made_s", "t50_s", "t90_s", "t100_s", "holders", "there"),
        [
            (d.author, d.version, d.made_s, *(_or_empty(time_s) for time_s in (d.t50_s, d.t90_s, d.t100_s)), d.holders,
             d.there)
            for d in result.dissemination
        ],
    )  # fmt: skip
    if result.parts:
        found["parts.csv"] = PartRuns.__struct_fields__, [msgspec.structs.astuple(runs) for runs in result.parts]
    found["load.csv"] = (
        ("at_s", "busy_share"),
        [(index * result.load_every_s, share if share >= 0 else "") for index, share in enumerate(result.load)],
    )
    return found


def write(file: Path, data: bytes) -> None:
    """Write all of a file or nothing, also when the process is killed in between."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(file)


def write_csv(file: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with a line of titles."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write(file, text.getvalue().encode("utf-8"))


def _histogram(spread: Distribution) -> Table:
    edges = [0.0, *spread.edges]
    rows = [(edges[index], edges[index + 1], count) for index, count in enumerate(spread.counts) if count]
    return (f"from_{spread.unit}", f"to_{spread.unit}", "count"), rows


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value
