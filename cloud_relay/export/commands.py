"""``cloud-relay export``: records of the store as a file."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
from rich.filesize import decimal

from cloud_relay.config import load_config
from cloud_relay.export.columns import row_of_record
from cloud_relay.export.opening import FORMATS, closed_when_whole, opener, untrusted_format, untrusted_span_ns
from cloud_relay.export.whole_file import whole_file
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.searching import records_of_pages
from cloud_relay.query.selection import FILTERS, untrusted_query
from cloud_relay.store.places import store_place
from protocols.base.ids import UtcNs
from protocols.base.limits import SECOND

_TOLD_EACH_S: Final = 0.5


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that select records."""
    for name, text in reversed(list(FILTERS.items())):
        command = click.option(f"--{name.replace('_', '-')}", metavar="TEXT", help=text)(command)
    return command


@click.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
              help="The relay's configuration.")  # fmt: skip
@click.option("--store", "store_path", metavar="PATH|URL",
              help="Path or URL of the store; no configuration is read then.")  # fmt: skip
@filter_options
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: what the ending of FILE says.")
@click.option("--row-group", default="1d", show_default=True, metavar="SPAN",
              help="The span of time of a row group of Parquet, as in 10m, 1h, 1d.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.argument("file", type=click.Path(path_type=Path))
def export(
    config_path: Path, store_path: str | None, form: str | None, row_group: str, overwrite: bool, file: Path,
    **given: str | None,
) -> None:  # fmt: skip
    """Write the records that the filters select into FILE, oldest first; the relay may be running.

    FILE appears when it is whole. An export that is interrupted leaves nothing.
    """
    form = untrusted_format(form, file)
    texts = {name: value for name, value in given.items() if value is not None}
    query = replace(untrusted_query(texts, UtcNs(time.time_ns())), limit=2**63, newest_first=False)
    path = store_place(store_path) if store_path is not None else load_config(config_path).store
    open_export = opener(
        form, untrusted_span_ns(row_group), {"form": 1, "query": texts, "made_utc_s": int(time.time())}
    )
    with open_reader(path) as reader, whole_file(file, overwrite=overwrite) as out:
        told, count = _Told(), 0
        with closed_when_whole(open_export(out)) as writer:
            for record in records_of_pages(reader.page, query):
                writer.add(row_of_record(record))
                count += 1
                told.tell(count, record.fields["event_utc_ns"])
        size_bytes = out.tell()
        told.end()
    click.echo(f"{count} records, {decimal(size_bytes)} in {file}")


class _Told:
    """How far an export came, on a terminal."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._shows = self._stream.isatty()
        self._next_s = time.monotonic() + _TOLD_EACH_S

    def tell(self, count: int, event_utc_ns: int) -> None:
        """Say so, now and then."""
        if self._shows and count % 256 == 0 and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _TOLD_EACH_S
            day = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(min(event_utc_ns // SECOND, 2**37)))
            self._stream.write(f"\r{count:,} records, up to {day}\x1b[K")
            self._stream.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._shows:
            self._stream.write("\r\x1b[K")
