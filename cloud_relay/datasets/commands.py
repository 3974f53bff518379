"""``cloud-relay dataset``: save questions as datasets with versions, export and verify these."""

import sys
import time
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.filesize import decimal

from cloud_relay.config import load_config
from cloud_relay.datasets.card import card_of, shown_time
from cloud_relay.datasets.checking import Findings, check_rows, check_store, digest_of_rows
from cloud_relay.datasets.exporting import export_version
from cloud_relay.datasets.making import make_version, question_text
from cloud_relay.datasets.names import VersionName, untrusted_name, untrusted_version
from cloud_relay.datasets.progress import progress
from cloud_relay.datasets.shelf import DatasetShelf
from cloud_relay.datasets.versions import DatasetVersion
from cloud_relay.export.commands import filter_options
from cloud_relay.export.opening import FORMATS, untrusted_format, untrusted_span_ns
from cloud_relay.export.reading import rows_in
from cloud_relay.export.whole_file import refuse_taken
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.store.places import StorePlace, store_place
from protocols.base.errors import ConfigError, LocalProtocolError, StorageError
from protocols.base.ids import UtcNs

FOLDER: Final = "datasets"
_PATH: Final = click.Path(path_type=Path)
_CONFIG = click.option("--config", "config_path", type=_PATH, default="relay.toml", show_default=True,
                       help="The relay's configuration.")  # fmt: skip
_STORE = click.option("--store", "store_path", metavar="PATH|URL",
                      help="Path or URL of the store; no configuration is read then.")  # fmt: skip
