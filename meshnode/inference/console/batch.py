"""``meshnode infer --batch`` and ``--tiles``: files and tiles as batches, which nodes divide among themselves.

Each file or tile is a *piece*, with one row or more. Pieces are put together until a request is large enough; two
requests are under way at once, so that nobody waits between them. Results are handed out by piece.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.console.printing import printable
from protocols.base.errors import InputInvalid, RemoteProtocolError
from protocols.inference.relay import where_ran

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from meshnode.inference.console.asking import NodeAnswer

MAX_BATCH_BYTES: Final = 24 * 1024 * 1024
"""Of one request, unless a single piece has more; a node takes 64 MiB …"""
MAX_BATCH_PIECES: Final = 512
"""… and 1,024 shards."""
IN_FLIGHT: Final = 2


class Piece(NamedTuple):
    """A file or a tile."""

    name: str
    """For messages and for the file with its results."""
    arrays: "Mapping[str, NDArray[Any]]"
    """Its values, by input."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """All pieces of one command."""

    each: Iterable[Piece]
    """Made one by one, as they are asked for."""
    count: int
    several: frozenset[str]
    """The inputs of which each piece has a value of its own; the others are the same for all. None: there is one piece,
    and the node looks which of its inputs have rows."""
    encoded: frozenset[str]
    """The inputs that are sent as files as they are."""
    are_tiles: bool = False


@dataclass(frozen=True, slots=True)
class PiecesBatch:
    """Pieces that are computed by one request."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    """Of each piece; none: there is only one, and the node looks which of its inputs have rows."""
    inputs: "Mapping[str, NDArray[Any] | list[NDArray[Any]]]"
    """What is sent. A list has encoded pictures."""


def batches(pieces: Pieces) -> Iterator[PiecesBatch]:
    """Put pieces together.

    :raises InputInvalid: values of different pieces don't fit together, or have different numbers of rows.
    """
    gathered: list[Piece] = []
    size_bytes = 0
    for piece in pieces.each:
        piece_bytes = sum(array.nbytes for name, array in piece.arrays.items() if name in pieces.several)
        if gathered and (size_bytes + piece_bytes > MAX_BATCH_BYTES or len(gathered) >= MAX_BATCH_PIECES):
            yield _joined(gathered, pieces)
            gathered, size_bytes = [], 0
        gathered.append(piece)
        size_bytes += piece_bytes
    if gathered:
        yield _joined(gathered, pieces)


def _joined(gathered: Sequence[Piece], pieces: Pieces) -> PiecesBatch:
    import numpy as np

    first = gathered[0].arrays
    inputs: dict[str, NDArray[Any] | list[NDArray[Any]]] = {}
    rows: tuple[int, ...] = ()
    for name, array in first.items():
        values = [piece.arrays[name] for piece in gathered]
        if name not in pieces.several:
            inputs[name] = array
            continue
        if name in pieces.encoded:
            inputs[name], counts = values, (1,) * len(values)
        else:
            odd = next((at for at, each in enumerate(values) if not _fits(each, array)), None)
            if odd is not None:
                raise InputInvalid(
                    f"input {name!r}: {gathered[odd].name} is {values[odd].dtype}{list(values[odd].shape)} and "
                    f"{gathered[0].name} {array.dtype}{list(array.shape)}: a batch needs rows of one type and size"
                )
            inputs[name], counts = np.concatenate(values), tuple(len(each) for each in values)
        if rows and rows != counts:
            raise InputInvalid(f"input {name!r} has other numbers of rows than the inputs before it: give equally many")
        rows = counts
    return PiecesBatch(tuple(piece.name for piece in gathered), rows, inputs)


def _fits(array: "NDArray[Any]", first: "NDArray[Any]") -> bool:
    return array.ndim > 0 and array.dtype == first.dtype and array.shape[1:] == first.shape[1:]


# --- results ---------------------------------------------------------------------------------------------------------
class Share(NamedTuple):
    """A shard, as the answer tells of it."""

    node: str
    rows: int
    compute_ms: float
    replays: int


@dataclass(frozen=True, slots=True)
class PieceResult:
    """What became of one piece."""

    name: str
    outputs: "Mapping[str, NDArray[Any]]"
    shares: tuple[Share, ...]
    """The shards that had rows of it."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Who computed it, each once."""
        return tuple(dict.fromkeys(share.node for share in self.shares))

    def line(self, here: str) -> str:
        """It on one line. ``here``: the id of the node that was asked."""
        where = ", ".join(f"{node} ({'here' if node == here else 'neighbour'})" for node in self.nodes)
        replays = sum(share.replays for share in self.shares)
        again = f"  begun again {replays} times" if replays else ""
        return f"{self.name}  done  {where}  compute {sum(share.compute_ms for share in self.shares):.1f} ms{again}"


def shares_of(parameters: Mapping[str, Any]) -> tuple[Share, ...]:
    """The shards of an answer. :raises RemoteProtocolError: it does not tell them."""
    shares = []
    for text in str(parameters.get("shards", "")).split(","):
        node, *rest = text.split(":")
        try:
            rows, compute_ms, replays = rest
            shares.append(Share(printable(node), int(rows), float(compute_ms), int(replays)))
        except ValueError as error:
            raise RemoteProtocolError(
                f"the node does not tell who computed which rows ({text[:40]!r}): update it, or leave out --batch"
            ) from error
    return tuple(shares)


def results_of(batch: PiecesBatch, answer: "NodeAnswer") -> Iterator[PieceResult]:
    """The results of the pieces, in order. :raises RemoteProtocolError: the answer has other rows than the batch."""
    shares = shares_of(answer.parameters)
    ends = list(accumulate(share.rows for share in shares))
    rows = batch.rows or (ends[-1],)
    if ends[-1] != sum(rows):
        raise RemoteProtocolError(f"the answer has shards for {ends[-1]} rows, and {sum(rows)} were sent")
    for name, (begin, end) in zip(batch.names, pairwise(accumulate(rows, initial=0)), strict=True):
        own = tuple(
            share for share, share_end in zip(shares, ends, strict=True)
            if share_end > begin and share_end - share.rows < end
        )  # fmt: skip
        yield PieceResult(name, {output: array[begin:end] for output, array in answer.outputs.items()}, own)


def share_table(shares: Sequence[Share], here: str) -> Iterator[str]:
    """The lines of a table with a row for each node, the one with most rows first."""
    head = ("node", "where", "rows", "shards", "compute p50", "max ms", "again")
    rows: list[tuple[str, ...]] = []
    for node in dict.fromkeys(share.node for share in shares):
        own = [share for share in shares if share.node == node]
        times_ms = [share.compute_ms for share in own]
        rows.append((
            node, where_ran(node, here), str(sum(share.rows for share in own)), str(len(own)),
            f"{median(times_ms):.1f}", f"{max(times_ms):.1f}", str(sum(share.replays for share in own)),
        ))  # fmt: skip
    rows.sort(key=lambda row: (-int(row[2]), row[0]))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join((*texts, *numbers))
