"""Asking the relay as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    import click

    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.asking.running import RunningAsking

    return RunningAsking(host)


def _commands() -> "Sequence[click.Command]":
    from meshnode.asking.commands import query

    return (query,)


ASKING: Final = Part("asking", _start, commands=_commands)
