"""Realtime lanes are marked, so that computers and networks can send readings before pieces of releases."""

import socket
from typing import Any

from meshnode.links.express.engine import ExpressLinks
from meshnode.links.express.lane import ExpressLane
from tests.tools.eventually import eventually
from tests.tools.link_fixture import (  # noqa: F401 -- fixtures
    End,
    given_ca,
    given_end,
    given_engine,
    given_pair,
    given_pki,
    given_two,
)

TRIES = 5


def opened(a: End, b: End) -> Any:
    """A lane, dialled again where it is closed before it has opened, as membership does: now and then libnng hangs up
    during a handshake."""
    whys = []
    for _ in range(TRIES):
        lane = a.dial(b)

        def told(of: object = lane) -> list[tuple[Any, ...]]:
            return [each for kind in ("lane_opened", "lane_closed") for each in a.told.all(kind) if each[1] is of]

        kind, _, detail = eventually(told, "it opens or is closed")[0]
        if kind == "lane_opened":
            return lane
        whys.append(detail)
    raise AssertionError(f"no lane opened: {whys}")


def test_lane_that_hurries_is_marked_and_still_sends(pki: Any, two: Any) -> None:
    """What is not marked waits behind everything else on a slow link, and so would what confirms it."""
    a, b = two(pki("a"), pki("b"))
    lane, other = opened(a, b), opened(a, b)
    lane.hurry()
    if isinstance(lane, ExpressLane):
        assert lane._sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 46 << 2
        assert lane._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 6
        assert other._sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0
    if isinstance(b.transport, ExpressLinks):
        eventually(lambda: len(b.transport._inbox.pipes) == 2, "both pipes are open")
        confirming = [inbound._sock for inbound in b.transport._inbox.pipes.values()]
        assert {sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) for sock in confirming} == {46 << 2}
        assert {sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) for sock in confirming} == {6}
    eventually(lambda: lane.try_send(b"reading"), "the lane takes a frame")
    eventually(lambda: b"reading" in b.told.frames(), "the frame came")
    lane.close()
    lane.hurry()  # it may end at any moment
