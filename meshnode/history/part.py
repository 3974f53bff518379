"""The history as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    import click

    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.history.running import RunningHistory

    return RunningHistory(host)


def _sections() -> "Sequence[type[PartSection]]":
    from meshnode.history.section import HistorySection

    return (HistorySection,)


def _commands() -> "Sequence[click.Command]":
    from meshnode.history.commands import history

    return (history,)


HISTORY: Final = Part("history", _start, _sections, _commands)
