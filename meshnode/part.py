"""What a node is told of a capability before it opens: its name, its configuration, its commands, and how it starts.

Declaring a part costs nothing: whatever takes long to import is imported by the functions, when they are called. What a
part does in a running node is :class:`meshnode.running.RunningPart`.
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
    """One word, which no other part has. A part of another package is found by it: a table of the configuration, a
    command of ``meshnode`` and the entry point in the group ``meshnode.parts`` bear it."""
    start: "Callable[[Host], RunningPart]"
    """Called for each life of a node, on its event loop."""
    sections: "Callable[[], Sequence[type[PartSection]]]" = _none
    """Its sections of the configuration."""
    commands: "Callable[[], Sequence[click.Command]]" = _silent
    """Its commands of ``meshnode``. Importing them must be cheap."""
