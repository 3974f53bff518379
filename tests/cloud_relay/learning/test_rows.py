"""Rows out of exported records: their order, their paths, and all that can be wrong with data."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloud_relay.learning.recipe import Recipe, RecipeData, RecipeModel, RecipeTarget, read_recipe
from cloud_relay.learning.rows import read_rows
from protocols.base.errors import ConfigError, LocalProtocolError, MeshError, StorageError
from tests.tools.exported_fixture import passage, passages, write_export, write_recipe

MODEL = RecipeModel(estimator="ridge")


def recipe_for(path: str, target: str = "value.y", kind: str = "classes", **data: Any) -> Recipe:
    return Recipe(
        name="x", features={"a": path}, target=RecipeTarget(path=target, kind=kind),  # type: ignore[arg-type]
        data=RecipeData(**data), model=MODEL,
    )  # fmt: skip


def rows_with(folder: Path, *values: Any, recipe: Recipe | None = None, **context: Any) -> Any:
    file = write_export(
        folder / "a.parquet", [passage(n + 1, "v", n, each, **context) for n, each in enumerate(values)]
    )
    return read_rows(file, recipe or recipe_for("value.x"))


def test_rows_are_the_same_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    """An export of the same records by another relay would otherwise give another model."""
    recipe, told = read_recipe(write_recipe(tmp_path)), passages(200)
    first = read_rows(write_export(tmp_path / "a.parquet", told), recipe)
    random.Random(1).shuffle(told)
    second = read_rows(write_export(tmp_path / "b.parquet", told), recipe)
    assert first.digest() == second.digest()
    assert first.labels == ("false", "true")
    assert first.features.shape == (200, 3)
    assert (np.diff(first.time_ns) >= 0).all()
    told[0]["latitude_deg"] += 1
    assert read_rows(write_export(tmp_path / "c.parquet", told), recipe).digest() != first.digest()


@pytest.mark.parametrize(
    ("path", "value", "context", "read"),
    [
        ("value.x", {"x": 3, "y": 1}, {}, 3.0),
        ("value.x", {"x": True, "y": 1}, {}, 1.0),
        ("value.deep.1.x", {"deep": [0, {"x": 2.5}], "y": 1}, {}, 2.5),
        ("value.$odd", {"$odd": 4, "y": 1}, {}, 4.0),
        ("latitude_deg", {"y": 1}, {"latitude_deg": -33.5}, -33.5),
        ("cell.row", {"y": 1}, {"latitude_deg": -0.005}, -1.0),
        ("time.hour", {"y": 1}, {"event_utc_ns": 86_400 * 10**9 * 20_000 + 5_400 * 10**9}, 1.5),
        ("time.weekday", {"y": 1}, {"event_utc_ns": 0}, 3.0),
        ("has_receipt", {"y": 1}, {}, 1.0),
    ],
)  # fmt: skip
def test_path_leads_to_a_number(tmp_path: Path, path: str, value: Any, context: dict[str, Any], read: float) -> None:
    rows = rows_with(tmp_path, value, {**value, "y": 0}, recipe=recipe_for(path), **context)
    assert rows.features[0, 0] == pytest.approx(read, rel=1e-6)


def test_whole_values_are_read_as_numbers_truths_and_texts(tmp_path: Path) -> None:
    """A key with one number is the usual reading."""
    rows = rows_with(tmp_path, "wet", "dry", "wet", recipe=recipe_for("quality", "value"))
    assert (rows.labels, rows.target.tolist()) == (("dry", "wet"), [1, 0, 1])
    assert rows_with(tmp_path, 2.5, 3, recipe=recipe_for("quality", "value", "number")).target.tolist() == [2.5, 3.0]
    assert rows_with(tmp_path, True, False, recipe=recipe_for("quality", "value")).labels == ("false", "true")


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), 1e39, 2**2000])
def test_rows_that_lack_something_are_dropped_and_counted_or_refused(tmp_path: Path, missing: Any) -> None:
    """A model that is trained on a made-up number learns it."""
    values = [{"x": 1, "y": 0}, {"x": missing, "y": 1}, {"x": 2, "y": 1}, {"y": 1}]
    rows = rows_with(tmp_path, *values)
    assert (len(rows), rows.left_out.total) == (2, 2)
    with pytest.raises(LocalProtocolError, match=r"record 2 of v has a a \(value\.x\) that is missing"):
        rows_with(tmp_path, *values, recipe=recipe_for("value.x", missing="refuse"))
    with pytest.raises(
        LocalProtocolError, match=r"the 4 rows of 1 nodes 2 left out: 2 because of a \(value\.x\) that is"
    ):
        rows_with(tmp_path, *values, recipe=recipe_for("value.x", max_missing_share=0.4))


@pytest.mark.parametrize(
    ("recipe", "values", "said"),
    [
        (recipe_for("latitude"), [{"y": 1}], "has no 'latitude': did you mean 'latitude_deg'"),
        (recipe_for("time.minute"), [{"y": 1}], "has no 'time.minute'"),
        (recipe_for("key"), [{"y": 1}], "a (key) that is no number; 1 of v, 'veh/v/passage' for instance"),
        (recipe_for("value.x"), [{"x": [1], "y": 1}], "a (value.x) that is no number; 1 of v, '[1]' for instance"),
        (recipe_for("event_time"), [{"y": 1}], "a (event_time) that is no number; 1 of v, '2026-09-21"),
        (recipe_for("geometry"), [{"y": 1}], "a (geometry) that is no number"),
        (recipe_for("value.x"), [{"x": 1, "y": 1}] * 3, "all 3 rows of a.parquet have one class, 1"),
        (recipe_for("value.x"), [{"x": 1, "y": 1.5}], "target (value.y) that is no class; 1 of v, '1.5' for instance"),
        (recipe_for("value.x"), [{"x": 1, "y": n} for n in range(1_001)], "has 1001 classes"),
        (recipe_for("value.x", keys="rsu/**"), [{"x": 1, "y": 1}], "has no record for x"),
        (recipe_for("value.x", max_rows=1), [{"x": 1, "y": n} for n in range(3)], "more than 1 rows"),
    ],
)
def test_data_that_can_not_be_learned_from_are_named(
    tmp_path: Path, recipe: Recipe, values: list[Any], said: str
) -> None:  # fmt: skip
    with pytest.raises(MeshError) as raised:
        rows_with(tmp_path, *values, recipe=recipe)
    assert isinstance(raised.value, ConfigError | LocalProtocolError)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": "{"}, "1 because of a form that no export has"),
        ({"event_utc_ns": None}, "is not as an export has it"),
        ({"origin": None}, "has no column 'origin'"),
        ({"latitude_deg": "north"}, "1 because of a form that no export has"),
    ],
)
def test_table_of_another_program_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """It may lack columns, or have anything in them."""
    (name, cell), file = next(iter(change.items())), tmp_path / "a.parquet"
    columns = {key: [each] for key, each in passage(1, "v", 1, {"x": 1, "y": 1}).items()} | {name: [cell]}
    if name == "origin":
        del columns[name]
    pq.write_table(pa.table(columns), file)
    recipe = Recipe(
        name="x", features={"a": "value.x", "b": "time.hour", "c": "cell.row"}, target=RecipeTarget(path="value.y"),
        model=MODEL,
    )  # fmt: skip
    with pytest.raises(MeshError, match=said):
        read_rows(file, recipe)


def test_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    """Also one that was cut off, and one whose data are damaged behind a good footer."""
    file = write_export(tmp_path / "a.parquet", passages(50))
    whole, recipe = file.read_bytes(), read_recipe(write_recipe(tmp_path))
    for content in (b"", b"hello", whole[:-9], whole[:4] + bytes(2_000) + whole[2_004:]):
        file.write_bytes(content)
        with pytest.raises(StorageError, match="can't be read as Parquet"):
            read_rows(file, recipe)


GOOD = [passage(n, f"v-{n % 5}", n, {"x": n % 7, "y": "wet" if n % 2 else "dry"}) for n in range(1, 101)]


def rows_beside(folder: Path, *bad: Any, recipe: Recipe | None = None, **context: Any) -> Any:
    """The rows of an export with good records of five nodes, and records of another one with these values."""
    told = [passage(n, "v-bad", n, value, **context) for n, value in enumerate(bad, 1)]
    return read_rows(write_export(folder / "a.parquet", GOOD + told), recipe or recipe_for("value.x"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"x": "seven", "y": "wet"}, "a (value.x) that is no number"),
        ({"x": [1], "y": "wet"}, "a (value.x) that is no number"),
        ({"x": 1, "y": 1.5}, "target (value.y) that is no class"),
        ({"x": 1, "y": [1]}, "target (value.y) that is no class"),
        ({"x": 1, "y": 3}, "a target of type int, which is str for most"),
        ({"x": 1, "y": True}, "a target of type bool, which is str for most"),
        ("nothing at all", "a (value.x) that is missing or not finite"),
    ],
)
def test_records_of_another_form_are_left_out_and_told(tmp_path: Path, value: Any, reason: str) -> None:
    """Any node may send anything; nobody else's records must go unlearned because of it. It may send more than all."""
    rows = rows_beside(tmp_path, *[value] * 200)
    assert (len(rows), rows.labels) == (100, ("dry", "wet"))
    assert (rows.left_out.reasons, rows.left_out.origins) == ({reason: 200}, {"v-bad": 200})
    assert rows.digest() == rows_beside(tmp_path).digest()


