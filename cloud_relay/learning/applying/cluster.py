"""Chunks over a Ray cluster that is there already: rows are read and written here, and models computed there.

So machines of the cluster need this package and ONNX Runtime, but neither the file nor pyarrow, and a cluster gains
something for models that take longer than reading their rows. A process of its own makes the first connection: Ray's
native part waits for minutes for an address where nobody answers, and ends the process whose machine has no part in the
cluster. No cluster is started here.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cloud_relay.learning.applying.chunks import ApplyOrder, ChunkRows, loaded, rows_of_chunk, write_chunk
from cloud_relay.learning.applying.processes import MAX_ATTEMPTS, path_of_chunk
from cloud_relay.learning.candidate import outputs_where_possible
from meshnode.models import LoadedModel, ModelSpec, load_model
from meshnode.models.children import child_command, child_environment
from protocols.base.errors import ConfigError, InferenceError, ModelInvalid

PER_CPU: Final = 2
"""Chunks that are handed over at a time for each processor, so that none waits for work and rows don't pile up."""
CONNECT_S: Final = 20.0
"""How long to wait until Ray has joined, which takes half a second where nothing else runs."""
_LOOK_AGAIN_S: Final = 5.0
_MAX_MODELS_KEPT: Final = 4
_models: dict[str, LoadedModel] = {}
"""Of a process of the cluster, by digest."""
ModelFiles = Mapping[str, bytes]


def on_ray(
    order: ApplyOrder, numbers: Sequence[int], folder: Path, address: str
) -> Iterator[tuple[int, int, int]]:  # fmt: skip
    """Compute chunks as :func:`cloud_relay.learning.applying.processes.on_processes` does, on a cluster.

    :raises ConfigError: Ray is missing, or the cluster can't be used. :raises MeshError: as there.
    """
    model = loaded(order)
    rows: dict[int, ChunkRows] = {}

    def read() -> Iterator[tuple[int, Any]]:
        for number in numbers:
            rows[number] = rows_of_chunk(order, number)
            yield number, rows[number].features

    files = {path.name: path.read_bytes() for path in Path(order.model).parent.iterdir() if path.is_file()}
    for number, (outputs, can) in outputs_on_ray(address, files, Path(order.model).name, order.model_digest, read()):
        of_chunk = rows.pop(number).without(can)
        write_chunk(path_of_chunk(folder, number), order, of_chunk, outputs, model)
        yield number, len(of_chunk.features), of_chunk.left_out.total


def outputs_on_ray(
    address: str, files: ModelFiles, name: str, digest: str, chunks: Iterator[tuple[int, Any]]
) -> Iterator[tuple[int, tuple[dict[str, Any], Any]]]:  # fmt: skip
    """Run a model on all processors of a cluster. ``files``: those of its folder; ``name``: which of them it is.
    ``chunks``: numbers with features, f4[rows, features]; no more are taken than are under way.

    :raises ConfigError: Ray is missing, or the cluster can't be used. :raises InferenceError: a chunk is lost again and
        again, or the model fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody outside
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"--ray {address} needs the extra 'ray': pip install 'meshnode[ray]'") from error
    _try_to_join(address)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
    try:
        remote, shared = ray.remote(num_cpus=1, max_retries=0)(_outputs_there), ray.put(dict(files))
        waiting: deque[tuple[int, Any]] = deque()
        under_way: dict[Any, tuple[int, Any]] = {}
        attempts: Counter[int] = Counter()
        while True:
            window = max(1, int(ray.cluster_resources().get("CPU", 1))) * PER_CPU
            while len(under_way) < window:
                chunk = waiting.popleft() if waiting else next(chunks, None)
                if chunk is None:
                    break
                attempts[chunk[0]] += 1
                under_way[remote.remote(shared, name, digest, chunk[1])] = chunk
            if not under_way:
                return
            ended, _ = ray.wait(list(under_way), num_returns=1, timeout=_LOOK_AGAIN_S)
            for reference in ended:
                chunk = under_way.pop(reference)
                try:
                    outputs = ray.get(reference)
                except lost as error:
                    if attempts[chunk[0]] >= MAX_ATTEMPTS:
                        raise InferenceError(
                            f"chunk {chunk[0]} was lost {MAX_ATTEMPTS} times with its process: is memory short there?"
                        ) from error
                    waiting.append(chunk)
                    continue
                except ray.exceptions.RayError as error:
                    told = str(getattr(error, "cause", None) or error).strip().splitlines()
                    raise InferenceError(
                        f"a machine of the Ray cluster at {address!r} can't compute: {told[0] if told else error!r}"
                    ) from error
                yield chunk[0], outputs
    finally:
        ray.shutdown()


def _outputs_there(files: ModelFiles, name: str, digest: str, features: Any) -> tuple[dict[str, Any], Any]:
    """The program of a chunk on a machine of the cluster. Returns what ``outputs_where_possible`` does.
    :raises ModelInvalid: the model is another one there, because
    of a file that is missing, or can't be loaded."""
    if digest not in _models:
        with tempfile.TemporaryDirectory(prefix="model-") as folder:
            for each, content in files.items():
                (Path(folder) / Path(each).name).write_bytes(content)
            model = load_model(ModelSpec(Path(name).stem, Path(folder) / name))
        if model.digest != digest:
            raise ModelInvalid(f"model {name} has the digest {model.digest} there, and {digest} here")
        while len(_models) >= _MAX_MODELS_KEPT:
            _models.pop(next(iter(_models)))
        _models[digest] = model
    return outputs_where_possible(_models[digest], features)


def _try_to_join(address: str) -> None:
    """Join in a process of its own. :raises ConfigError: that fails; names the address."""
    try:
        tried = subprocess.run(  # noqa: S603 - a module of ours
            child_command("cloud_relay.learning.applying.cluster", address), env=child_environment(), check=False,
            capture_output=True, text=True, timeout=CONNECT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r} within {CONNECT_S:g} s: give HOST:6379 of its head, or auto"
        ) from error
    if tried.returncode:
        told = tried.stdout.strip()[-300:] or "this machine has no part in it; join with 'ray start --address …'"
        raise ConfigError(f"the Ray cluster at {address!r} can't be used: {told}")


if __name__ == "__main__":
    joined: Any = importlib.import_module("ray")
    try:
        joined.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # noqa: BLE001 - Ray and gRPC raise errors of many kinds here
        sys.stdout.write(" ".join(str(error).split()))
        sys.exit(1)
    joined.shutdown()
