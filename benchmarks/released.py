"""Releases without a mesh: small models, their descriptions and chunks, a store, and an installer with workers."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.model import bytes_field, number_field
from meshnode.inference.compute import ComputeService
from meshnode.inference.section import InferenceSection, ModelSection, ModelsSection
from meshnode.releases.install.installer import Installer
from meshnode.releases.install.stand import NodeModels
from meshnode.releases.store.chunks import ChunkStore
from meshnode.releases.store.disk import Disk
from meshnode.troubles import Troubles
from protocols.base import limits
from protocols.base.ids import NodeId
from protocols.inference.events import Compute
from protocols.inference.placement import LocalModel
from protocols.releases.catalogue import Content, Description, ReleasedFile
from protocols.wire.inference import InferAnswer
from protocols.wire.tensors import NamedTensor, tensor_of

PATH, NAME = "models/adder", "adder"
X = {"x": np.ones((1, 2), "f4")}
MIB = 1024 * 1024


def adder(amount: float, padding_bytes: int = 0) -> bytes:
    """An ONNX file: ``y = x + amount``, with a text that makes it as large as is wanted."""
    one = number_field(2, 1) + bytes_field(8, b"amount") + bytes_field(9, np.float32(amount).tobytes())
    node = bytes_field(1, b"x") + bytes_field(1, b"amount") + bytes_field(2, b"y") + bytes_field(4, b"Add")
    graph = bytes_field(1, node) + bytes_field(2, b"adder") + bytes_field(5, one)
    graph += bytes_field(11, _tensor("x")) + bytes_field(12, _tensor("y"))
    padding = np.random.default_rng(padding_bytes).integers(97, 122, padding_bytes, "u1").tobytes()
    described = bytes_field(6, padding) if padding_bytes else b""
    return number_field(1, 8) + described + bytes_field(7, graph) + bytes_field(8, number_field(2, 13))


def _tensor(name: str) -> bytes:
    sizes = b"".join(bytes_field(1, number_field(1, size)) for size in (1, 2))
    return bytes_field(1, name.encode()) + bytes_field(2, bytes_field(1, number_field(1, 1) + bytes_field(2, sizes)))


@dataclass
class Published:
    """A description, and the chunks that it leads to by digest."""

    description: Description
    chunks: dict[bytes, bytes] = field(default_factory=dict)

    def put_into(self, store: ChunkStore) -> None:
        """Hold all of it, as if it had been fetched."""
        contents = [file.content for file in self.description.files if file.content.size_bytes]
        for content in contents:
            index = bytes.fromhex(content.index)
            assert store.put(index, self.chunks[index])
            assert store.open_content(index, content.size_bytes, content.chunk_bytes) is not None
        for digest, data in self.chunks.items():
            assert store.put(digest, data)


def publish(
    counter: int, files: dict[str, bytes], path: str = PATH, chunk_bytes: int = limits.PIECE_BYTES, **more: Any
) -> Published:
    """A release with these files, of which the first is the model."""
    chunks: dict[bytes, bytes] = {}
    released = []
    for name, data in files.items():
        parts = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
        digests = [hashlib.sha256(part).digest() for part in parts]
        index = b"".join(digests)
        chunks |= dict(zip(digests, parts, strict=True))
        chunks[hashlib.sha256(index).digest()] = index
        content = Content(
            sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), chunk_bytes=chunk_bytes,
            index=hashlib.sha256(index).hexdigest(),
        )  # fmt: skip
        released.append(ReleasedFile(name=name, content=content))
    description = Description(
        path=path, counter=counter, model=next(iter(files)), files=tuple(released), **more
    )  # fmt: skip
    return Published(description, chunks)


def release(counter: int, padding_bytes: int = 0, **more: Any) -> Published:
    """Release ``counter`` of ``adder``, which adds ``counter``."""
    return publish(counter, {"adder.onnx": adder(counter, padding_bytes)}, **more)


class Site:
    """The models of a node without the node, and what is installed there."""

    def __init__(
        self, folder: Path, factory: Path | None = None, keep: int = 1, disk: Disk | None = None,
        max_bytes: int = 64 * MIB, compute: ComputeService | None = None,
    ) -> None:  # fmt: skip
        """``factory``: the file that the configuration names for ``adder``. ``compute``: what runs the models, if there
        is something already."""
        sections = {} if factory is None else {NAME: ModelSection(path=factory)}
        self.how, self.models = InferenceSection(), ModelsSection(models=sections)
        self.answers: dict[int, InferAnswer] = {}
        self.told: tuple[LocalModel, ...] = ()
        self.troubles = Troubles()
        self.compute = compute or ComputeService(
            sections, self.how, self.answers.__setitem__, self._tell, self.troubles
        )
        self.stand = NodeModels(self.compute, self.models, self.how)
        self.store = ChunkStore(folder, max_bytes, disk)
        self.installer = Installer(folder, self.store, self.stand, keep, disk)

    def _tell(self, models: tuple[LocalModel, ...]) -> None:
        self.told = models

    def start(self) -> dict[str, str]:
        """As a node does: releases first, then what the configuration names. Returns what fell back."""
        self.store.open()
        fell_back = self.installer.serve_installed()
        self.compute.load_models()
        self.compute.announce()
        return fell_back

    def answer(self) -> float:
        """What is added to zero now."""
        ((_, y),) = self.compute.models[NAME].run({"x": np.zeros((1, 2), "f4")})
        return float(y[0, 0])

    def install(self, published: Published) -> None:
        """Hold, stage and serve a release."""
        published.put_into(self.store)
        self.installer.stage(published.description)
        self.installer.serve(published.description.path, published.description.counter)

    def ask(self, number: int, digest: str = "", asked_by: NodeId | None = None) -> None:
        """Ask for a run, as the engine does. Its answer comes into :attr:`answers`."""
        inputs = (NamedTensor("x", tensor_of(X["x"])),)
        self.compute.start(Compute(number, NAME, inputs, (), 10 * limits.SECOND, asked_by, digest))

    def close(self) -> None:
        self.compute.close()


@contextlib.contextmanager
def site(folder: Path, factory: Path | None = None, **more: Any) -> Iterator[Site]:
    """A started site."""
    made = Site(folder, factory, **more)
    try:
        made.start()
        yield made
    finally:
        made.close()
