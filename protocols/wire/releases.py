"""The frames of releases, between nodes and to the relay, and the bodies of the entries of gossip about them.

Everything that travels is a *chunk*: bytes of at most ``MAX_CHUNK_BYTES`` that are asked for by their SHA-256. The
metadata of all releases together, the description of a release, and the index of a content are one chunk each. A
*content* is a file of a release, and its index lists the digests of its chunks. So a node can check each chunk by
itself, whoever sent it, once it trusts the metadata.
"""

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from protocols.base import limits
from protocols.wire.fields import Count, Text
from protocols.wire.frame import Frame, SmallFrame

RELEASES_KIND: Final = "releases"
"""The kind of the entries whose body is :class:`ReleaseNews`."""
HEALTH_KIND: Final = "rollout"
"""The kind of the entries whose body is :class:`RolloutHealth`."""

Sha256 = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Small = Annotated[int, Meta(ge=0, le=127)]
ChunkSize = Annotated[int, Meta(ge=1, le=limits.MAX_CHUNK_BYTES)]


class ReleaseNews(Struct, frozen=True, array_like=True, gc=False):
    """Which metadata of releases is the newest that its author has verified. Nobody believes it: it says what to ask
    for, and the signatures in the metadata decide."""

    root_version: Count
    timestamp_version: Count
    timestamp: Sha256
    """Of the bytes of ``timestamp.json``."""
    bundle: Sha256
    """The chunk that holds all metadata files."""
    bundle_bytes: ChunkSize


class ReportedRelease(Struct, frozen=True, array_like=True, gc=False):
    """What a node says of one order that it follows. Newer versions may use numbers that this one does not know."""

    serial: _Positive
    """That of the order."""
    counter: _Positive
    """The release that the order names."""
    state: _Small
    """How far the node has got; a place in ``protocols.releases.rollout.health.STATES``."""
    verdicts: _Small
    """Bits of what the node has ever said of it: 1: healthy, 2: failed. Only those of canaries count."""
    reason: _Small
    """Why it failed or was taken back; a place in ``protocols.releases.rollout.health.REASONS``."""


class RolloutHealth(Struct, frozen=True, array_like=True, gc=False):
    """How the rollouts of its author get on. An author has one entry of each kind, so this one tells of all paths."""

    releases: Annotated[tuple[ReportedRelease, ...], Meta(max_length=limits.MAX_REPORTED_RELEASES)]


class ContentWanted(SmallFrame, frozen=True, array_like=True, gc=False, tag=21):
    """Says which contents, and which chunks that are no part of one, the sender fetches. The receiver tells what it
    holds of them, now and whenever it gets more. It replaces what the sender said before. (Since 1.6.)"""

    replaces: ClassVar[bool] = True

    contents: Annotated[tuple[Sha256, ...], Meta(max_length=limits.MAX_CONTENTS)]
    """The digests of indices, or of the chunks."""


class ContentHave(SmallFrame, frozen=True, array_like=True, gc=False, tag=22):
    """Says that the sender holds the chunk ``content``, and which chunks of that content it holds, beside those that it
    named before. (Since 1.6.)"""

    content: Sha256
    first: Annotated[int, Meta(ge=0, lt=limits.MAX_CHUNKS)]
    """The number of the chunk that the first bit stands for; a multiple of 8."""
    held: Annotated[bytes, Meta(max_length=limits.MAX_HAVE_BYTES)]
    """A bit for each chunk, the lowest bit of a byte first."""


class ChunkWanted(SmallFrame, frozen=True, array_like=True, gc=False, tag=23):
    """Asks for a piece of a chunk. (Since 1.6.)"""

    digest: Sha256
    offset: Annotated[int, Meta(ge=0, lt=limits.MAX_CHUNK_BYTES)]


class ChunkPiece(SmallFrame, frozen=True, array_like=True, gc=False, tag=24):
    """A piece of a chunk that was asked for, of ``PIECE_BYTES`` or up to the end of the chunk. (Since 1.6.)"""

    background: ClassVar[bool] = True

    digest: Sha256
    offset: Annotated[int, Meta(ge=0, lt=limits.MAX_CHUNK_BYTES)]
    data: Annotated[bytes, Meta(min_length=1, max_length=limits.PIECE_BYTES)]


class ChunkRefused(SmallFrame, frozen=True, array_like=True, gc=False, tag=25):
    """Says that the sender does not give a chunk that was asked for. (Since 1.6.)"""

    digest: Sha256
    why: Literal["unknown", "busy", "forbidden"]


class ChunksComing(SmallFrame, frozen=True, array_like=True, gc=False, tag=26):
    """Says which chunks the sender gets from the relay now, so that its neighbours need not. It replaces what the
    sender said before. (Since 1.6.)"""

    replaces: ClassVar[bool] = True

    chunks: Annotated[tuple[Sha256, ...], Meta(max_length=limits.MAX_COMING)]


ReleaseFrame = ContentWanted | ContentHave | ChunkWanted | ChunkPiece | ChunkRefused | ChunksComing
FRAMES: Final[tuple[type[Frame], ...]] = (
    ContentWanted, ContentHave, ChunkWanted, ChunkPiece, ChunkRefused, ChunksComing,
)  # fmt: skip


# --- between a node and the relay ------------------------------------------------------------------------------------
class ReleasesAsked(Frame, frozen=True, array_like=True, gc=False, tag=67):
    """From node to relay: which metadata is the newest? The relay answers when it has another one, or after
    ``wait_ms``. It answers at once when too many wait: whoever is answered early without news asks again only after
    ``wait_ms``, because otherwise all nodes of a mesh would ask without a pause. (Since 1.6.)"""

    timestamp_version: Count
    """What the node has; 0: nothing."""
    wait_ms: Annotated[int, Meta(ge=0, le=60_000)]


class ReleasesTold(Frame, frozen=True, array_like=True, gc=False, tag=68):
    """From relay to node: the newest metadata. (Since 1.6.)"""

    news: ReleaseNews | None
    """None: the relay publishes no releases."""


class RelayChunkWanted(Frame, frozen=True, array_like=True, gc=False, tag=69):
    """From node to relay: send this chunk. (Since 1.6.)"""

    digest: Sha256


class RelayChunk(Frame, frozen=True, array_like=True, gc=False, tag=70):
    """From relay to node: a chunk. (Since 1.6.)"""

    digest: Sha256
    data: Annotated[bytes, Meta(max_length=limits.MAX_CHUNK_BYTES)]
    """Empty: the relay does not hold it, or does not give it to this node."""
    detail: Text = ""


RELAY_FRAMES: Final[tuple[type[Frame], ...]] = (ReleasesAsked, ReleasesTold, RelayChunkWanted, RelayChunk)
