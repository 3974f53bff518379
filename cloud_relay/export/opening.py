"""The formats of exports by their names: which one a file has, and what writes it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol

from cloud_relay.export.columns import EXPORTED, Column
from cloud_relay.export.commas import CsvExport
from cloud_relay.spans import untrusted_span_s
from protocols.base.errors import ConfigError, LocalProtocolError
from protocols.base.limits import SECOND

FORMATS: Final = ("parquet", "csv", "arrow", "arrows")
"""Each is the ending of its files, too. ``arrow`` is the file of Arrow's IPC, ``arrows`` its stream."""


class RecordExport(Protocol):
    """Writes rows of :func:`cloud_relay.export.columns.row_of_record` into an open file."""

    def add(self, row: dict[str, Any]) -> None:
        """Add the next row."""

    def close(self) -> None:
        """Write what is left; the file stays open."""

    def abandon(self) -> None:
        """Write nothing more, because the file won't be whole."""


@contextmanager
def closed_when_whole(out: RecordExport) -> Iterator[RecordExport]:
    """Close an export at the end, or abandon it on the way to an error."""
    try:
        yield out
        out.close()
    except BaseException:
        out.abandon()
        raise


def untrusted_format(form: str | None, file: Path) -> str:
    """The format that was asked for, by default that of the file's ending.

    :raises LocalProtocolError: there is none.
    """
    form = form or file.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise LocalProtocolError(
            f"{file.name!r} does not say in which format: add --format parquet or --format csv, arrow or arrows"
        )
    return form


def opener(
    form: str, span_ns: int, about: dict[str, Any], columns: Sequence[Column] = EXPORTED
) -> Callable[[IO[bytes]], RecordExport]:
    """What opens a file of a format. ``span_ns``: the span of time of a row group of Parquet. ``about``: what the
    metadata says of the records.

    :raises ConfigError: the library is missing.
    """
    if form == "csv":
        return lambda out: CsvExport(out, columns)
    try:
        if form == "parquet":
            from cloud_relay.export.parquet import ParquetExport

            return lambda out: ParquetExport(out, span_ns, about, columns)
        from cloud_relay.export.arrow import ArrowExport
    except ImportError as error:
        raise ConfigError(
            f"Parquet and Arrow need pyarrow, which can't be imported ({error}): run pip install 'meshnode[export]', "
            "or use --format csv"
        ) from error
    return lambda out: ArrowExport(out, about, columns, streams=form == "arrows")


def untrusted_span_ns(text: str) -> int:
    """The span of ``--row-group``. :raises LocalProtocolError: it is none."""
    span_s = untrusted_span_s(text, "mhd")
    if span_s is None:
        raise LocalProtocolError(f"--row-group {text[:40]!r} is no span of time: use one as in 10m, 1h or 1d")
    return span_s * SECOND
