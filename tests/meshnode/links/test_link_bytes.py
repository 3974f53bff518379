"""What strangers and broken insiders send, on each engine: nothing of it is a frame, and the others are still heard."""

import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from meshnode.links.peer import url_of
from meshnode.links.transport import Address, CredentialFiles
from protocols.base.errors import BoundExceeded, TransportError
from protocols.base.limits import MAX_FRAME_BYTES
from tests.tools.eventually import eventually
from tests.tools.link_fixture import (  # noqa: F401 -- fixtures
    SP_PUSH,
    End,
    drained,
    given_ca,
    given_end,
    given_engine,
    given_pair,
    given_pki,
    given_two,
    raw_tls,
)


def test_dial_of_mute_peer_times_out_with_reason(pki: Any, end: Any, engine: str) -> None:
    """NNG itself would wait for ever on a TCP server that says nothing."""
    a = end(pki("a"), engine=engine)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        lane = a.dial(Address("127.0.0.1", mute.getsockname()[1]), timeout_s=0.8)
        _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert "mute" in reason


def test_dial_of_closed_port_times_out_with_reason(pki: Any, end: Any, engine: str) -> None:
    """The most frequent mistake in the field deserves its own words."""
    a = end(pki("a"), engine=engine)
    with socket.socket() as unused:  # bound and not listening: nobody else gets the port meanwhile
        unused.bind(("127.0.0.1", 0))
        a.dial(Address("127.0.0.1", unused.getsockname()[1]), timeout_s=0.5)
        assert "connection refused" in a.told.one("lane_closed")[2]


@pytest.mark.parametrize(
    "address",
    [Address("a/b?c", 1), Address("", 1), Address("[::1]", 1), Address("127.0.0.1", 70_000), Address("x" * 300, 1)],
    ids=str,
)
def test_dial_of_hostile_address_finishes_the_lane(pki: Any, end: Any, engine: str, address: Address) -> None:
    """Addresses come from strangers' adverts: they must neither raise nor reach into a URL."""
    a = end(pki("a"), engine=engine)
    lane = a.dial(address)
    _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert "host" in reason or "port" in reason


def test_url_of_ipv6_address_has_brackets() -> None:
    """Without them host and port can't be told apart."""
    assert url_of(Address("2001:db8::1", 7)) == "tls+tcp://[2001:db8::1]:7"
    with pytest.raises(TransportError, match="scope"):
        url_of(Address("fe80::1%eth0", 7))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0SP\0\0\x31\0\0",
        SP_PUSH + struct.pack(">Q", MAX_FRAME_BYTES + 1) + b"x" * 100,
        SP_PUSH + struct.pack(">Q", 2**63),
        SP_PUSH + struct.pack(">Q", 2**64 - 1),
        SP_PUSH + struct.pack(">Q", 1000) + b"only part of it",
        SP_PUSH[:5],
        SP_PUSH + b"\0\0\0",
    ],
    ids=[
        "not our protocol",
        "other protocol",
        "oversize",
        "signed",
        "absurd length",
        "truncated frame",
        "header",
        "length",
    ],
)
def test_garbage_inside_tls_gives_no_frame_and_the_inbox_lives_on(pki: Any, two: Any, sent: bytes) -> None:
    """An insider's broken implementation must not disturb the others."""
    files = pki("b")
    a, b = two(pki("a"), files)
    told_off(b, pki("odd"), files, sent)
    assert not b.told.frames()
    eventually(lambda: len(b.told.all("inbound_opened")) == len(b.told.all("inbound_closed")), "its end is told")
    a.dial(b, b"still here")
    eventually(lambda: b.told.frames() == [b"still here"], "others are heard")


def test_raw_ssl_peer_that_follows_the_wire_is_a_peer(pki: Any, end: Any, engine: str) -> None:
    """The wire is documented for second implementations: they must be able to join."""
    files = pki("b")
    b = end(files, engine=engine)
    with raw_tls(b.address, pki("second"), files.authority) as sock:
        sock.sendall(SP_PUSH + struct.pack(">Q", 3) + b"one" + struct.pack(">Q", 0))
        eventually(lambda: b.told.frames() == [b"one", b""], "its frames")
    pipe = b.told.one("inbound_opened")[1]
    assert b.told.one("inbound_closed") == ("inbound_closed", pipe)


