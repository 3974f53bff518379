"""``cloud-relay aggregates``: what the relay keeps beside the records, on the screen and as a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import click
import msgspec
from rich.filesize import decimal

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.config import load_config
from cloud_relay.export.groups import GroupCsv, GroupParquet
from cloud_relay.export.whole_file import whole_file
from cloud_relay.query.kept import (
    KEPT_FILTERS,
    GroupSource,
    KeptQuery,
    every_kept_page,
    group_form,
    kept_aggregates,
    untrusted_kept,
)
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.store.places import store_place
from protocols.base.errors import ConfigError, LocalProtocolError
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND

_CONFIG = click.option("--config", "config_path", type=click.Path(path_type=Path), default="relay.toml",
                       show_default=True, help="The relay's configuration.")  # fmt: skip
_STORE = click.option("--store", metavar="PATH|URL",
                      help="Path or URL of the store; no configuration is read then.")  # fmt: skip
_FORMATS: Final = ("parquet", "csv")
_HIDDEN: Final = frozenset(("aggregate", "bucket_ns", "cell_deg", "sum", "percentile_error", "change"))
"""Columns that a table on the screen leaves out."""


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in reversed([*KEPT_FILTERS.items()]):
        command = click.option(f"--{name}", metavar="TEXT", help=text)(command)
    return command


@click.group()
def aggregates() -> None:
    """Counts, means, extremes and percentiles that the relay keeps ([[aggregate]])."""


@aggregates.command(name="list")
@_CONFIG
@_STORE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_aggregates(config_path: Path, store: str | None, as_json: bool) -> None:
    """Show what is kept, how far it is filled, and what its allowance did not let in."""
    with _opened(config_path, store) as source:
        found = kept_aggregates(source)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"aggregates": found})).decode())
        return
    for one in found:
        since = "" if not one["whole_since_utc_ns"] else f", since {_time(one['whole_since_utc_ns'])}"
        by = ", ".join((*one["by"], *([] if one["cell_deg"] is None else [f"cell of {one['cell_deg']:g} degrees"])))
        click.echo(
            f"{one['name']}: {one['groups']} of {one['max_groups']} groups{since}, {100 * one['filled']:.0f} % filled; "
            f"{one['key']} by {by or 'nothing'} and {one['bucket_ns'] / SECOND:g} s"
        )
        for count, why in (
            (one["records_let_go"], "are older than what is kept"),
            (one["records_beyond"], f"were beyond its groups, the last one of {_printable(one['beyond'])}"),
            (one["records_ahead"], "told a time more than a day ahead"),
        ):
            if count:
                click.echo(f"  {count} records {why}")


@aggregates.command()
@_CONFIG
@_STORE
@click.argument("name")
@_filters
@click.option("--order", type=click.Choice(["newest", "oldest"]), default="newest", show_default=True,
              help="Which bucket comes first.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 10_000_000), default=100, show_default=True,
              help="Show at most this many groups.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def show(
    config_path: Path, store: str | None, name: str, limit: int, form: str, **given: str | None
) -> None:  # fmt: skip
    """Show the groups of the aggregate NAME; the relay may be running."""
    query = _query(name, given, limit)
    with _opened(config_path, store) as source:
        definition, rows = _groups(source, query)
        if form == "csv":
            _write(GroupCsv(sys.stdout.buffer, definition), rows)
        elif form == "json":
            _print_json(rows)
        else:
            _print_table(list(rows))


@aggregates.command()
@_CONFIG
@_STORE
@_filters
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Default: what the ending of FILE says.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def export(
    config_path: Path, store: str | None, form: str | None, overwrite: bool, name: str, file: Path,
    **given: str | None,
) -> None:  # fmt: skip
    """Write the groups of the aggregate NAME into FILE, oldest first; the relay may be running.

    FILE appears when it is whole. An export that is interrupted leaves nothing.
    """
    form = form or file.suffix.removeprefix(".").lower()
    if form not in _FORMATS:
        raise LocalProtocolError(f"{file.name!r} does not say in which format: add --format parquet or --format csv")
    query = _query(name, given | {"order": "oldest"}, 2**63)
    with _opened(config_path, store) as source, whole_file(file, overwrite=overwrite) as out:
        definition, rows = _groups(source, query)
        asked = {key: text for key, text in given.items() if text is not None}
        about = {"form": 1, "query": asked | {"name": name}, "made_utc_s": int(time.time())}
        count = _write(_writer(form, out, definition, about), rows)
        size_bytes = out.tell()
    click.echo(f"{count} groups, {decimal(size_bytes)} in {file}")


@contextmanager
def _opened(config_path: Path, store: str | None) -> Iterator[GroupSource]:
    """The store of a command, whose errors are told with the way out."""
    with open_reader(load_config(config_path).store if store is None else store_place(store)) as reader:
        yield reader.kept()


def _query(name: str, given: dict[str, str | None], limit: int) -> KeptQuery:
    texts = {key: text for key, text in given.items() if text is not None}
    query = untrusted_kept(name, texts, UtcNs(time.time_ns()))
    return replace(query, groups=replace(query.groups, limit=limit))


def _groups(source: GroupSource, query: KeptQuery) -> tuple[AggregateDefinition, Iterator[dict[str, Any]]]:
    """The definition and the rows of a question. The first page is looked for at once, so a wrong question is told
    before anything is written."""
    pages = every_kept_page(source, query)
    first = next(pages)

    def rows() -> Iterator[dict[str, Any]]:
        for group in first.groups:
            yield group_form(first.definition, group)
        for page in pages:
            for group in page.groups:
                yield group_form(page.definition, group)

    return first.definition, rows()


def _writer(
    form: str, out: IO[bytes], definition: AggregateDefinition, about: dict[str, Any]
) -> GroupCsv | GroupParquet:
    """:raises ConfigError: the library is missing."""
    if form == "csv":
        return GroupCsv(out, definition)
    try:
        return GroupParquet(out, definition, about)
    except ImportError as error:
        raise ConfigError(
            f"Parquet needs pyarrow, which can't be imported ({error}): run pip install 'meshnode[export]', or use "
            "--format csv"
        ) from error


def _write(writer: GroupCsv | GroupParquet, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        writer.add(row)
        count += 1
    writer.close()
    return count


def _print_json(rows: Iterator[dict[str, Any]]) -> None:
    separator = "["
    for row in rows:
        click.echo(separator + msgspec.json.encode(row).decode(), nl=False)
        separator = ",\n "
    click.echo("]" if separator != "[" else "[]")


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        click.echo("there are no groups of what was asked for")
        return
    header = [column for column in rows[0] if column not in _HIDDEN]
    lines = [header, *([_cell(column, row[column]) for column in header] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(column: str, value: Any) -> str:
    if column == "bucket_utc_ns":
        return _time(value)
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else _printable(str(value))


def _time(utc_ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(utc_ns // SECOND))
    except (OverflowError, ValueError, OSError):
        return f"{utc_ns} ns"


def _printable(text: str) -> str:
    """Texts come from nodes, and a control character could rewrite the terminal of whoever looks."""
    return "".join(character if character.isprintable() else "�" for character in text)
