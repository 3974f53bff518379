"""The lists of frames by kind of connection, from which codec and tests are derived.

A new capability adds a module of frames beside this one, and one line here. A number is never used again for
something else, because nodes of different versions meet.
"""

from typing import Final

from protocols.wire import gossip, inference, membership, readings, records, releases
from protocols.wire.asking import frames as asking
from protocols.wire.carrying import frames as carrying
from protocols.wire.frame import Frame
from protocols.wire.multicast import frames as multicast

NODE_FRAMES: Final[tuple[type[Frame], ...]] = (
    *membership.FRAMES,
    *readings.FRAMES,
    *inference.FRAMES,
    *gossip.FRAMES,
    *releases.FRAMES,
    *carrying.FRAMES,
    *multicast.FRAMES,
)
"""The frames between nodes."""
RELAY_FRAMES: Final[tuple[type[Frame], ...]] = (
    *records.FRAMES,
    *releases.RELAY_FRAMES,
    *carrying.RELAY_FRAMES,
    *asking.RELAY_FRAMES,
    *inference.RELAY_FRAMES,
)
"""The frames between node and relay."""
RETIRED_NUMBERS: Final[frozenset[int]] = frozenset()
"""The numbers of frames of former versions, which must not be used again."""