def test_record_that_no_cell_can_be_told_of_is_left_out(tmp_path: Path) -> None:
    rows = rows_beside(tmp_path, {"x": 1, "y": "wet"}, recipe=recipe_for("cell.row"), latitude_deg=float("nan"))
    assert (len(rows), rows.left_out.reasons) == (100, {"a form that no export has": 1})


def test_classes_that_one_node_made_up_give_way_to_those_of_others(tmp_path: Path) -> None:
    """A thousand classes can be told apart, and any node may send one more."""
    rows = rows_beside(tmp_path, *({"x": 1, "y": f"class {n}"} for n in range(1_001)), recipe=recipe_for("value.x"))
    assert (len(rows), rows.labels, rows.left_out.total) == (100, ("dry", "wet"), 1_001)


def test_classes_that_a_recipe_names_are_the_only_ones(tmp_path: Path) -> None:
    """A node may send another one for as long as it likes, and the model would be another one than before."""
    target = RecipeTarget(path="value.y", classes=("dry", "wet"))
    recipe = Recipe(name="x", features={"a": "value.x"}, target=target, model=MODEL)
    rows = rows_beside(tmp_path, *[{"x": 1, "y": "ice"}] * 200, recipe=recipe)
    assert (len(rows), rows.labels) == (100, ("dry", "wet"))
    assert rows.left_out.reasons == {"target (value.y) that is no class": 200}


def test_half_of_what_most_nodes_send_can_not_be_left_out(tmp_path: Path) -> None:
    """Then the path is wrong, or the rest would mislead; the figures say so."""
    told = [passage(n, f"v-{n % 5}", n, {"x": "far" if n % 5 < 3 else 1, "y": n % 2}) for n in range(1, 101)]
    with pytest.raises(LocalProtocolError, match=r"100 rows of 5 nodes 60 left out: .* That is 60% of the rows"):
        read_rows(write_export(tmp_path / "a.parquet", told), recipe_for("value.x"))
