"""Records as Parquet files, in a folder of a disk, a bucket or whatever fsspec has a driver for.

A file is named after the numbers of its records in the store, ``records-0000000000000000001-….parquet``. Which numbers
a file has is noted before it is written, so after a crash the same file, byte for byte, is written over itself, and no
record is in two files. Within a file rows are in the order of time, with the columns of an export.

On a disk a file gets its name once it is whole and on the disk. In S3, Azure and Google an object is there once it is
whole anyway. Elsewhere it is written beside its name and renamed.
"""

import io
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import fsspec

from cloud_relay.export.columns import row_of_record
from cloud_relay.export.parquet import ParquetExport
from cloud_relay.sinks.contract import DeliveryFailed, Portion, SinkTarget
from cloud_relay.sinks.settings import SinkSettings
from meshnode.identity.private_files import write_private
from protocols.base.errors import ConfigError
from protocols.base.limits import SECOND

ROW_GROUP_NS: Final = 86_400 * SECOND
WHOLE_AT_ONCE: Final = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"))
"""Where an object can be seen only when it is whole."""


class ParquetTarget(SinkTarget):
    """A folder."""

    repeats_portions: ClassVar[bool] = True

    def __init__(self, settings: SinkSettings) -> None:
        """:raises ConfigError: fsspec has no driver for this address."""
        self._settings = settings
        self.most_records = settings.own["records_per_file"]
        self.longest_wait_s = settings.own["longest_wait_s"]
        self._protocol = urlsplit(settings.url).scheme
        try:
            fsspec.get_filesystem_class(self._protocol)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"sink {settings.name!r} can't write to {settings.url!r}: {error}") from error

    async def open(self) -> None:
        """Prepare; a bucket is asked when a file is written."""
        settings = self._settings
        secrets = {name: secret.read() for name, secret in settings.secrets.items()}
        options = settings.own["options"] | secrets | {"skip_instance_cache": True}
        try:
            self._files, self._folder = fsspec.core.url_to_fs(settings.url, **options)
        except Exception as error:  # each driver has errors of its own
            raise _failed("the address can't be used", error) from error

    async def send(self, portion: Portion) -> None:
        """Write one file, or the same one again."""
        name = f"records-{portion.first:019}-{portion.last:019}.parquet"
        content = self._written(portion)
        try:
            if self._protocol in ("file", "local"):
                _write_on_disk(Path(self._folder), name, content)
            elif self._protocol in WHOLE_AT_ONCE:
                self._files.pipe_file(f"{self._folder}/{name}", content)
            else:
                fresh = f"{self._folder}/{name}.new"
                self._files.makedirs(self._folder, exist_ok=True)
                self._files.pipe_file(fresh, content)
                self._files.mv(fresh, f"{self._folder}/{name}")
        except Exception as error:  # each driver has errors of its own
            raise _failed(f"{name} can't be written", error) from error

    async def close(self) -> None:
        """Let go of the driver."""
        self._files = None

    def _written(self, portion: Portion) -> bytes:
        rows = [row_of_record(record) for _, record in portion.records]
        rows.sort(key=lambda row: (row["event_utc_ns"], row["origin"], row["sequence"]))
        about: dict[str, Any] = {
            "form": 1, "sink": self._settings.name, "first": portion.first, "last": portion.last
        }  # fmt: skip
        out = io.BytesIO()
        writer = ParquetExport(out, ROW_GROUP_NS, about)
        for row in rows:
            writer.add(row)
        writer.close()
        return out.getvalue()


def _write_on_disk(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(folder / name, content)


def _failed(what: str, error: Exception) -> DeliveryFailed:
    return DeliveryFailed(f"{what}: {type(error).__name__}: {error}")
