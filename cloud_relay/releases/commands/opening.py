"""What all commands about releases share: where the repository is, its keys, and the progress of long steps."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cloud_relay.config import load_config
from protocols.base.errors import ReleaseInvalid

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from cloud_relay.releases.repository import ReleaseRepository

_F = TypeVar("_F", bound=Callable[..., Any])


def places(command: _F) -> _F:
    """The options that say where the repository is."""
    command = click.option(
        "--folder", type=click.Path(path_type=Path), help="The repository; no configuration is read then."
    )(command)
    return click.option(
        "--config", "config_path", type=click.Path(path_type=Path), default="relay.toml", show_default=True,
        help="The relay's configuration.",
    )(command)  # fmt: skip


def signing(command: _F) -> _F:
    """The options that say where the repository and its keys are."""
    return click.option(
        "--keys", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
        help="A folder with keys, beside the repository's own; may be repeated.",
    )(places(command))  # fmt: skip


def folder_of(config_path: Path, folder: Path | None) -> Path:
    """Where the repository is."""
    return folder if folder is not None else load_config(config_path).releases


@contextmanager
def changed(config_path: Path, folder: Path | None, keys: Sequence[Path] = ()) -> "Iterator[ReleaseRepository]":
    """The repository, to be changed. It is published when the block ends without an error.

    :raises ReleaseInvalid: there is none, or the library for it is not installed.
    """
    with locked(config_path, folder) as repository:
        from cloud_relay.releases.signing import keys_in

        repository.load()
        repository.use_keys(keys_in(keys).values())
        yield repository
        published(repository)


@contextmanager
def locked(config_path: Path, folder: Path | None) -> "Iterator[ReleaseRepository]":
    """The repository before it was read, which nobody else changes meanwhile.

    :raises ReleaseInvalid: the library for it is not installed. :raises StorageError: another command changes it.
    """
    with needing_library():
        from cloud_relay.releases.repository import opened
    with opened(folder_of(config_path, folder)) as repository:
        yield repository


def published_last(config_path: Path, folder: Path | None) -> "ReleaseRepository":
    """The repository as it was published last, to be shown. Another command may be changing it meanwhile.

    :raises ReleaseInvalid: there is none, or the library for it is not installed.
    """
    with needing_library():
        from cloud_relay.releases.repository import ReleaseRepository
    return ReleaseRepository(folder_of(config_path, folder)).load()


@contextmanager
def needing_library() -> Iterator[None]:
    """Say what to install if the block fails to import it. :raises ReleaseInvalid: it does."""
    try:
        yield
    except ImportError as error:
        raise ReleaseInvalid(f"{error}: releases need meshnode[releases], install it") from error


def published(repository: "ReleaseRepository") -> None:
    """Publish what was changed, and remove the chunks that nothing leads to any more."""
    from cloud_relay.releases.shown import read_shown

    repository.commit()
    shown = read_shown(repository.folder)
    assert shown is not None
    if shown.unread:
        click.echo(
            f"no chunks are removed, because {', '.join(shown.unread)} can't be read: restore a copy of "
            f"{repository.folder / 'chunks'}, or take out what is damaged",
            err=True,
        )
    else:
        repository.shelf.retain(shown.paths)
    click.echo(
        f"published: timestamp {shown.news.timestamp_version}, root {shown.news.root_version}, "
        f"{shown.news.bundle_bytes} bytes of metadata"
    )


def root_signers(paths: Sequence[Path]) -> "list[Signer]":
    """The keys of root, whose passphrases are asked for. :raises ReleaseInvalid: one can't be read."""
    from cloud_relay.releases.signing import load_key

    def ask(path: Path) -> bytes:
        text: str = click.prompt(f"passphrase of {path}", hide_input=True)
        return text.encode()

    return [load_key(path, ask) for path in paths]


@contextmanager
def progress_of(total_bytes: int) -> Iterator[Callable[[str, int], None]]:
    """A bar with rate and time left, on standard error. What is yielded takes what is done and how many bytes of it."""
    began_s, done = time.monotonic(), 0

    def shown(name: str | None) -> str:
        rate = done / max(1e-3, time.monotonic() - began_s) / 1e6
        return f"{rate:.1f} MB/s  {name or ''}"

    bar: Any
    with click.progressbar(length=total_bytes, label="publishing", item_show_func=shown, file=sys.stderr) as bar:

        def told(name: str, count: int) -> None:
            nonlocal done
            done += count
            bar.update(count, name)

        yield told
