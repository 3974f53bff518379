"""What a slow vehicle of the demonstration does with a large picture: it cuts it into tiles, and has them looked at as
one batch, which it shares with the roadside units.

Some of the tiles are asked for once more, one by one: a row of the batch must be the same answer, bit for bit.
"""

import asyncio
import io
import time
from typing import Any, Final

import meshnode
from protocols.base.errors import MeshError

MODEL: Final = "plate"
SCALE: Final = 4
"""How many times as wide and as high the picture is made before it is cut."""
OVERLAP: Final = 64
"""Pixels that neighbouring tiles share."""
BATCHES: Final = 2
"""The first one finds out how fast everybody is."""
MOST_BATCHES: Final = 6
"""So many are tried until everybody has a part of one. The vehicle is twelve times slower than the units, which have
done some batches before it is through with its first tile."""
COMPARED: Final = 3
DEADLINE_MS: Final = 30_000
LOOK_S: Final = 0.25

Notes = dict[str, Any]


def empty_notes() -> Notes:
    """What was seen: an entry for each of ``batches``, and how many of the ``compared`` rows were ``equal``."""
    return {"tiles": 0, "batches": [], "compared": 0, "equal": 0, "failed": ""}


async def look_at_tiles(node: meshnode.Node, helpers: set[str], notes: Notes) -> None:
    """Wait until all ``helpers`` compute the model too, share the batches, and write down what comes of them."""
    pictures = await asyncio.to_thread(_tiles)
    notes["tiles"] = len(pictures)
    while not helpers <= _helping(node):  # noqa: ASYNC110 - offers are no events
        await asyncio.sleep(LOOK_S)
    try:
        outputs = {}
        everybody = helpers | {node.id}
        while len(notes["batches"]) < MOST_BATCHES:
            result = await node.infer_batch(MODEL, {"image": pictures}, deadline_ms=DEADLINE_MS)
            outputs = result.outputs
            notes["batches"].append({
                "at": time.time(), "took_ms": round(result.took_ms, 1),
                "parts": [(part.node, part.size, round(part.compute_us / 1e3, 1)) for part in result.parts],
            })  # fmt: skip
            are_shared = any(everybody <= {name for name, *_ in each["parts"]} for each in notes["batches"])
            if are_shared and len(notes["batches"]) >= BATCHES:
                break
        for at in range(0, len(pictures), -(-len(pictures) // COMPARED)):
            single = await node.infer(MODEL, {"image": _bytes(pictures[at])}, deadline_ms=DEADLINE_MS)
            notes["compared"] += 1
            notes["equal"] += all(
                array.tobytes() == outputs[name][at : at + len(array)].tobytes()
                for name, array in single.outputs.items()
            )
    except MeshError as error:
        notes["failed"] = str(error)


def _helping(node: meshnode.Node) -> set[str]:
    return {
        peer.node for peer in node.peers()
        if peer.met and peer.state.value == "alive" and any(offer.model == MODEL for offer in peer.offers)
    }  # fmt: skip


def _tiles() -> list[bytes]:
    """The street scene, enlarged and cut into JPEGs of its former size."""
    import numpy as np
    from PIL import Image

    from meshnode.inference.tiles import tiles
    from meshnode.sensors.images import DEFAULT_PICTURE

    with Image.open(DEFAULT_PICTURE) as picture:
        scene = picture.convert("RGB")
    large = np.asarray(scene.resize((SCALE * scene.width, SCALE * scene.height)))
    found = []
    for tile in tiles(large, (scene.height, scene.width), overlap=OVERLAP).array:
        content = io.BytesIO()
        Image.fromarray(tile).save(content, "JPEG", quality=90)
        found.append(content.getvalue())
    return found


def _bytes(content: bytes) -> Any:
    import numpy as np

    return np.frombuffer(content, np.uint8)
