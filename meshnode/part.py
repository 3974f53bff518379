"""What a capability declares before a node opens: its name, its configuration, its commands, and how it starts.

Declaring a part is cheap: its functions import what takes long to import when they are called. What a part does in a
running node is :class:`meshnode.running.RunningPart`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

    from meshnode.config.sections import PartSection
    from meshnode.running import Host, RunningPart


def _none() -> "Sequence[type[PartSection]]":
    return ()


def _silent() -> "Sequence[click.Command]":
    return ()


@dataclass(frozen=True, slots=True)
class Part:
    """One capability."""

    name: str
    """One word, unique among parts. A part of another package is found by it: its table of the configuration, its
    command of ``meshnode`` and its entry point in the group ``meshnode.parts`` have the same name."""
    start: "Callable[[Host], RunningPart]"
    """Called each time a node opens, on its event loop."""
    sections: "Callable[[], Sequence[type[PartSection]]]" = _none
    """Its sections of the configuration."""
    commands: "Callable[[], Sequence[click.Command]]" = _silent
    """Its commands of ``meshnode``. Importing them must be cheap."""
