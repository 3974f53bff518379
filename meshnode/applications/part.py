"""Applications that a node runs, as a part of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    import click

    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.applications.running import RunningApplications

    return RunningApplications(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.applications.section import ApplicationsSection

    return (ApplicationsSection,)


def _commands() -> "Sequence[click.Command]":
    from meshnode.applications.commands import bundle

    return (bundle,)


APPLICATIONS: Final = Part("applications", _start, _sections, _commands)