def test_peer_killed_while_the_reader_is_slow_is_told(pki: Any, end: Any, engine: str) -> None:
    """The library forgets such pipes: they would stay open here for ever, and the dead neighbour with them."""
    files = pki("b")
    b = end(files, engine=engine)
    release = threading.Event()
    b.told.on_frame = lambda pipe, frame: None if release.is_set() else bool(release.wait(60))
    with raw_tls(b.address, pki("a"), files.authority) as sock:
        sock.sendall(SP_PUSH + (struct.pack(">Q", 1) + b"x") * 2)
        eventually(lambda: b.transport.receiving_since_ns() is not None, "the reader is stuck")
    # closed without TLS's farewell, as the kernel does for a process that is killed; nothing waits to receive that
    eventually(lambda: not connected(b.address.port), "the end has arrived")
    release.set()
    b.told.one("inbound_closed")
    assert b.told.frames() == [b"x", b"x"]


def connected(port: int) -> bool:
    """Whether a connection into ``port`` is established, for the kernel."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


def test_frame_above_the_bound_is_refused_by_sender(pki: Any, two: Any) -> None:
    """Sent, it would cost us the link: the other end closes on it."""
    a, b = two(pki("a"), pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    with pytest.raises(BoundExceeded, match="split"):
        lane.try_send(bytes(MAX_FRAME_BYTES + 1))


def told_off(b: End, odd: CredentialFiles, files: CredentialFiles, sent: bytes) -> None:
    """Send it, end the sending half, and wait for the inbox to hang up."""
    with raw_tls(b.address, odd, files.authority) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        drained(sock)


def test_frame_truncated_at_every_byte_gives_no_frame(pki: Any, end: Any, engine: str) -> None:
    """A neighbour's process may die anywhere in a frame; half a reading is worse than none."""
    files = pki("b")
    b = end(files, engine=engine)
    second = struct.pack(">Q", 12) + b"never whole!"
    for cut in range(len(second)):
        with raw_tls(b.address, pki("odd"), files.authority) as sock:
            sock.sendall(SP_PUSH + struct.pack(">Q", 5) + b"first")
            eventually(lambda cut=cut: len(b.told.frames()) == cut + 1, "the first frame")
            sock.sendall(second[:cut])
    eventually(lambda: len(b.told.all("inbound_closed")) == len(second), "every end is told")
    assert set(b.told.frames()) == {b"first"}


def test_frame_split_into_single_bytes_arrives_whole(pki: Any, end: Any, engine: str) -> None:
    """How bytes are cut into TLS records means nothing."""
    files = pki("b")
    b = end(files, engine=engine)
    with raw_tls(b.address, pki("odd"), files.authority) as sock:
        for byte in SP_PUSH + struct.pack(">Q", 3) + b"one" + struct.pack(">Q", 0) + struct.pack(">Q", 3) + b"two":
            sock.sendall(bytes([byte]))
        eventually(lambda: b.told.frames() == [b"one", b"", b"two"], "its frames")


def test_peer_resetting_in_the_middle_of_a_frame_is_told(pki: Any, end: Any, engine: str) -> None:
    """A radio that comes back under another address resets; nothing of the frame may be kept or handed over."""
    files = pki("b")
    b = end(files, engine=engine)
    with raw_tls(b.address, pki("odd"), files.authority) as sock:
        sock.sendall(SP_PUSH + struct.pack(">Q", 1) + b"x" + struct.pack(">Q", 1_000_000) + b"y" * 100_000)
        eventually(lambda: b.told.frames() == [b"x"], "the first frame")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    b.told.one("inbound_closed")
    assert b.told.frames() == [b"x"]


def test_connection_half_open_is_ended_by_its_owner(pki: Any, two: Any) -> None:
    """A vanished host sends no end; silence is judged above, and closing what it left must work at once."""
    a, b = two(pki("a"), pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    b.transport.close_pipe(b.told.one("inbound_opened")[1])
    b.told.one("inbound_closed")
    a.told.one("lane_closed")
    assert not lane.try_send(b"x")


def test_server_that_accepts_and_hangs_up_finishes_the_lane(pki: Any, end: Any, engine: str) -> None:
    """A proxy in front of nothing looks like this."""
    a = end(pki("a"), engine=engine)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def is_told() -> bool:
            """Whether a dial says so. One that a stall keeps from connecting says something else."""
            lane = a.dial(Address("127.0.0.1", server.getsockname()[1]), timeout_s=0.6)
            server.accept()[0].close()
            eventually(lambda: a.told.of(lane), "the dial ends")
            return "hung up" in a.told.all("lane_closed")[-1][2]

        assert any(is_told() for _ in range(4))


def test_server_that_is_no_inbox_finishes_the_lane(pki: Any, end: Any, engine: str) -> None:
    """An address of some web server, from an old advert."""
    a = end(pki("a"), engine=engine)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        a.dial(Address("127.0.0.1", server.getsockname()[1]), timeout_s=0.6)
        with server.accept()[0] as sock:
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            a.told.one("lane_closed")
