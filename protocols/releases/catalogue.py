"""What signed metadata lists: releases, and orders to roll them out.

The metadata is a TUF repository (docs/adr/0032). Its targets are small JSON documents of two kinds: the *description*
of a release, at ``KIND/NAME/COUNTER.json``, and an *order*, at ``rollouts/SERIAL.json``. The driver checks signatures
and parses; machines get the result. Everything below a description is checked by the digests in it.
"""

from typing import Annotated, Final, Literal, TypeVar

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder

from protocols.base import limits
from protocols.base.ids import NodeId, Role

_T = TypeVar("_T")
FORMAT: Final = 1
MAX_FILES: Final = 64
MAX_CANARIES: Final = 64
MAX_ORDERS: Final = 64
"""Orders that a node looks at: those with the highest serials. Of those for one path whose cohort it is in, it follows
the one with the highest serial that is neither aborted nor halted nor given up by the node itself."""
MAX_RELEASES: Final = 1_024
MAX_DESCRIPTION_BYTES: Final = 64 * 1024
MAX_RUNTIME_CHARS: Final = 100

KINDS: Final = ("models", "rules")
"""What can be released: the first parts of paths. To machines they are all alike; whoever installs tells them apart."""

Path = Annotated[str, Meta(pattern=r"^[a-z]+/[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", max_length=120)]
"""The kind and the name of what is released, as in ``models/plate``. The table of access decides by it."""
Counter = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""It grows with each release of a path. A rollback installs a smaller one that the metadata still lists."""
Hex256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", max_length=64)]
_Size = Annotated[int, Meta(ge=0, le=limits.MAX_CONTENT_BYTES)]
_ChunkBytes = Annotated[int, Meta(ge=limits.PIECE_BYTES, le=limits.MAX_CHUNK_BYTES)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class Content(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes that travel in chunks."""

    sha256: Hex256
    """Of all of them."""
    size_bytes: _Size
    chunk_bytes: _ChunkBytes
    """The size of each chunk but the last."""
    index: Hex256
    """The chunk with the digests of the chunks, 32 bytes each. It is the name of the content on the wire."""

    @property
    def chunks(self) -> int:
        """How many chunks there are; an empty file has none."""
        return -(-self.size_bytes // self.chunk_bytes)


class ReleasedFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a release."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", max_length=100)]
    """Its name in the folder of the release: no folder in it."""
    content: Content


