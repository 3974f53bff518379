"""An inference over many records as a whole: it can be interrupted at any time, and the same call goes on.

    P.parquet.parts/order.json      what is computed; another order does not go on with it
    P.parquet.parts/00000007.parquet   a chunk that is done; it got its name when it was whole

At the end the chunks become ``P.parquet``, in the order of the data, and the folder is removed.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from cloud_relay.export.whole_file import whole_file
from cloud_relay.learning.applying.chunks import ApplyOrder
from cloud_relay.learning.applying.processes import path_of_chunk
from cloud_relay.learning.rows import LeftOut
from cloud_relay.learning.tables import Joining, opened_table
from protocols.base.errors import LocalProtocolError, MeshError, StorageError

ORDER: Final = "order.json"
PARTS: Final = ".parts"
Computing = Callable[[ApplyOrder, Sequence[int], Path], Iterator[tuple[int, int, int]]]
"""Computes chunks into a folder; yields their numbers, predictions, and rows left out."""


class Applied(NamedTuple):
    """What came of it."""

    predictions: int
    left_out: LeftOut
    """Rows that lack a feature, or that the model can't compute."""
    resumed: int
    """Chunks that were there already."""


def apply_model(
    order: ApplyOrder, out: Path, compute: Computing, told: Callable[[int, int], None], *, overwrite: bool = False
) -> Applied:
    """Compute all chunks that are missing, and write ``out``. ``told``: called with the chunks that are done, and all.

    :raises LocalProtocolError: the file is there, or its parts are of another order. :raises MeshError: as ``compute``.
    :raises StorageError: something can't be written.
    """
    if out.exists() and not overwrite:
        raise LocalProtocolError(f"{out} is there already: name another file, or add --overwrite")
    folder = out.with_name(out.name + PARTS)
    try:
        _begin(order, folder)
        missing = [number for number in range(order.chunks) if not _is_done(path_of_chunk(folder, number))]
        done = resumed = order.chunks - len(missing)
        told(done, order.chunks)
        for _ in compute(order, missing, folder):
            done += 1
            told(done, order.chunks)
        predictions, left_out = _join(order, folder, out, overwrite)
        shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(f"{folder} can't be written ({error.strerror or error}): free space on that disk") from error
    return Applied(predictions, left_out, resumed)


def _begin(order: ApplyOrder, folder: Path) -> None:
    path = folder / ORDER
    if not folder.exists():
        folder.mkdir(mode=0o700)
    if not path.exists():
        if any(folder.iterdir()):
            raise LocalProtocolError(f"{folder} holds other things: remove it, or name another file")
        fresh = folder / f".{ORDER}"
        fresh.write_bytes(msgspec.json.encode(order))
        fresh.replace(path)
        return
    try:
        before = msgspec.json.decode(path.read_bytes(), type=ApplyOrder)
    except msgspec.DecodeError as error:
        raise StorageError(f"{path} is damaged: remove {folder}") from error
    for field in ("data_sha256", "model_digest", "features", "keys", "rule", "chunk_rows"):
        if getattr(before, field) != getattr(order, field):
            raise LocalProtocolError(
                f"{folder} was begun with another {field}, and results of both would be mixed: remove it, or name "
                "another file"
            )


def _is_done(path: Path) -> bool:
    """Whether a chunk is there, and whole also after the machine went down."""
    if not path.exists():
        return False
    try:
        with opened_table(path) as table:
            for _ in table.rows(table.columns[:1], 65_536):
                pass
    except MeshError:
        return False
    return True


def _join(order: ApplyOrder, folder: Path, out: Path, overwrite: bool) -> tuple[int, LeftOut]:
    about = {
        "meshnode": msgspec.json.encode({
            "form": 1, "data_sha256": order.data_sha256, "model": order.model_digest, "name": order.name,
            "features": order.features,
        }).decode()
    }  # fmt: skip
    with whole_file(out, overwrite=overwrite) as file:
        joining, left_out = Joining(file, about), LeftOut()
        for number in range(order.chunks):
            told = joining.add(path_of_chunk(folder, number))
            left_out.join(**msgspec.json.decode(told.get("left_out", "{}")))
        joining.close()
    return joining.rows, left_out
