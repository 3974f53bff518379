"""A capability that a simulation adds to those that every node has.

A capability brings a machine, which is made anew for each life of each node, and functions that perform the machine's
effects. Or it only performs effects of a machine that every node has, where the driver does not know how. Its checks
are registered with :func:`sims.checks.contract.register`. Nothing in the simulator has to be edited for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.base.effects import Effect
from protocols.machine import Machine
from protocols.settings import NodeSettings
from protocols.wire.codec import node_frames
from protocols.wire.frame import Frame
from sims.virtual.frames import Decode
from sims.virtual.node import SimNode


@dataclass(frozen=True)
class Capability:
    """One capability."""

    machine: Callable[[NodeSettings], Machine] | None = None
    """Makes the machine of one life of a node; None: it has none."""
    frames: tuple[type[Frame], ...] = ()
    """The frames of that machine."""
    performers: Mapping[type[Effect], Callable[[SimNode, Any], None]] = field(default_factory=dict)
    """The function that performs an effect of a node, by class of effect."""


def decoder_of(capabilities: Sequence[Capability]) -> Decode:
    """The decoder of the frames between nodes, including those of ``capabilities``. :raises LocalProtocolError: when
    two frames declare the same number."""
    return node_frames(frame for capability in capabilities for frame in capability.frames).decode_untrusted