_FOLDER = click.option(
    "--folder",
    type=_PATH,
    help="The folder of datasets. Default: datasets in state_dir, or beside the file of --store.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FORMAT = click.option("--format", "form", type=click.Choice(FORMATS), help="Default: what the ending of FILE says.")


@click.group()
def dataset() -> None:
    """Questions that are saved with versions, each of which says exactly which records it has."""


@dataset.command()
@_CONFIG
@_STORE
@_FOLDER
@filter_options
@click.option("--licence", metavar="TEXT", help="What others may do with the data, as in CC-BY-4.0.")
@click.option("--notes", metavar="TEXT", help="What somebody who finds it should know.")
@click.argument("name")
def create(
    config_path: Path, store_path: str | None, folder: Path | None, licence: str | None, notes: str | None, name: str,
    **given: str | None,
) -> None:  # fmt: skip
    """Make a version of dataset NAME from the records that the filters select now.

    A dataset that is there gets its next version, with the same filters or none. Licence and notes are those of the
    version before unless they are given.
    """
    store, shelf = _opened(config_path, store_path, folder)
    untrusted_name(name)
    question = {filter_name: text for filter_name, text in given.items() if text is not None}
    numbers = shelf.numbers(name)
    before = shelf.version(VersionName(name, numbers[-1])) if numbers else None
    if before is not None:
        question = question or before.question
        licence, notes = (before.licence if licence is None else licence), (before.notes if notes is None else notes)
    with open_reader(store) as reader, progress(name, None) as told:
        made, version = make_version(
            shelf, name, question, reader, UtcNs(time.time_ns()), told,
            licence=licence or "", notes=notes or "", software=_software(),
        )  # fmt: skip
    same = f", the same as version {numbers[-1]}" if before is not None and before.digest == version.digest else ""
    click.echo(f"{made}: {version.records} records{same}, {version.digest}")


@dataset.command(name="list")
@_CONFIG
@_STORE
@_FOLDER
@_JSON
def list_datasets(config_path: Path, store_path: str | None, folder: Path | None, as_json: bool) -> None:
    """Show all datasets with their versions."""
    _, shelf = _opened(config_path, store_path, folder)
    listed = []
    for wanted in (VersionName(name, number) for name in shelf.names() for number in shelf.numbers(name)):
        try:
            version = shelf.version(wanted)
        except StorageError as error:
            click.echo(f"{wanted}: {error}", err=True)
            if not as_json:
                click.echo(f"{wanted!s:<32} DAMAGED")
            continue
        if as_json:
            listed.append(
                {"dataset": wanted.name, "version": wanted.number, "records": version.records,
                 "digest": version.digest, "question": version.question, "made_utc_s": version.made_utc_s}
            )  # fmt: skip
        else:
            made, asked = shown_time(version.asked_utc_ns), _printable(question_text(version.question))
            click.echo(f"{wanted!s:<32} {version.records:>10} records  {made}  {version.digest[:19]}…  {asked}")
    if as_json:
        click.echo(_json(listed))


@dataset.command()
@_CONFIG
@_STORE
@_FOLDER
@_JSON
@click.argument("name")
def show(config_path: Path, store_path: str | None, folder: Path | None, as_json: bool, name: str) -> None:
    """Show the card of a version, NAME@NUMBER, or of the newest version of NAME."""
    _, shelf = _opened(config_path, store_path, folder)
    wanted = shelf.found(untrusted_version(name))
    version = shelf.version(wanted)
    if as_json:
        click.echo(_json(msgspec.to_builtins(version) | {"dataset": wanted.name, "version": wanted.number}))
    else:
        click.echo(card_of(wanted, version), nl=False)


@dataset.command()
@_CONFIG
@_STORE
@_FOLDER
@_FORMAT
@click.option("--row-group", default="1d", show_default=True, metavar="SPAN",
              help="The span of time of a row group of Parquet, as in 10m, 1h, 1d.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.argument("name")
@click.argument("file", type=_PATH)
def export(
    config_path: Path, store_path: str | None, folder: Path | None, form: str | None, row_group: str,
    overwrite: bool, name: str, file: Path,
) -> None:  # fmt: skip
    """Write the records of a version, NAME@NUMBER or the newest of NAME, into FILE, and its card beside it.

    The card is FILE.card.md for people and FILE.card.json for programs. FILE appears when it is whole.
    """
    store, shelf = _opened(config_path, store_path, folder)
    form = untrusted_format(form, file)
    wanted = shelf.found(untrusted_version(name))
    version = shelf.version(wanted)
    refuse_taken(file, overwrite=overwrite)
    with open_reader(store) as reader, progress(str(wanted), version.records) as told:
        written = export_version(
            reader, wanted, version, shelf.members(wanted), file, told,
            form=form, span_ns=untrusted_span_ns(row_group), overwrite=overwrite,
        )  # fmt: skip
    click.echo(f"{wanted}: {version.records} records, {decimal(written.size_bytes)} in {file}, {version.digest}")


@dataset.command()
@_CONFIG
@_STORE
@_FOLDER
@_FORMAT
@_JSON
@click.argument("name")
@click.argument("file", type=_PATH, required=False)
def verify(
    config_path: Path, store_path: str | None, folder: Path | None, form: str | None, as_json: bool, name: str,
    file: Path | None,
) -> None:  # fmt: skip
    """Say whether the store still holds all of a version, NAME@NUMBER or the newest of NAME; with FILE, whether that
    file is the version, for which no store is needed. The exit status is 1 when it does not hold."""
    store, shelf = _opened(config_path, store_path, folder)
    wanted = shelf.found(untrusted_version(name))
    version = shelf.version(wanted)
    members = shelf.members(wanted)
    with progress(str(wanted), version.records) as told:
        if file is None:
            with open_reader(store) as reader:
                found = check_store(reader, version, members, told)
        else:
            found = check_rows(rows_in(file, untrusted_format(form, file)), version, members, told)
    if as_json:
        click.echo(_json(msgspec.to_builtins(found) | {"dataset": wanted.name, "version": wanted.number}))
    else:
        _print_findings(wanted, version, found, "the store" if file is None else str(file))
    if not found.is_equal:
        sys.exit(1)


@dataset.command()
@_FORMAT
@click.argument("file", type=_PATH)
def digest(form: str | None, file: Path) -> None:
    """Print the digest of an exported FILE, to compare with that of its card. No relay is needed."""
    with progress(file.name, None) as told:
        found = digest_of_rows(rows_in(file, untrusted_format(form, file)), told)
    click.echo(f"{found.text()}  {found.records} records")


@dataset.command()
@_CONFIG
@_STORE
@_FOLDER
@click.option("--all", "every", is_flag=True, help="All versions of NAME.")
@click.argument("name")
def remove(config_path: Path, store_path: str | None, folder: Path | None, every: bool, name: str) -> None:
    """Remove a version, NAME@NUMBER, whose number is not used again, or with --all a whole dataset. Records stay in the
    store, and exported files where they are."""
    _, shelf = _opened(config_path, store_path, folder)
    wanted = untrusted_version(name)
    if every == (wanted.number is not None):
        raise LocalProtocolError(
            f"{name!r} does not say what to remove: name a version as in speeds@3, or NAME with --all"
        )
    count = shelf.remove(wanted)
    click.echo(f"{wanted}: {count} {'version' if count == 1 else 'versions'} removed")


def _opened(config_path: Path, store_path: str | None, folder: Path | None) -> tuple[StorePlace, DatasetShelf]:
    """Where the store is, and the datasets."""
    if store_path is None:
        config = load_config(config_path)
        return config.store, DatasetShelf(folder or config.state_dir / FOLDER)
    store = store_place(store_path)
    if folder is None and not isinstance(store, Path):
        raise ConfigError(f"datasets of {store} are in a folder of the relay's host: name it by --folder")
    return store, DatasetShelf(folder or Path(store_path).parent / FOLDER)


def _print_findings(wanted: VersionName, version: DatasetVersion, found: Findings, what: str) -> None:
    if found.is_equal:
        click.echo(f"{what} has all {version.records} records of {wanted}, {version.digest}")
        return
    click.echo(f"{what} is NOT {wanted}: it has {found.records} of {version.records} records")
    sorts = (("missing", found.missing), ("changed", found.changed), ("of no member", found.foreign))
    for sort, differences in sorts:
        if differences.count:
            more = ", …" if differences.count > len(differences.examples) else ""
            click.echo(f"{differences.count} {sort}: {_printable(', '.join(differences.examples))}{more}")
    click.echo(f"digest {found.digest}, expected {version.digest}")


def _json(content: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(content)).decode()


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in text)


def _software() -> str:
    try:
        return version_of("meshnode")
    except PackageNotFoundError:
        return "0+unknown"
