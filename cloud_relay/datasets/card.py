"""The card of a version: what a person reads before using the data, and the same for programs.

For people it is Markdown. For programs it is a Data Package (https://datapackage.org, version 2.0), whose one resource
is the exported file with its columns, and which has everything that is known of the version under ``meshnode``.
"""

import re
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from cloud_relay.datasets.making import question_text
from cloud_relay.datasets.names import VersionName
from cloud_relay.datasets.versions import DatasetVersion, Extent, NamedCounts
from cloud_relay.export.columns import EXPORTED, GEOMETRY, READING, Column
from protocols.base.limits import SECOND

MAX_ROWS: Final = 50
"""Rows of a table for people; the file for programs has the others."""
_LICENCE_NAME: Final = re.compile(r"[-A-Za-z0-9._]+")
_FIELD_TYPES: Final = {
    "text": "string", "texts": "array", "integer": "integer", "real": "number", "truth": "boolean",
    "time": "datetime", "bytes": "string", "point": "string",
}  # fmt: skip
_MEDIA_TYPES: Final = {
    "parquet": "application/vnd.apache.parquet", "csv": "text/csv", "arrow": "application/vnd.apache.arrow.file",
    "arrows": "application/vnd.apache.arrow.stream",
}  # fmt: skip


class DatasetFile(NamedTuple):
    """An exported file."""

    name: str
    form: str
    size_bytes: int
    sha256: str


def columns_of(form: str) -> tuple[Column, ...]:
    """The columns that a dataset has in a format."""
    every = (*EXPORTED, READING)
    return tuple(column for column in every if column.kind != "time") if form == "csv" else (*every, GEOMETRY)


def package_of(name: VersionName, version: DatasetVersion, file: DatasetFile) -> dict[str, Any]:
    """The descriptor of a Data Package."""
    fields = [
        {"name": column.name, "type": _FIELD_TYPES[column.kind], "description": column.description}
        | ({"unit": column.unit} if column.unit else {})
        | ({} if column.nullable else {"constraints": {"required": True}})
        for column in columns_of(file.form)
    ]
    resource = {
        "name": "records", "path": file.name, "format": file.form, "mediatype": _MEDIA_TYPES[file.form],
        "bytes": file.size_bytes, "hash": f"sha256:{file.sha256}", "schema": {"fields": fields},
    }  # fmt: skip
    package = {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
        "name": f"{name.name.lower()}-{name.number}",
        "id": version.digest,
        "title": f"{name}: {version.records} records",
        "created": shown_time(version.asked_utc_ns),
        "resources": [resource],
        "meshnode": msgspec.to_builtins(version) | {"dataset": name.name, "version": name.number},
    }
    if version.notes:
        package["description"] = version.notes
    if _LICENCE_NAME.fullmatch(version.licence):
        package["licenses"] = [{"name": version.licence}]
    return package


def card_of(name: VersionName, version: DatasetVersion, file: DatasetFile | None = None) -> str:
    """The card in Markdown, with the exported file if there is one."""
    return "\n".join(_lines(name, version, file)) + "\n"


def _lines(name: VersionName, version: DatasetVersion, file: DatasetFile | None) -> Iterator[str]:
    yield f"# {name}"
    if version.notes:
        yield from ("", *(_plain(line) for line in version.notes.splitlines()))
    yield from ("", "| | |", "|---|---|")
    for title, text in _facts(version):
        yield f"| {title} | {text} |"
    if file is not None:
        yield f"| file | {_code(file.name)}, {file.size_bytes} bytes, SHA-256 {file.sha256} |"
    yield from _tallied("Nodes", "node", version.origins)
    yield from _tallied("Rules", "rule", version.rules)
    yield from _keys(version)
    if version.lineage.named:
        yield from _tallied("Lineage", "derived by", version.lineage)
    yield from ("", "## Columns", "", "| column | unit | meaning |", "|---|---|---|")
    for column in columns_of("parquet" if file is None else file.form):
        yield f"| `{column.name}` | {column.unit} | {column.description} |"
    yield from (
        "", "## Check it", "",
        "The digest is about the records and not about a file of them.", "",
        f"- `cloud-relay dataset verify {name} FILE` compares a file with this version.",
        "- `cloud-relay dataset digest FILE` prints the digest of a file and needs no relay.",
        f"- `cloud-relay dataset verify {name}` says whether the relay still holds all of it.",
    )  # fmt: skip


def _facts(version: DatasetVersion) -> Iterator[tuple[str, str]]:
    yield "records", str(version.records)
    yield "digest", f"`{version.digest}`"
    yield "question", _code(question_text(version.question))
    yield "made", f"{shown_time(version.asked_utc_ns)}, by meshnode {_plain(version.software)}"
    yield "licence", _plain(version.licence) or "not said"
    if version.extent is None:
        return
    extent = version.extent
    yield "sensed", f"{shown_time(extent.first_utc_ns)} to {shown_time(extent.last_utc_ns)}"
    yield "stored", f"{shown_time(extent.received_first_utc_ns)} to {shown_time(extent.received_last_utc_ns)}"
    yield "place", _place(extent)
    quality = extent.quality
    yield "quality", f"{quality.min:g} to {quality.max:g}, {quality.mean:.3g} in the mean"


def _place(extent: Extent) -> str:
    crosses = ", across 180°" if extent.west_deg > extent.east_deg else ""
    return (
        f"{extent.south_deg:g}° to {extent.north_deg:g}° north, {extent.west_deg:g}° to {extent.east_deg:g}° east"
        f"{crosses} (WGS 84)"
    )


def _tallied(title: str, head: str, tally: NamedCounts) -> Iterator[str]:
    yield from ("", f"## {title}", "", f"| {head} | records |", "|---|---|")
    for name, count in list(tally.named.items())[:MAX_ROWS]:
        yield f"| {_code(name)} | {count} |"
    left = sum(list(tally.named.values())[MAX_ROWS:]) + tally.others
    if left:
        yield f"| others | {left} |"


def _keys(version: DatasetVersion) -> Iterator[str]:
    yield from ("", "## Keys", "", "| key | records | units | values |", "|---|---|---|---|")
    for key, shape in list(version.keys.items())[:MAX_ROWS]:
        units = ", ".join(_code(unit) for unit in shape.units)
        yield f"| {_code(key)} | {shape.records} | {units} | {', '.join(shape.kinds)} |"
    left = sum(shape.records for shape in list(version.keys.values())[MAX_ROWS:]) + version.other_keys
    if left:
        yield f"| others | {left} | | |"


def shown_time(utc_ns: int) -> str:
    """A time to the second, in UTC; of a year that no calendar has, its nanoseconds."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(utc_ns // SECOND))
    except (OverflowError, ValueError, OSError):
        return f"{utc_ns} ns"


def _plain(text: str) -> str:
    """Text of a person or node as text in Markdown: nothing in it becomes a table, a link or HTML."""
    visible = "".join(character if character.isprintable() else "�" for character in text)
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", visible)


def _code(text: str) -> str:
    """Text of a node as code in a cell of a table. A bar would end the cell, and a backtick the code."""
    visible = "".join(character if character.isprintable() else "�" for character in text)
    return f"`{visible.replace('`', 'ˋ').replace('|', '¦')}`"
