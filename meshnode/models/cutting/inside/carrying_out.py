"""The child process: one order is carried out, then it ends."""

import hashlib
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from meshnode.models.children import end_with, is_about_memory
from meshnode.models.cutting.orders import (
    GRAPH_FILE,
    CuttingOrder,
    CuttingReply,
    DescribedReply,
    DescribeOrder,
    MadeStage,
    RefusalReply,
    StagesOrder,
    StagesReply,
)
from meshnode.models.manifest import Manifest
from meshnode.models.model import LoadedModel, ModelSpec, load_model
from meshnode.models.weights import digest_of, size_with_weights
from protocols.base.errors import MeshError, ModelInvalid, StorageError

_OOM_SCORE: Final = 500
"""Of two processes the kernel ends this one before the node."""
_MAX_WHY: Final = 300
_LIMIT_BYTES: Final = 4 << 30
"""A file may be small and its constants large: `ConstantOfShape` makes gigabytes of a few bytes."""
_COPIES: Final = 16
"""How often the weights may be in memory: as files, in the whole, in two graphs and their messages, in stages."""


def carry_out(parent: int) -> None:
    """Read an order from standard input, carry it out, and write the reply to standard output."""
    end_with(parent)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    reply_to = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    order: CuttingOrder = msgspec.json.decode(sys.stdin.buffer.read(), type=CuttingOrder)
    reply = _reply(order)
    with open(reply_to, "wb") as out:
        out.write(msgspec.json.encode(reply))
    os._exit(0)  # ONNX Runtime's threads need no farewell


def _reply(order: CuttingOrder) -> CuttingReply:
    spec = order.model.spec
    try:
        _limit_memory(spec.path)
        return _described(order, spec) if isinstance(order, DescribeOrder) else _made(order, spec)
    except StorageError as error:
        return RefusalReply(str(error), is_storage=True)
    except (MeshError, MemoryError) as error:
        return RefusalReply(_why(spec.name, error))
    except OSError as error:
        return RefusalReply(f"stages of model {spec.name!r} can't be written: {error}", is_storage=True)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime and onnx_ir raise anything, and somebody waits for a reply
        return RefusalReply(_why(spec.name, error))


def _why(model: str, error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if is_about_memory(error):
        limit_mib = resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20
        return f"model {model!r} can't be cut: that needs more memory than the {limit_mib} MiB that it may take"
    return str(error) if isinstance(error, MeshError) else f"model {model!r} can't be cut: {text[:_MAX_WHY]}"


def _limit_memory(path: Path) -> None:
    with suppress(OSError, ModelInvalid):  # loading the model says what is wrong
        limit_bytes = _LIMIT_BYTES + _COPIES * size_with_weights(path)
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _described(order: DescribeOrder, spec: ModelSpec) -> DescribedReply:
    from meshnode.models.cutting.inside.search import describe

    folder = Path(order.model.folder)
    graph = folder / GRAPH_FILE
    description = describe(spec, folder, graph)
    return DescribedReply(description, hashlib.sha256(graph.read_bytes()).hexdigest())


def _made(order: StagesOrder, spec: ModelSpec) -> StagesReply:
    from meshnode.models.cutting.inside.equality import check_chain
    from meshnode.models.cutting.inside.extraction import boundaries, extracted
    from meshnode.models.cutting.inside.graphs import ModelGraph, bound_shapes
    from meshnode.models.cutting.inside.samples import samples
    from meshnode.models.cutting.manifests import stage_manifest

    whole = load_model(spec)
    graph = ModelGraph(Path(order.graph).read_bytes(), order.inputs, order.outputs)
    folder, made, loaded, rules = Path(order.model.folder), [], [], whole.manifest.split
    for number, boundary in enumerate(boundaries(graph, order.ends)):
        content = extracted(graph, boundary, rules.boundary)
        stage, model = _written(folder, content, stage_manifest(whole.manifest, boundary.takes), whole, number)
        made.append(stage)
        loaded.append(model)
    error = check_chain(whole, loaded, samples(whole, bound_shapes(whole)), rules.boundary_error)
    return StagesReply(tuple(replace(stage, error=error) for stage in made))


def _written(folder: Path, content: bytes, text: str, whole: LoadedModel, number: int) -> tuple[MadeStage, LoadedModel]:
    from meshnode.models.cutting.manifests import read_stage_manifest

    manifest = read_stage_manifest(text) if text else Manifest()
    digest = digest_of(content, {}, manifest.results())
    path = folder / f"{digest}.onnx"
    path.write_bytes(content)
    if text:
        path.with_suffix(".toml").write_text(text, "utf-8")
    spec = whole.spec
    name = f"{spec.name[:180]}, stage {number + 1}"
    model = load_model(ModelSpec(name, path, spec.threads, False, spec.optimisation, {}, digest, spec.providers))
    return MadeStage(digest, len(content), model.inputs, model.outputs, text), model
