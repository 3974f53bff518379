"""Turns of the links: a neighbour that sends more than others makes only itself wait."""

import contextlib
import struct
import threading
from collections.abc import Callable

from meshnode.links.express.connection import TURN_FRAMES
from meshnode.links.transport import CredentialFiles
from tests.tools.eventually import LIMIT_S, eventually
from tests.tools.link_fixture import SP_PUSH, End, Recorder, given_ca, given_end, given_pki, raw_tls

__all__ = ["given_ca", "given_end", "given_pki"]

FLOOD = 5_000
"""Frames of two bytes. With their lengths they fit into one receive of a pipe."""


def _framed(frame: bytes) -> bytes:
    return struct.pack(">Q", len(frame)) + frame


class _Flooded(Recorder):
    """Holds the first frame of the flood back until all of it has come and the honest frame was sent."""

    def __init__(self, names: set[bytes]) -> None:
        super().__init__()
        self.order: list[bytes] = []
        self.flooding = threading.Event()
        self.honest: Callable[[], object] = lambda: None
        self._names = names

    def frame_received(self, pipe: int, frame: bytes) -> None:
        data = bytes(frame)
        if data in self._names and not self.order:
            assert self.flooding.wait(LIMIT_S)
            self.honest()
        self.order.append(data)


def _flood(end: Callable[..., End], pki: Callable[..., CredentialFiles], pipes: int) -> tuple[list[bytes], list[bytes]]:
    """Have ``pipes`` pipes of one insider flood an inbox. Returns the frames in the order in which they were handed
    over, and those of the flood by pipe."""
    floods = [b"%dx" % number for number in range(pipes)]
    told = _Flooded(set(floods))
    inbox = end(pki("inbox"), told)
    honest = end(pki("honest"))
    lane = honest.dial(inbox)
    eventually(lambda: b"hello" in told.order, "the honest lane is open")
    told.order.clear()
    told.honest = lambda: lane.try_send(b"brake!")
    files = pki("insider")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(raw_tls(inbox.address, files, files.authority)) for _ in floods]
        for sock in socks:
            sock.sendall(SP_PUSH)
        eventually(lambda: len(told.all("inbound_opened")) == pipes + 1, "all pipes are open")
        for sock, frame in zip(socks, floods, strict=True):
            sock.sendall(_framed(frame) * FLOOD)
        told.flooding.set()
        eventually(lambda: len(told.order) == pipes * FLOOD + 1, "all frames are handed over")
    return told.order, floods


def test_flood_of_tiny_frames_on_several_pipes_delays_an_honest_frame_by_one_turn(
    end: Callable[..., End], pki: Callable[..., CredentialFiles]
) -> None:
    """A turn was bounded in bytes alone: 26,000 frames of two bytes of each pipe came before the honest one."""
    order, _ = _flood(end, pki, pipes=4)
    # the turn in which the honest frame was sent, and at most one more of the whole identity
    assert order.index(b"brake!") <= 2 * TURN_FRAMES


def test_frames_that_wait_for_another_turn_keep_their_order_and_none_is_lost(
    end: Callable[..., End], pki: Callable[..., CredentialFiles]
) -> None:
    """What is left of a turn is copied, and a piece that got lost would shift all that follows."""
    order, floods = _flood(end, pki, pipes=2)
    assert [order.count(frame) for frame in floods] == [FLOOD, FLOOD]


def test_large_and_small_frames_mixed_arrive_whole_over_many_turns(
    end: Callable[..., End], pki: Callable[..., CredentialFiles]
) -> None:
    """A turn may end in front of a frame of any size, also in the middle of what TLS gave at once."""
    inbox = end(pki("inbox"))
    files = pki("insider")
    frames = [bytes([number % 251]) * (1 + number * 7919 % 40_000 if number % 5 == 0 else number % 90) for number in
              range(1, 1_500)]  # fmt: skip
    with raw_tls(inbox.address, files, files.authority) as sock:
        sock.sendall(SP_PUSH + b"".join(map(_framed, frames)))
        eventually(lambda: len(inbox.told.frames()) == len(frames), "all frames are handed over")
    assert [bytes(frame) for frame in inbox.told.frames()] == frames
