"""Releases as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    import click

    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.releases.running import RunningReleases

    return RunningReleases(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.releases.section import ReleasesSection

    return (ReleasesSection,)


def _commands() -> "Sequence[click.Command]":
    from meshnode.releases.console.commands import models

    return (models,)


RELEASES: Final = Part("releases", _start, _sections, _commands)
"""It opens before inference, so that releases are loaded in place of the files that the configuration names."""
