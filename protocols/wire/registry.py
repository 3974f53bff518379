"""Which frames travel where: the lists that codec and tests derive from.

A new capability adds a module of frames beside this one, and one line here. A number is never used again for
something else: nodes of different ages meet.
"""

from typing import Final

from protocols.wire import gossip, inference, membership, readings, records
from protocols.wire.frame import Frame

NODE_FRAMES: Final[tuple[type[Frame], ...]] = (
    *membership.FRAMES,
    *readings.FRAMES,
    *inference.FRAMES,
    *gossip.FRAMES,
)
"""Between nodes."""
RELAY_FRAMES: Final[tuple[type[Frame], ...]] = records.FRAMES
"""Between node and relay."""
RETIRED_NUMBERS: Final[frozenset[int]] = frozenset()
"""Numbers of frames that were, and are not to be used again."""
