"""Learns a classifier by scikit-learn from half of the vehicles, and judges it by the others."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo.motion.series import COLUMNS, HOP, LABELS, LENGTH, RATE_HZ, Drive, drives, windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NODE: Final = """[node]
id = "imu-1"
position = {{ latitude_deg = 48.7655, longitude_deg = 11.4237, accuracy_m = 5.0 }}

[models.motion]
path = "motion.onnx"

[sensors.imu]
driver = "series"
file = "drive.parquet"
key = "imu"
model = "motion"
length = {length}
hop = {hop}
labels = {labels}
"""


def learn(folder: Path, at_most: int | None = None) -> dict[str, Any]:
    """Learn from ``at_most`` vehicles; write the model, a drive that it has not seen, and a configuration. Returns how
    well it judges."""
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    every = list(islice(drives(), at_most))
    learned, judged = every[::2], every[1::2]
    values, labels = joined(learned)
    forest = RandomForestClassifier(60, max_depth=10, min_samples_leaf=3, class_weight="balanced", random_state=1)
    forest.fit(values.reshape(len(values), -1), labels)
    tested, truth = joined(judged)
    right = forest.predict(tested.reshape(len(tested), -1)) == truth
    recalls = {
        name: round(float(right[truth == number].mean()), 3)
        for number, name in enumerate(LABELS) if number in truth
    }  # fmt: skip
    write_model(folder / "motion.onnx", forest)
    write_drive(folder, max(judged, key=lambda drive: len(np.unique(drive.labels)) * 10_000 + len(drive.labels)))
    (folder / "node.toml").write_text(_NODE.format(length=LENGTH, hop=HOP, labels=list(LABELS)))
    return {
        "vehicles": len(every), "windows_learned": len(values), "windows_judged": len(tested),
        "accuracy": round(float(right.mean()), 3), "recalls": recalls,
    }  # fmt: skip


def joined(of: list[Drive]) -> "tuple[NDArray[Any], NDArray[Any]]":
    """The windows of several drives."""
    import numpy as np

    values, labels = zip(*(windows(drive) for drive in of), strict=True)
    return np.concatenate(values), np.concatenate(labels)


def write_model(path: Path, forest: Any) -> None:
    """The forest as ONNX: ``window float32[N, channels, LENGTH]`` to ``probabilities float32[N, labels]``."""
    import onnx
    from onnx import TensorProto, helper
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    flat = [("flat", FloatTensorType([None, len(COLUMNS) * LENGTH]))]
    model = to_onnx(forest, initial_types=flat, options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3})
    graph = model.graph
    graph.node.insert(0, helper.make_node("Flatten", ["window"], ["flat"], axis=1))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", len(COLUMNS), LENGTH]))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_drive(folder: Path, drive: Drive) -> None:
    """The same series as CSV and as Parquet."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    times = [round(number / RATE_HZ, 3) for number in range(len(drive.sensed))]
    columns = [[round(float(value), 4) for value in column] for column in drive.sensed.T]
    write_table(pa.table(dict(zip(("time_s", *COLUMNS), [times, *columns], strict=True))), folder / "drive.parquet")
    lines = [",".join(("time_s", *COLUMNS)), *(",".join(map(str, row)) for row in zip(times, *columns, strict=True))]
    (folder / "drive.csv").write_text("\n".join(lines) + "\n")
