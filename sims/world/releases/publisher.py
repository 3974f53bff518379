"""The publisher of a simulation: releases and metadata that are genuine because it made them."""

import hashlib
from collections.abc import Sequence
from random import Random

import msgspec

from protocols.releases.catalogue import (
    Content,
    Delta,
    Description,
    Listed,
    ListedOrder,
    Order,
    ReleaseCatalogue,
    ReleasedFile,
)
from protocols.wire.releases import ReleaseNews


def sha256(data: bytes) -> bytes:
    """The name of a chunk."""
    return hashlib.sha256(data).digest()


class Publisher:
    """Makes releases and metadata. What it made is genuine."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.chunks: dict[bytes, bytes] = {}
        """All that it made, by digest."""
        self.descriptions: dict[bytes, Description] = {}
        self.orders: dict[bytes, Order] = {}
        self.catalogues: dict[bytes, ReleaseCatalogue] = {}
        """What each bundle lists."""
        self.news: ReleaseNews | None = None
        """Which bundle is the newest."""
        self._listed: list[Listed] = []
        self._listed_orders: list[ListedOrder] = []

    def _chunk(self, data: bytes) -> bytes:
        digest = sha256(data)
        self.chunks[digest] = data
        return digest

    def content(self, data: bytes, chunk_bytes: int) -> Content:
        """Divide a file into chunks."""
        digests = b"".join(self._chunk(data[at : at + chunk_bytes]) for at in range(0, len(data), chunk_bytes))
        return Content(
            sha256=sha256(data).hex(), size_bytes=len(data), chunk_bytes=chunk_bytes, index=self._chunk(digests).hex()
        )

    def release(
        self, path: str, counter: int, size_bytes: int, chunk_bytes: int = 64 * 1024, order: bool = True,
        deltas: Sequence[tuple[str, Content]] = (),
    ) -> Description:  # fmt: skip
        """Make a release of one file of random bytes, and an ``order`` that all nodes serve it at once. ``deltas``:
        from which files there is a shorter way to it."""
        data = Random(f"{self._seed}/{path}/{counter}").randbytes(size_bytes)
        file = ReleasedFile(name="model.onnx", content=self.content(data, chunk_bytes))
        description = Description(path=path, counter=counter, model=file.name, files=(file,), deltas=tuple(
            Delta(name=file.name, base=base, method="zstd", content=content) for base, content in deltas
        ))  # fmt: skip
        encoded = msgspec.json.encode(description)
        digest = self._chunk(encoded)
        self.descriptions[digest] = description
        self._listed.append(Listed(path, counter, digest, len(encoded)))
        if order:
            self.order(Order(serial=len(self.orders) + 1, path=path, counter=counter))
        return description

    def parts(self, path: str, counter: int) -> list[bytes]:
        """The chunks that the files of a release consist of."""
        return [
            chunk
            for description in self.descriptions.values() if (description.path, description.counter) == (path, counter)
            for file in description.files for chunk in self.parts_of(file.content)
        ]  # fmt: skip

    def parts_of(self, content: Content) -> list[bytes]:
        """The chunks of a content."""
        index = self.chunks[bytes.fromhex(content.index)]
        return [index[at : at + 32] for at in range(0, len(index), 32)]

    def order(self, order: Order) -> None:
        """Make an order."""
        encoded = msgspec.json.encode(order)
        digest = self._chunk(encoded)
        self.orders[digest] = order
        self._listed_orders.append(ListedOrder(order.serial, digest, len(encoded)))

    def replace_order(self, order: Order) -> None:
        """Make other bytes of an order, with another state perhaps."""
        self._listed_orders = [listed for listed in self._listed_orders if listed.serial != order.serial]
        self.order(order)

    def sign(self) -> ReleaseNews:
        """Publish what was made until now."""
        version = 1 + (0 if self.news is None else self.news.timestamp_version)
        timestamp = sha256(f"{self._seed}/timestamp/{version}".encode())
        bundle = timestamp + msgspec.msgpack.encode([self._listed, self._listed_orders]) + bytes(3_000)
        digest = self._chunk(bundle)
        self.catalogues[digest] = ReleaseCatalogue(
            1, version, timestamp, False, tuple(self._listed), tuple(self._listed_orders)
        )
        self.news = ReleaseNews(1, version, timestamp, digest, len(bundle))
        return self.news
