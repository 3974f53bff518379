"""What is particular to the releases of one kind: how they are tried, and how they come to serve."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from protocols.releases.catalogue import Description


def name_of(path: str) -> str:
    """The name of the model or of the rules that a path stands for."""
    return path.partition("/")[2]


class Kind(Protocol):
    """See the module. ``file`` is always the main file of a release, with its others beside it."""

    def check(self, description: Description) -> None:
        """:raises InstallRefused: this node can't use releases of that path, whatever is in their files."""

    def tried(self, description: Description, file: Path, current: int) -> str:
        """Try a release whose files are put together. ``current``: the release that serves. Returns the digest of what
        makes it what it is. :raises MeshError: it can't be used."""

    def is_whole(self, path: str, file: Path, digest: str) -> bool:
        """Whether an installed release still has the digest with which it was tried."""

    def has_own(self, path: str) -> bool:
        """Whether the configuration names something for a path."""

    def begin_with_own(self, path: str) -> None:
        """At the start of the node: what the configuration names, or nothing, serves."""

    def serve(self, path: str, file: Path | None, digest: str, about_to_serve: Callable[[], object]) -> None:
        """Have a release serve in place of what serves now. None as ``file``: what the configuration names, or nothing.
        ``about_to_serve`` is called once nothing else can fail; what it raises is handed on.

        :raises MeshError: it can't be used, and what served goes on.
        """
