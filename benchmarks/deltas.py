"""``python -m benchmarks.deltas``: how many bytes a changed model takes to nodes that have the one before.

Each model is published by a relay as release 1, changed, and published as release 2. What a node fetches is counted:
the delta with the index of its chunks, the description of the release, and the metadata. Then the delta is applied as
a node does it. ``MAX_SHARE`` is for 5 % of the weights of a model in floating point, changed by about 1 % each.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import command
from benchmarks.cut_models import CASES, PackageMissing
from meshnode.models.deltas import apply_delta
from meshnode.models.deltas.tensors import StoredTensor, stored_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloud_relay.releases.repository import ReleaseRepository
    from protocols.releases.catalogue import Description

MAX_SHARE: Final = 0.06
SMALL: Final = 0.05
_FLOAT: Final = 1
_MODELS: Final = ("plate detection", "plate recognition", "plate detection, QDQ")


@dataclass(slots=True)
class DeltaFigures:
    """What was found about one change of one model."""

    model: str
    change: str
    model_bytes: int
    delta_bytes: int
    travelling_bytes: int
    """With everything else that a node fetches."""
    method: str
    make_s: float
    apply_s: float
    is_promised: bool

    @property
    def share(self) -> float:
        """Of the model that travels."""
        return self.travelling_bytes / self.model_bytes


def made_up(path: Path, layers: int, width: int) -> Path:
    """A model of matrices in floating point, without the library of ONNX at the node."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    names = ["x", *(f"t{at}" for at in range(1, layers)), "y"]
    weights = [
        numpy_helper.from_array((random.standard_normal((width, width)) / width**0.5).astype("f4"), f"w{at}")
        for at in range(layers)
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]]) for at in range(layers)], "made_up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def changed(content: bytes, share: float, seed: int) -> bytes:
    """A model of which a share of the weights has other values, each by about 1 %; of whole numbers the last bits."""
    import numpy as np

    random, out = np.random.default_rng(seed), bytearray(content)
    for tensor in stored_tensors(content):
        before = content[tensor.at : tensor.at + tensor.size_bytes]
        after = _noisy(before, tensor, share, random)
        out[tensor.at : tensor.at + tensor.size_bytes] = after.tobytes()
    return bytes(out)


def _noisy(before: bytes, tensor: StoredTensor, share: float, random: Any) -> "NDArray[Any]":
    import numpy as np

    if tensor.kind[0] == _FLOAT:
        weights = np.frombuffer(before, "f4").copy()
        where = random.random(weights.size) < share
        weights[where] *= (1 + 0.01 * random.standard_normal(int(where.sum()))).astype("f4")
        return weights
    numbers = np.frombuffer(before, np.uint8).copy()
    if tensor.item_bytes == 1:
        where = random.random(numbers.size) < share
        numbers[where] ^= random.integers(1, 4, int(where.sum()), np.uint8)
    return numbers


def measure(name: str, model: Path, folder: Path, changes: dict[str, float]) -> Iterator[DeltaFigures]:
    """Publish a model and changed ones, and count."""
    from securesystemslib.signer import CryptoSigner

    from cloud_relay.releases.publishing import publish
    from cloud_relay.releases.repository import opened

    content = model.read_bytes()
    for number, (change, share) in enumerate(changes.items()):
        place = folder / str(number)
        place.mkdir()
        new = changed(content, share, number + 1)
        with opened(place / "repository") as repository:
            signers = {role: CryptoSigner.generate_ed25519()
                       for role in ("timestamp", "snapshot", "targets", "rollouts", "models")}  # fmt: skip
            repository.create([CryptoSigner.generate_ed25519() for _ in range(2)], 2, signers)
            (place / "model.onnx").write_bytes(content)
            publish(repository, place / "model.onnx")
            (place / "model.onnx").write_bytes(new)
            begin_s = time.monotonic()
            description = publish(repository, place / "model.onnx")
            make_s = time.monotonic() - begin_s
            repository.commit()
            yield _counted(repository, description, name, change, content, new, make_s)


def _counted(
    repository: "ReleaseRepository", description: "Description", name: str, change: str, old: bytes, new: bytes,
    make_s: float,
) -> DeltaFigures:  # fmt: skip
    from cloud_relay.releases.shown import read_shown

    shown = read_shown(repository.folder)
    assert shown is not None
    listed = repository.target(f"{description.path}/{description.counter}.json")
    assert listed is not None
    (delta,) = description.deltas or (None,)
    content = description.files[0].content if delta is None else delta.content
    data = repository.shelf.read(content)
    begin_s = time.monotonic()
    made = data if delta is None else apply_delta(delta.method, old, data, len(new))
    apply_s = time.monotonic() - begin_s
    assert made == new
    index_bytes = 32 * content.chunks
    return DeltaFigures(
        name, change, len(new), len(data), len(data) + index_bytes + listed.length + shown.news.bundle_bytes,
        "whole file" if delta is None else delta.method, make_s, apply_s, False,
    )  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = command.parser("deltas", __doc__, f"5 % of the weights take more than {MAX_SHARE:.0%} of the bytes")
    parser.add_argument("--quick", action="store_true", help="the smaller models only")
    options: argparse.Namespace = parser.parse_args()
    found: list[DeltaFigures] = []
    missing: list[str] = []
    print(f"{'model':28}{'changed weights':>18}{'MB':>8}{'delta kB':>10}{'delta':>8}{'travels':>9}{'method':>12}"
          f"{'publish s':>11}{'apply ms':>10}")  # fmt: skip
    with command.measuring("deltas") as folder:
        for name, path in _models(folder, options.quick, missing):
            place = folder / name
            place.mkdir()
            changes = {"1 %": 0.01, "5 %": SMALL, "all": 1.0}
            for each in measure(name, path, place, changes):
                each.is_promised = each.change == "5 %" and "QDQ" not in name
                found.append(each)
                _show(each)
    missed = [
        f"{each.model}, {each.change} of the weights: {each.share:.1%} of its bytes, at most {MAX_SHARE:.0%}"
        for each in found if each.is_promised and each.share > MAX_SHARE
    ] + missing  # fmt: skip
    return command.finish(options, {"deltas": [asdict(each) | {"share": each.share} for each in found]}, missed)


def _models(folder: Path, quick: bool, missing: list[str]) -> Iterator[tuple[str, Path]]:
    from benchmarks.cut_models import cut_spec

    for name in _MODELS[:1] if quick else _MODELS:
        assert name in CASES
        try:
            yield name, cut_spec(name, folder).path
        except PackageMissing as error:
            missing.append(f"{name} was not tried: {error}")
    yield "made up, 4 MB", made_up(folder / "small.onnx", 4, 512)
    if not quick:
        yield "made up, 64 MB", made_up(folder / "large.onnx", 16, 1_024)


def _show(each: DeltaFigures) -> None:
    print(
        f"{each.model:28}{each.change:>18}{each.model_bytes / 1e6:8.1f}{each.delta_bytes / 1e3:10.1f}"
        f"{each.delta_bytes / each.model_bytes:8.1%}{each.share:9.1%}{each.method:>12}{each.make_s:11.2f}"
        f"{each.apply_s * 1e3:10.1f}", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