class Delta(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A shorter way to a file, for a node that holds another one."""

    name: str
    """The file that it makes."""
    base: Hex256
    """The file that it is applied to."""
    method: Literal["tensors", "zstd"]
    content: Content


class Description(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One release: ``KIND/NAME/COUNTER.json``."""

    format: Literal[1] = 1
    path: Path
    counter: Counter
    model: Annotated[str, Meta(max_length=100)]
    """The main one of the files. Of ``models`` it is the ONNX file, and its manifest, golden vectors and external
    weights are files beside it; of ``rules`` it is the file of rules."""
    files: Annotated[tuple[ReleasedFile, ...], Meta(min_length=1, max_length=MAX_FILES)]
    deltas: Annotated[tuple[Delta, ...], Meta(max_length=MAX_FILES)] = ()
    runtime: Annotated[str, Meta(max_length=MAX_RUNTIME_CHARS)] = ""
    """The version of ONNX Runtime that it needs at least, as in ``1.17``; empty: any."""
    licence: Annotated[str, Meta(max_length=limits.MAX_TEXT_CHARS)] = ""
    changelog: Annotated[str, Meta(max_length=4_000)] = ""
    signature_since: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """The last release up to this one whose inputs or outputs differed from those of the release before, as their
    publisher declared; 0: none did. A node that was away may miss the release that broke them."""

    @property
    def breaks_signature(self) -> bool:
        """Whether it is such a release itself."""
        return self.signature_since == self.counter

    @property
    def contents(self) -> "list[Content]":
        """Those of its files and of the deltas to them."""
        return [file.content for file in self.files] + [delta.content for delta in self.deltas]

    @property
    def size_bytes(self) -> int:
        """What its files take on a disk."""
        return sum(file.content.size_bytes for file in self.files)


class Cohort(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which nodes an order is for: those that fulfil every condition. Labels come from the node's own file: they select
    and never authorise."""

    roles: tuple[Role, ...] = ()
    """None: all roles."""
    labels: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    """Labels that the node must have, as in ``city=ingolstadt``."""
    nodes: Annotated[tuple[NodeId, ...], Meta(max_length=256)] = ()
    """None: all nodes."""
    share: _Share = 1.0
    """The part of the nodes by a hash of path, counter and node id, beside all other conditions. An order with a larger
    share of the same release contains the nodes of the smaller one."""


class Gates(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a canary must measure before it reports a release as healthy. Errors and latency are those of the release
    itself, first in shadow and then while it serves. A gate that is clearly broken is a failure at once, and otherwise
    at the end of the time. A release that was never measured is neither healthy nor failed."""

    max_errors: _Share = 0.01
    """The largest share of its runs that may fail."""
    max_latency: Annotated[float, Meta(ge=0)] = 1.5
    """The largest p95 of its runs, as a multiple of that of the release before; 0: any."""
    min_agreement: _Share = 0.0
    """The least share of live inputs on which it must agree with the release before; 0: any."""
    min_runs: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """How many live runs it must have had, and with ``min_agreement`` how many of them beside the release before."""


class Order(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What nodes are to serve: ``rollouts/SERIAL.json``."""

    format: Literal[1] = 1
    serial: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    """It grows with each order, whatever its path."""
    path: Path
    counter: Counter
    """The release to serve."""
    state: Literal["running", "paused", "aborted", "promoted"] = "running"
    """``paused``: nobody begins to serve it, and who serves it goes on. ``aborted``: who serves it goes back.
    ``promoted``: nobody waits for canaries or counts them any more. Another state is written into the same serial,
    because a new serial begins a new count."""
    cohort: Cohort = Cohort()
    canaries: Annotated[tuple[NodeId, ...], Meta(max_length=MAX_CANARIES)] = ()
    """They are in the cohort whatever it says, and serve it first; none: all nodes at once."""
    promote_quorum: Annotated[int, Meta(ge=0, le=MAX_CANARIES)] = 0
    """So many canaries must report this serial and release healthy before others serve it …"""
    halt_quorum: Annotated[int, Meta(ge=0, le=MAX_CANARIES)] = 0
    """… and so many that report it failed, or have given no verdict in time, halt it. 0: a majority, or one more than
    can fail while the first quorum is still met. Of three or more canaries, at least two decide, whatever stands
    here."""
    soak_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 600
    """How long a canary serves it before it reports it healthy. Before that, it runs beside the release before for a
    tenth of it; afterwards the canary judges for as long again."""
    silence_s: Annotated[int, Meta(ge=0, le=90 * 86_400)] = 86_400
    """How long after a node learnt of the order, and while it ran and the order was not paused, a canary without a
    verdict counts as failed for it. A verdict that comes later takes that back. It must leave time for fetching and
    soaking."""
    gates: Gates = Gates()


class Listed(Struct, frozen=True):
    """A release in verified metadata."""

    path: str
    counter: int
    digest: bytes
    """The chunk that is its description."""
    size_bytes: int
    """Of the description."""


class ListedOrder(Struct, frozen=True):
    """An order in verified metadata. Its bytes are a chunk of their own."""

    serial: int
    digest: bytes
    size_bytes: int


class ReleaseCatalogue(Struct, frozen=True):
    """All that one verified set of metadata lists."""

    root_version: int
    timestamp_version: int
    timestamp: bytes
    """SHA-256 of ``timestamp.json``."""
    is_expired: bool
    """Whether nothing new may be installed by it."""
    releases: tuple[Listed, ...]
    orders: tuple[ListedOrder, ...]


# Made here, and not by whoever decodes: two threads that do so for the first time would end the process.
DESCRIPTIONS: Final = Decoder(Description)
ORDERS: Final = Decoder(Order)


def parsed(data: bytes | None, decoder: "Decoder[_T]") -> _T | None:
    """A document of signed metadata; None: it is not there, or malformed."""
    try:
        return decoder.decode(data or b"")
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
