"""What a vehicle of the demonstration does with a private model: a detector of number plates whose pictures must not
leave the vehicle, on a processor that is far too slow for it.

First it has the model run whole, alone, on each of a few pictures: that shows what the vehicle could do by itself, and
gives the answers that all later ones must equal bit for bit. Once a plan is in force, a roadside unit computes all but
the first stage, and each picture is asked for again and again. The deadline of each request is three quarters of what
the vehicle needs alone.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import meshnode
from protocols.base.errors import InferenceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL: Final = "private"
SIDE: Final = 320
"""The side of the square that it looks at, in pixels."""
ALONE_DEADLINE_MS: Final = 60_000
DEADLINE_SHARE: Final = 0.75
"""Of what the vehicle needs alone: too little for it, and several times what the stages take together, so that a
processor that others use for a moment breaks no promise."""
EVERY_S: Final = 0.5
LOOK_S: Final = 0.1

Notes = dict[str, Any]


def empty_notes() -> Notes:
    """What was seen: ``alone`` and ``split`` have an entry for each answer, ``plan`` the first plan in force."""
    return {"alone": [], "deadline_ms": None, "plan": None, "split": []}


async def detect_in_private(node: meshnode.Node, notes: Notes, say: Callable[..., None]) -> None:
    """Ask until the task is cancelled, write down what comes of it, and ``say`` what the conductor should know."""
    frames = await asyncio.to_thread(_frames)
    for number, frame in enumerate(frames):
        result = await node.infer(MODEL, {"image": frame}, deadline_ms=ALONE_DEADLINE_MS)
        notes["alone"].append(_entry(number, result))
    deadline_ms = max(int(DEADLINE_SHARE * min(entry["took_ms"] for entry in notes["alone"])), 1)
    notes["deadline_ms"] = deadline_ms
    while (plan := _plan_in_force(node)) is None:  # noqa: ASYNC110 - nobody is told of plans
        await asyncio.sleep(LOOK_S)
    notes["plan"] = {"at": time.time(), **plan}
    say("plan", model=MODEL, **plan)
    number = 0
    while True:
        begun_s = time.monotonic()
        if _plan_in_force(node) is not None and not _is_trying(node):  # or nobody could keep the deadline
            try:
                result = await node.infer(MODEL, {"image": frames[number]}, deadline_ms=deadline_ms)
            except InferenceError:
                pass  # the node tells of it, as of every request
            else:
                notes["split"].append(_entry(number, result))
                say("split", took_ms=round(result.took_ms, 1))
            number = (number + 1) % len(frames)
        await asyncio.sleep(max(EVERY_S - (time.monotonic() - begun_s), 0.0))


def _frames() -> "list[NDArray[Any]]":
    """The street scene, its mirror image, and its negative."""
    import numpy as np
    from PIL import Image

    from meshnode.models.plate import preprocess
    from meshnode.sensors.images import DEFAULT_PICTURE

    with Image.open(DEFAULT_PICTURE) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    return [preprocess(each, SIDE)["image"] for each in (rgb, rgb[:, ::-1].copy(), 255 - rgb)]


def _plan_in_force(node: meshnode.Node) -> Notes | None:
    for model in node.ask("plans")["models"]:
        for plan in model["plans"]:
            if model["model"] == MODEL and plan["state"] == "in force":
                return {
                    "predicted_ms": plan["predicted_ms"], "timed_ms": plan["timed_ms"],
                    "stages": [(stage["node"], stage["share"]) for stage in plan["stages"]],
                }  # fmt: skip
    return None


def _is_trying(node: meshnode.Node) -> bool:
    """Whether other plans are being timed, which keeps this slow vehicle busy."""
    return any(plan["state"] == "waiting" for model in node.ask("plans")["models"] for plan in model["plans"])


def _entry(frame: int, result: meshnode.InferenceResult) -> Notes:
    content = b"".join(array.tobytes() for _, array in sorted(result.outputs.items()))
    return {
        "at": time.time(), "frame": frame, "took_ms": round(result.took_ms, 1), "ran_on": result.ran_on,
        "answer": hashlib.sha256(content).hexdigest(),
        "parts": [{"node": part.node, "took_ms": round(part.took_ns / 1e6, 1)} for part in result.parts],
    }  # fmt: skip
