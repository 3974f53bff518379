"""One chunk of an inference over many records: rows of the data in, rows of predictions out.

Invariants:

- A chunk depends on nothing but the data, the model and its number, so whoever computes it again gets the same rows.
- The model is loaded as a node loads it: manifest, digest and golden vectors are checked in each process.
- A prediction names the record, by ``origin`` and ``sequence``, and the model, by its digest as nodes name it.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from cloud_relay.learning.candidate import check_form, outputs_where_possible
from cloud_relay.learning.estimators import LABEL, PROBABILITY, VALUE
from cloud_relay.learning.rows import LeftOut, features_in
from cloud_relay.learning.tables import opened_table, write_table
from meshnode.models import LoadedModel, ModelSpec, load_model
from protocols.base.errors import ModelInvalid

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_ROWS: Final = 16_384
"""Rows of one chunk. A second or two of work, which is what a kill loses for each process."""
CONTEXT: Final = ("origin", "sequence", "event_utc_ns")


class ApplyOrder(Struct, frozen=True):
    """What is computed. Two orders that are equal give equal predictions."""

    data: str
    """The Parquet file."""
    data_sha256: str
    model: str
    """The ONNX file."""
    model_digest: str
    name: str
    features: dict[str, str]
    """Paths by name, in the order in which the model takes them."""
    rows: int
    """In the file."""
    keys: str | None = None
    rule: str | None = None
    chunk_rows: int = CHUNK_ROWS

    @property
    def chunks(self) -> int:
        """How many there are."""
        return -(-self.rows // self.chunk_rows)


class ChunkRows(Struct):
    """The rows of a chunk that have all features."""

    features: Any
    """f4[rows, features]."""
    context: dict[str, list[Any]]
    """By the names in ``CONTEXT``."""
    left_out: LeftOut
    """Rows that lack a feature, or that the model can't compute."""

    def without(self, can: "NDArray[Any]") -> "ChunkRows":
        """The rows that the model can compute, a truth value for each. The others are counted."""
        if can.all():
            return self
        for origin, computed in zip(self.context["origin"], can.tolist(), strict=True):
            if not computed:
                self.left_out.add("features that the model can't compute", origin)
        context = {name: [each for each, kept in zip(column, can.tolist(), strict=True) if kept]
                   for name, column in self.context.items()}  # fmt: skip
        return ChunkRows(self.features[can], context, self.left_out)


def rows_of_chunk(order: ApplyOrder, number: int) -> ChunkRows:
    """Read a chunk. :raises ConfigError: a path leads nowhere. :raises StorageError: the data can't be read."""
    import numpy as np

    begin = number * order.chunk_rows
    numbers: list[list[float]] = []
    context: dict[str, list[Any]] = {name: [] for name in CONTEXT}
    left_out = LeftOut()
    with opened_table(Path(order.data)) as table:
        chosen = features_in(
            table,
            tuple(order.features.values()),
            order.keys,
            order.rule,
            begin,
            begin + order.chunk_rows,
            left_out,
        )
        for row, found in chosen:
            numbers.append(found)
            for name in CONTEXT:
                context[name].append(row[name])
    return ChunkRows(np.asarray(numbers, np.float32).reshape(-1, len(order.features)), context, left_out)


def loaded(order: ApplyOrder) -> LoadedModel:
    """The model of an order. :raises ModelInvalid: it can't be loaded, or is another one than was ordered."""
    model = load_model(ModelSpec(order.name, Path(order.model)))
    if model.digest != order.model_digest:
        raise ModelInvalid(f"{order.model} has changed meanwhile: begin anew")
    return model


def write_chunk(path: Path, order: ApplyOrder, rows: ChunkRows, outputs: Mapping[str, Any], model: LoadedModel) -> None:
    """Write the predictions of a chunk, whole or not at all. :raises OSError: they can't be written."""
    import numpy as np

    count = len(rows.features)
    columns: dict[str, Any] = {name: rows.context[name] for name in CONTEXT}
    columns["model"] = [order.model_digest] * count
    labels = model.manifest.labels
    if LABEL in check_form(model):
        told = outputs.get(LABEL, np.zeros(0, np.int64))
        columns[LABEL] = told
        columns["label_name"] = [labels[each] if 0 <= each < len(labels) else str(each) for each in told.tolist()]
        columns[PROBABILITY] = [list(map(float, each)) for each in outputs.get(PROBABILITY, ())]
    else:
        columns[VALUE] = outputs.get(VALUE, np.zeros((0, 1), np.float32))[:, 0]
    fresh = path.with_name(f".{path.name}.part")
    try:
        about = {"reasons": rows.left_out.reasons, "origins": rows.left_out.origins}
        write_table(fresh, columns, {"left_out": msgspec.json.encode(about).decode()}, PREDICTED)
        fresh.replace(path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


PREDICTED: Final = {
    "origin": "string", "sequence": "int64", "event_utc_ns": "int64", "model": "string", LABEL: "int64",
    "label_name": "string", PROBABILITY: "list<float>", VALUE: "float",
}  # fmt: skip
"""The columns of predictions and their types in Arrow; a model has either label and probability, or value."""


def compute_chunk(order: ApplyOrder, model: LoadedModel, number: int, path: Path) -> tuple[int, int]:
    """Read a chunk, run the model and write the predictions. Returns how many there are, and how many rows were left
    out.

    :raises MeshError: the data can't be read, or the model takes others. :raises OSError: they can't be written.
    """
    rows = rows_of_chunk(order, number)
    outputs, can = outputs_where_possible(model, rows.features)
    rows = rows.without(can)
    write_chunk(path, order, rows, outputs, model)
    return len(rows.features), rows.left_out.total
