"""The effects and events of releases.

The driver performs each effect on a thread of its own and tells the machine the result by the method named here.
"""

from typing import ClassVar

from msgspec import Struct

from protocols.base.effects import Effect, Event
from protocols.base.ids import NodeId
from protocols.machine import Message


class VerifyBundle(Effect, frozen=True):
    """Check the signatures of the metadata in a chunk. → ``bundle_verified``, ``bundle_refused``, or when that can't be
    done now ``bundle_unchecked``."""

    digest: bytes


class KeepChunk(Effect, frozen=True):
    """Write a chunk whose pieces have all come, if its bytes have the digest. → ``chunk_stored``."""

    digest: bytes
    data: bytes


class AskRelay(Effect, frozen=True):
    """Get a chunk from the relay, and keep it if its bytes have the digest. → ``chunk_stored``, where ``ok`` is False
    when the relay does not give it."""

    digest: bytes


class ReadPiece(Effect, frozen=True):
    """Read a piece of a chunk for a neighbour. → ``piece_read``."""

    node: NodeId
    digest: bytes
    offset: int


class ReadDescription(Effect, frozen=True):
    """Parse the description of a release, which is a chunk. → ``described``."""

    digest: bytes


class ReadOrder(Effect, frozen=True):
    """Parse an order, which is a chunk. → ``ordered``."""

    digest: bytes


class ReadIndex(Effect, frozen=True):
    """Read the index of a content, which is a chunk, and look which of its chunks are held. → ``indexed``."""

    content: bytes
    size_bytes: int
    chunk_bytes: int


class StageRelease(Effect, frozen=True):
    """Put the files of a release together, all of whose chunks are held, and try them: digests, golden vectors.
    → ``staging`` when that begins, then ``staged``."""

    path: str
    counter: int


class ServeRelease(Effect, frozen=True):
    """Answer requests with a release that is staged, from one request to the next, and keep the one before warm.
    → ``serving``."""

    path: str
    counter: int


class ShadowRelease(Effect, frozen=True):
    """Run a release that is staged beside the one that serves, on live inputs, until it is dropped or another begins to
    serve. → ``measured``, every few seconds, or ``not_shadowed``."""

    path: str
    counter: int


class DropRelease(Effect, frozen=True):
    """Remove a release that is neither served nor kept, and the chunks that only it needs."""

    path: str
    counter: int


ReleaseEffect = (
    VerifyBundle | KeepChunk | AskRelay | ReadPiece | ReadDescription | ReadOrder | ReadIndex | StageRelease
    | ServeRelease | ShadowRelease | DropRelease
)  # fmt: skip


class Measures(Struct, frozen=True):
    """What a node has measured of a release since it began to serve or to shadow it."""

    runs: int
    errors: int
    p95_ns: int
    """Of its runs; 0: there were none."""
    before_p95_ns: int
    """Of the release before; 0: there was none."""
    compared: int
    agreed: int
    """Live inputs on which both were run, and those on which they agreed."""


class MetadataTaken(Event, frozen=True):
    """Newer metadata of releases was verified."""

    timestamp_version: int
    releases: int


class MetadataRefused(Event, frozen=True):
    """Metadata that a neighbour sent is forged, old or mixed."""

    source: NodeId
    why: str


class ChunkForged(Event, frozen=True):
    """A neighbour sent bytes that do not have the digest that was asked for. It is asked no more."""

    source: NodeId
    content: str


class ReleaseState(Event, frozen=True):
    """A release has got on at this node."""

    for_applications: ClassVar[bool] = True

    path: str
    counter: int
    state: str
    """``fetching``, ``fetched``, ``staged``, ``shadowing``, ``soaking``, ``healthy``, ``serving``, ``failed``,
    ``rolled_back`` or ``refused``."""
    detail: str = ""


class RolloutState(Event, frozen=True):
    """What this node concludes about an order."""

    for_applications: ClassVar[bool] = True

    serial: int
    path: str
    counter: int
    state: str
    """``waiting``, ``promoted``, ``halted``, ``paused`` or ``aborted``."""
    detail: str = ""


class Decisions:
    """What the parts of the machine have decided and the engine has not taken yet, in the order in which it was
    decided."""

    __slots__ = ("effects", "events", "messages")

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.messages: list[Message] = []
        self.events: list[Event] = []
