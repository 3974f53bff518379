"""A process of ``benchmarks.shards``: a node that divides batches, or ONNX Runtime without anything around it.

It reads one JSON object a line from its standard input, and answers each with one on its standard output. The first is
a :class:`Setting`, and its answer comes when all is loaded. Then ``{"frames": n}`` has the first ``n`` frames computed;
the answer tells how long that took, who computed how many, and the digest of the outputs.
"""

import asyncio
import hashlib
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from meshnode.config.sections import NodeConfig
    from meshnode.node import Node

MODEL: Final = "plate"
DEADLINE_MS: Final = 600_000
_PEERS_S: Final = 60.0


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is."""

    kind: Literal["node", "bare"]
    folder: str
    """Has the model ``plate.onnx`` with its manifest, the frames as ``frames/*.jpg``, and certificates by name."""
    name: str = ""
    host: str = "127.0.0.1"
    seeds: tuple[tuple[str, int], ...] = ()
    core: int | None = None
    """The only core that it, its threads and its worker processes may use; None: all."""
    encoded: bool = True
    """Whether frames are given as JPEG, or as tensors that were prepared beforehand."""
    timed_ms: float | None = None
    """The model is one that takes this time without using the processor; None: the detector."""
    neighbours: int = 0
    """How many have to offer the model before it is ready."""


class Order(msgspec.Struct, frozen=True):
    """A batch."""

    frames: int
    alone: bool = False
    """Whether neighbours are left out."""


class Ready(msgspec.Struct, frozen=True):
    """It can be given orders. ``port``: of the node."""

    port: int = 0


class Done(msgspec.Struct, frozen=True):
    """A batch is computed."""

    seconds: float
    digest: str
    """Of all outputs of all frames, in their order."""
    ran: dict[str, int] = {}
    """Frames by node."""
    stolen: int = 0
    """Further runs that were begun, because a frame was late or its node idle."""


def frames_of(setting: Setting) -> list[Any]:
    """The frames of the folder, as the model is given them."""
    contents = [path.read_bytes() for path in sorted((Path(setting.folder) / "frames").glob("*.jpg"))]
    if setting.encoded:
        return contents
    from meshnode.models import read_manifest
    from meshnode.models.plate import INPUT
    from meshnode.models.preprocessing import prepared

    steps = read_manifest(Path(setting.folder) / "plate.onnx").preprocessing[INPUT]
    return [prepared(content, steps, "f4") for content in contents]


def digest_of(outputs: Mapping[str, Any]) -> str:
    """Of joined outputs, by name."""
    digest = hashlib.sha256()
    for name in sorted(outputs):
        digest.update(name.encode())
        digest.update(memoryview(outputs[name]).cast("B"))
    return digest.hexdigest()


# --- ONNX Runtime alone ----------------------------------------------------------------------------------------------
class _Bare:
    """One session, as a node loads it, and a loop around it."""

    def __init__(self, setting: Setting) -> None:
        import onnxruntime

        from meshnode.models import read_manifest
        from meshnode.models.plate import INPUT

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(setting.folder) / "plate.onnx"
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._steps = read_manifest(path).preprocessing[INPUT]
        self._input, self._encoded, self._frames = INPUT, setting.encoded, frames_of(setting)

    def compute(self, count: int) -> Done:
        import numpy as np

        from meshnode.models.preprocessing import prepared

        names = [output.name for output in self._session.get_outputs()]
        results: list[list[Any]] = []
        began_s = time.perf_counter()
        for frame in itertools.islice(itertools.cycle(self._frames), count):
            tensor = prepared(frame, self._steps, "f4") if self._encoded else frame
            results.append(self._session.run(names, {self._input: tensor}))
        seconds = time.perf_counter() - began_s
        outputs = {name: np.concatenate([each[at] for each in results]) for at, name in enumerate(names)}
        return Done(seconds, digest_of(outputs))


# --- a node ----------------------------------------------------------------------------------------------------------
def _config(setting: Setting) -> "NodeConfig":
    from meshnode.config.sections import DiscoverySection, IdentitySection, ListenSection, NodeConfig, NodeSection
    from meshnode.http.section import HttpSection
    from meshnode.inference.section import InferenceSection, ModelSection, ModelsSection
    from meshnode.links.transport import Address
    from protocols.base.ids import node_id
    from protocols.wire.readings import Position

    home = Path(setting.folder) / setting.name
    models = {} if setting.timed_ms is not None else {MODEL: ModelSection(path=Path(setting.folder) / "plate.onnx")}
    return NodeConfig(
        node=NodeSection(id=node_id(setting.name), state_dir=home / "state", position=Position(48.7657, 11.4237, 1.0)),
        identity=IdentitySection.in_folder(home, setting.name),
        listen=ListenSection(host=setting.host),
        discovery=DiscoverySection(mdns=False, seeds=tuple(Address(*seed) for seed in setting.seeds)),
        sections=(HttpSection(enabled=False), ModelsSection(models=models), InferenceSection(deadline_ms=DEADLINE_MS)),
    )


async def _serve(setting: Setting) -> None:
    from meshnode.trial.node import TrialModel, TrialNode

    timed = [TrialModel(name=MODEL, compute_ms=setting.timed_ms, output_bytes=1)] if setting.timed_ms else []
    input_name, frames = ("x", frames_of(setting)) if timed else ("image", frames_of(setting))
    async with TrialNode(_config(setting), Path(setting.folder), timed) as node:
        await _offered(node, setting.neighbours)
        _tell(Ready(node.port))
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = msgspec.json.decode(line, type=Order)
            _tell(await _batch(node, input_name, frames, order, setting.encoded))


async def _offered(node: "Node", count: int) -> None:
    async with asyncio.timeout(_PEERS_S):
        while True:
            offering = [peer for peer in node.peers() if any(offer.model == MODEL for offer in peer.offers)]
            if len(offering) >= count:
                return
            await asyncio.sleep(0.05)


async def _batch(node: "Node", input_name: str, frames: Sequence[Any], order: Order, encoded: bool) -> Done:
    import numpy as np

    node.driver.act(lambda engine, _: engine.inference.configure(offload=not order.alone))
    rows = list(itertools.islice(itertools.cycle(frames), order.frames))
    batch = rows if encoded else np.concatenate(rows)
    began_s = time.perf_counter()
    result = await node.infer_batch(MODEL, {input_name: batch}, deadline_ms=DEADLINE_MS)
    seconds = time.perf_counter() - began_s
    ran = Counter[str]()
    for part in result.parts:
        ran[part.node] += part.size
    return Done(seconds, digest_of(result.outputs), dict(ran), sum(part.replays for part in result.parts))


def _tell(answer: Ready | Done) -> None:
    print(msgspec.json.encode(answer).decode(), flush=True)


def main() -> None:
    """Do what the lines say, until there are no more."""
    setting = msgspec.json.decode(sys.stdin.readline(), type=Setting)
    if setting.core is not None:
        os.sched_setaffinity(0, {setting.core})
    if setting.kind == "node":
        asyncio.run(_serve(setting))
        return
    bare = _Bare(setting)
    bare.compute(2)
    _tell(Ready())
    for line in sys.stdin:
        _tell(bare.compute(msgspec.json.decode(line, type=Order).frames))


if __name__ == "__main__":
    main()
