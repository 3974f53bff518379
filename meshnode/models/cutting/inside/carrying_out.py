"""The child process: one order is carried out, then it ends."""

import hashlib
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from meshnode.models.children import end_with
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
from meshnode.models.weights import digest_of, weight_files
from protocols.base.errors import MeshError, ModelInvalid

_OOM_SCORE: Final = 500
"""Of two processes the kernel ends this one before the node."""
_LIMIT_BYTES: Final = 2 << 30
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
    except MeshError as error:
        return RefusalReply(str(error))
    except MemoryError:
        return RefusalReply(f"model {spec.name!r} can't be cut: it needs more memory than the child process may take")
    except OSError as error:
        return RefusalReply(f"stages of model {spec.name!r} can't be written: {error}", is_storage=True)


def _limit_memory(path: Path) -> None:
    with suppress(OSError, ModelInvalid):  # loading the model says what is wrong
        names = weight_files(path.read_bytes())
        size_bytes = sum(file.stat().st_size for file in (path, *(path.parent / name for name in names)))
        limit_bytes = _LIMIT_BYTES + _COPIES * size_bytes
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

    whole = load_model(spec)
    graph = ModelGraph(Path(order.graph).read_bytes(), order.inputs, order.outputs)
    folder, made, loaded = Path(order.model.folder), [], []
    for number, boundary in enumerate(boundaries(graph, order.ends)):
        content = extracted(graph, boundary)
        stage, model = _written(folder, content, boundary.takes, whole, number)
        made.append(stage)
        loaded.append(model)
    check_chain(whole, loaded, samples(whole, bound_shapes(whole)))
    return StagesReply(tuple(made))


def _written(
    folder: Path, content: bytes, takes: tuple[str, ...], whole: LoadedModel, number: int
) -> tuple[MadeStage, LoadedModel]:
    from meshnode.models.cutting.manifests import read_stage_manifest, stage_manifest

    text = stage_manifest(whole.manifest, takes)
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
