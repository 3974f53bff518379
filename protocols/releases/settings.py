"""The settings of releases at one node."""

from msgspec import Struct

from protocols.base import limits


class ReleaseSettings(Struct, frozen=True):
    """The settings of releases. 0 bytes means no limit."""

    fetch_bytes_per_hour: int = 0
    """Pieces asked of neighbours and of the relay: for a node whose link is paid for by the byte."""
    relay_bytes_per_hour: int = 0
    """Those of the relay alone: most often the uplink is metered, and the link to neighbours is not."""
    serve_bytes_per_s: int = 0
    """Pieces sent to all neighbours together."""
    serve_neighbour_bytes_per_s: int = 0
    """Pieces sent to each neighbour."""
    store_bytes: int = 0
    """What releases may take on the disk. One that is larger is not fetched."""
    gather_ns: int = 150 * limits.MS
    """A neighbour is told at most this often what this node has got. A shorter time costs frames, a longer one delays
    neighbours that have nothing else to ask for."""
    relay_patience_ns: int = 20 * limits.SECOND
    """A chunk that neighbours hold, and that still has not come after this time, is asked of the relay."""
    relay_stagger_ns: int = limits.SECOND // 2
    """The first requests to the relay wait for a random part of this time, so that of many nodes that hear of a release
    from it at once the first can tell the others."""
