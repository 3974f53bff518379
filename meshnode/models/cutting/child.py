"""The child process that cuts, as its parent sees it: started with an order, waited for, ended when it takes too long.

What it takes of memory goes back when it ends, and a model that makes it crash hurts nothing else.
"""

import importlib.util
import os
import subprocess
import threading
import time
from typing import Final

import msgspec

from meshnode.models.children import child_command, child_environment, how_it_exited
from meshnode.models.cutting.orders import CuttingOrder, CuttingReply, RefusalReply
from protocols.base.errors import ModelInvalid, StorageError

_MAX_WHY: Final = 500
_REPLIES: "Final[msgspec.json.Decoder[CuttingReply]]" = msgspec.json.Decoder(CuttingReply)
_NEEDED: Final = ("onnx", "onnx_ir")
NEEDS: Final = "the packages onnx and onnx-ir are needed, install them with: pip install 'meshnode[split]'"
_LOOK_S: Final = 0.2
"""How often the parent looks whether it is still wanted."""


def can_cut() -> bool:
    """Whether the packages are installed that cutting needs."""
    return all(map(importlib.util.find_spec, _NEEDED))


def ask_child(order: CuttingOrder, limit_s: float, end: threading.Event) -> CuttingReply:
    """Have an order carried out, blocking. The reply is none of refusal. ``end``: once it is set, the child is ended.

    :raises ModelInvalid: the model can't be cut, the child crashed, took longer than ``limit_s`` or was ended, or the
        packages that cutting needs are not installed.
    :raises StorageError: what it makes can't be written.
    """
    name = order.model.name
    if not can_cut():
        raise ModelInvalid(f"model {name!r} can't be cut: {NEEDS}")
    command = child_command("meshnode.models.cutting.inside", os.getpid())
    try:
        child = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(),
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ModelInvalid(f"model {name!r} can't be cut: no process can be started ({error})") from error
    with child:
        try:
            content, said = _communicate(child, msgspec.json.encode(order), limit_s, end)
        except subprocess.TimeoutExpired:
            child.kill()
            if end.is_set():
                raise ModelInvalid(f"model {name!r} is not cut any more: the node is shutting down") from None
            raise ModelInvalid(
                f"model {name!r} was not cut within {limit_s:g} s: allow more time, or run it whole"
            ) from None
        except BaseException:
            child.kill()
            raise
    try:
        reply: CuttingReply = _REPLIES.decode(content)
    except msgspec.DecodeError as error:
        words = " ".join(said.decode("utf-8", "replace").split())[-_MAX_WHY:]
        raise ModelInvalid(
            f"model {name!r} can't be cut: the process that tried {how_it_exited(child.returncode)} ({words})"
        ) from error
    if isinstance(reply, RefusalReply):
        raise StorageError(reply.why) if reply.is_storage else ModelInvalid(reply.why)
    return reply


def _communicate(
    child: "subprocess.Popen[bytes]", content: bytes, limit_s: float, end: threading.Event
) -> tuple[bytes, bytes]:
    """What the child has written. :raises TimeoutExpired: it took too long, or ``end`` was set."""
    given: bytes | None = content
    ends_s = time.monotonic() + limit_s
    while True:
        try:
            return child.communicate(given, min(_LOOK_S, max(ends_s - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            given = None  # it was taken, and is written on by the next call
            if end.is_set() or time.monotonic() >= ends_s:
                raise
