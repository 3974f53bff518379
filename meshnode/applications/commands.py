"""``meshnode bundle``: rules, models and applications that belong together, as one file."""

from pathlib import Path

import click

from meshnode.console.printing import printable
from protocols.base.errors import MeshError


@click.group()
def bundle() -> None:
    """Pack, check and unpack bundles of rules, models and applications."""


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def check(folder: Path) -> None:
    """Check a folder with a bundle.toml: rules are compiled and their cases tried, and manifests are read.

    The exit status is 1 when something is wrong.
    """
    from meshnode.applications.bundles.contents import check_bundle

    try:
        found = check_bundle(folder)
    except (MeshError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(_line(found.name, found.version, found.publisher, found.licence))
    for what in ("rules", "models", "applications"):
        for place in getattr(found, what):
            click.echo(f"  {what:12} {printable(place)}")


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
def pack(folder: Path, archive: Path) -> None:
    """Check a folder and write it as one file. The same content gives the same file."""
    from meshnode.applications.bundles.archive import digest_of
    from meshnode.applications.bundles.archive import pack as packed

    try:
        found = packed(folder, archive)
        click.echo(_line(found.name, found.version, found.publisher, found.licence))
        click.echo(f"{printable(str(archive))}: {archive.stat().st_size} bytes, SHA-256 {digest_of(archive)}")
    except (MeshError, OSError) as error:
        raise click.ClickException(str(error)) from error


@bundle.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path("bundles"), show_default=True)
@click.option("--sha256", help="The digest that the file must have.")
def unpack(archive: Path, into: Path, sha256: str | None) -> None:
    """Unpack a bundle into a folder of its own, check it, and print the tables that use it on a node."""
    from meshnode.applications.bundles.archive import unpack as unpacked
    from meshnode.applications.bundles.contents import tables_for

    try:
        folder, found = unpacked(archive, into, sha256)
        click.echo(tables_for(folder.as_posix(), folder, found))
    except (MeshError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"unpacked into {printable(str(folder))}: add what you want of this to the node's configuration", err=True
    )


def _line(name: str, version: str, publisher: str, licence: str) -> str:
    return printable(f"{name} {version} by {publisher} ({licence})", 400)
