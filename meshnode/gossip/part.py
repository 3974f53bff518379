"""Gossip as a part of a node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from meshnode.part import Part

if TYPE_CHECKING:
    import click

    from meshnode.running import Host, RunningPart


def _start(host: "Host") -> "RunningPart":
    from meshnode.gossip.running import RunningGossip

    return RunningGossip(host)


def _commands() -> "Sequence[click.Command]":
    from meshnode.gossip.commands import gossip

    return (gossip,)


GOSSIP: Final = Part("gossip", _start, commands=_commands)
