"""What a simulation is told of a capability beside those that every node has.

A capability brings its machine, made anew for each life of each node, and whoever performs the machine's effects. Its
checks make themselves known (:func:`sims.checks.contract.register`). Nothing of the simulator is edited for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocols.machine import Effect, Machine
from protocols.settings import NodeSettings
from protocols.wire.codec import node_frames
from protocols.wire.frame import Frame
from sims.virtual.frames import Decode
from sims.virtual.node import SimNode


@dataclass(frozen=True)
class Capability:
    """One capability."""

    machine: Callable[[NodeSettings], Machine]
    """Makes the machine of one life of a node."""
    frames: tuple[type[Frame], ...]
    """The frames of that machine."""
    performers: Mapping[type[Effect], Callable[[SimNode, Any], None]] = field(default_factory=dict)
    """What performs an effect of a node, by class of effect."""


def decoder_of(capabilities: Sequence[Capability]) -> Decode:
    """Decodes the frames between nodes, those of ``capabilities`` too. :raises LocalProtocolError: when two frames
    declare the same number."""
    return node_frames(frame for capability in capabilities for frame in capability.frames).decode_untrusted
