"""Links between real sockets: who gets in, what arrives, and how each end comes to be told."""

import contextlib
import signal
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from meshnode.net._connections import Connections
from meshnode.net._inbound import InboundPipe, InboundPipes
from meshnode.net._peer import identify, url_of
from meshnode.net.nng import open_transport
from meshnode.net.transport import Address, Credentials
from protocols.errors import BoundExceeded, IdentityError, TransportError
from protocols.ids import PeerIdentity, Role, node_id
from protocols.limits import MAX_FRAME_BYTES
from tests.link_fixture import MESH, SP_PUSH, Recorder, drained, given_ca, given_end, given_pki, raw_tls, wait  # noqa: F401 -- fixtures
from tests.pki_fixture import authority


def test_lane_dialled_greets_first_and_both_ends_know_each_other(pki: Any, end: Any) -> None:
    """Everything above relies on this order: identity, opened, greeting, frames."""
    a, b = end(pki("a")), end(pki("b", role="rsu"))
    lane = a.dial(b, b"greeting")
    _, opened, identity = a.told.one("lane_opened")
    assert opened is lane
    assert identity == PeerIdentity(MESH, Role.RSU, node_id("b"))
    wait(lambda: lane.try_send(b"reading"), "the lane takes a frame")
    wait(lambda: len(b.told.frames()) == 2, "both frames")
    kinds = [entry[0] for entry in b.told.log]
    assert kinds == ["admit", "inbound_opened", "frame", "frame"]
    _, pipe, identity, host = b.told.one("inbound_opened")
    assert (identity, host) == (PeerIdentity(MESH, Role.VEHICLE, node_id("a")), "127.0.0.1")
    assert b.told.log[2:] == [("frame", pipe, b"greeting"), ("frame", pipe, b"reading")]
    assert a.transport.statistics()["frames_sent"] == b.transport.statistics()["frames_received"] == 2
    assert a.transport.statistics()["bytes_sent"] == b.transport.statistics()["bytes_received"] == 15
    assert b.transport.receiving_since_ns() is None


def test_frame_of_every_size_arrives_unchanged(pki: Any, end: Any) -> None:
    """Tensors cross TLS records and socket buffers; an off-by-one would corrupt them."""
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    frames = [bytes([size % 251]) * size for size in (0, 1, 16_383, 16_384, 16_385, 1_000_003)]
    for frame in frames:
        wait(lambda frame=frame: lane.try_send(frame), "the lane takes a frame")
    wait(lambda: len(b.told.frames()) == 7, "all frames")
    assert b.told.frames()[1:] == frames


@pytest.mark.parametrize(
    ("options", "stranger"),
    [({}, True), ({"days": -1}, False), ({"dns": ("other.name",)}, False)],
    ids=["other authority", "expired", "wrong server name"],
)
def test_inbox_with_untrusted_certificate_ends_the_dial_early(
    pki: Any, end: Any, options: dict[str, Any], stranger: bool
) -> None:
    """A dialer must neither trust such an inbox nor hammer it until the time-out."""
    bad = pki("bad", authority(), **options) if stranger else pki("bad", **options)
    a, b = end(pki("a")), end(bad)
    lane = a.dial(b, timeout_s=30)
    _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert "TLS handshake failed" in reason
    assert str(b.address) in reason
    assert not a.told.all("admit")
    assert not b.told.all("inbound_opened")
    assert not lane.try_send(b"x")


@pytest.mark.parametrize(
    ("options", "stranger"), [({}, True), ({"days": -1}, False)], ids=["other authority", "expired"]
)
def test_dialer_with_untrusted_certificate_never_gets_in(
    pki: Any, end: Any, options: dict[str, Any], stranger: bool
) -> None:
    """The inbox decides alone: the refused side's own checks are not relied upon."""
    bad = pki("bad", authority(), **options) if stranger else pki("bad", **options)
    a, b = end(bad), end(pki("b"))
    a.dial(b, timeout_s=3)
    a.told.one("lane_closed")
    assert not b.told.log
    assert b.transport.statistics()["handshakes_failed"] >= 1


def test_client_without_certificate_is_closed_unheard(pki: Any, end: Any) -> None:
    """The library's default asks for none: a slip in configuration would open the mesh to everybody."""
    files = pki("b")
    b = end(files)
    with contextlib.suppress(ssl.SSLError, ConnectionError), raw_tls(b.address, None, files.authority) as sock:
        sock.sendall(SP_PUSH + struct.pack(">Q", 5) + b"hello")
        assert drained(sock) == b""
    wait(lambda: b.transport.statistics()["handshakes_failed"], "the failure is counted")
    assert not b.told.log


def test_client_with_tls_1_2_is_refused(pki: Any, end: Any) -> None:
    """TLS 1.3 always: there is no weaker mode to be talked down to."""
    files = pki("b")
    b = end(files)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        raw_tls(b.address, pki("a"), files.authority, maximum_version=ssl.TLSVersion.TLSv1_2).close()


@pytest.mark.parametrize(
    ("uris", "why"),
    [
        (["spiffe://other/vehicle/a"], "mesh 'other'"),
        ([], "0 identities"),
        (["spiffe://demo/vehicle/a", "spiffe://demo/relay/a"], "2 identities"),
        (["spiffe://demo/king/a"], "unknown role"),
        (["spiffe://demo/vehicle/UPPER"], "node id"),
    ],
)
def test_certificate_that_names_nobody_of_the_mesh_is_refused_by_inbox(
    pki: Any, end: Any, uris: list[str], why: str
) -> None:
    """One authority may sign for several meshes; only the identity tells them apart."""
    a, b = end(pki("a", uris=uris)), end(pki("b"))
    a.dial(b)
    _, identity, detail, lane, host = b.told.one("admit")
    assert identity is None
    assert why in detail
    assert (lane, host) == (None, "127.0.0.1")
    a.told.one("lane_closed")
    assert not b.told.all("inbound_opened")
    assert not b.told.frames()


def test_inbox_of_another_mesh_is_refused_by_dialer_once(pki: Any, end: Any) -> None:
    """NNG alone would redial 17 times in half a second."""
    a, b = end(pki("a")), end(pki("b", mesh="other"))
    lane = a.dial(b)
    _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert reason.startswith("refused: ")
    assert "other" in reason
    time.sleep(0.7)  # longer than the redial interval: any further attempt would be seen
    assert len(a.told.all("admit")) == 1
    assert not b.told.frames()
    assert a.transport.statistics()["handshakes_refused"] == 1


def test_observer_refusing_inbound_pipe_gets_no_frame_of_it(pki: Any, end: Any) -> None:
    """Revoked and duplicate peers are turned away here, before the first frame."""
    a, b = end(pki("a")), end(pki("b"), Recorder(refusal="revoked"))
    a.dial(b)
    a.told.one("lane_closed")
    assert [entry[0] for entry in b.told.log] == ["admit"]


def test_observer_failing_in_admit_refuses(pki: Any, end: Any) -> None:
    """A bug in the judge must not be an open door."""

    class Broken(Recorder):
        def admit(self, *arguments: Any) -> str | None:
            self.log.append(("admit", *arguments))
            raise RuntimeError("bug")

    a, b = end(pki("a")), end(pki("b"), Broken())
    a.dial(b)
    a.told.one("lane_closed")
    b.dial(a)
    assert "internal error" in b.told.one("lane_closed")[2]
    assert {entry[0] for entry in b.told.log} == {"admit", "lane_closed"}


def test_dial_of_mute_peer_times_out_with_reason(pki: Any, end: Any) -> None:
    """NNG itself would wait for ever on a TCP server that says nothing."""
    a = end(pki("a"))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        lane = a.dial(Address("127.0.0.1", mute.getsockname()[1]), timeout_s=0.8)
        _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert "mute" in reason


def test_dial_of_closed_port_times_out_with_reason(pki: Any, end: Any) -> None:
    """The most frequent mistake in the field deserves its own words."""
    a = end(pki("a"))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    a.dial(Address("127.0.0.1", port), timeout_s=0.5)
    assert "connection refused" in a.told.one("lane_closed")[2]


@pytest.mark.parametrize(
    "address",
    [Address("a/b?c", 1), Address("", 1), Address("[::1]", 1), Address("127.0.0.1", 70_000), Address("x" * 300, 1)],
    ids=str,
)
def test_dial_of_hostile_address_finishes_the_lane(pki: Any, end: Any, address: Address) -> None:
    """Addresses come from strangers' adverts: they must neither raise nor reach into a URL."""
    a = end(pki("a"))
    lane = a.dial(address)
    _, closed, reason = a.told.one("lane_closed")
    assert closed is lane
    assert "host" in reason or "port" in reason


def test_url_of_ipv6_address_has_brackets() -> None:
    """Without them host and port can't be told apart."""
    assert url_of(Address("2001:db8::1", 7)) == "tls+tcp://[2001:db8::1]:7"
    with pytest.raises(TransportError, match="scope"):
        url_of(Address("fe80::1%eth0", 7))


def test_identity_with_control_characters_names_nobody() -> None:
    """Certificate names are chosen by whoever asks for the certificate."""
    assert identify(["mesh.node", "spiffe://demo/vehicle/a\n"], MESH)[0] is None
    assert identify(["mesh.node", "SPIFFE://demo/vehicle/a", "spiffe://demo/vehicle/b"], MESH)[0] is None
    assert identify(["mesh.node", "spiffe://demo/vehicle/b"], MESH)[0] == PeerIdentity(MESH, Role.VEHICLE, node_id("b"))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0SP\0\0\x31\0\0",
        SP_PUSH + struct.pack(">Q", MAX_FRAME_BYTES + 1) + b"x" * 100,
        SP_PUSH + struct.pack(">Q", 2**64 - 1),
        SP_PUSH + struct.pack(">Q", 1000) + b"only part of it",
        SP_PUSH[:5],
        SP_PUSH + b"\0\0\0",
    ],
    ids=["not our protocol", "other protocol", "oversize", "absurd length", "truncated frame", "header", "length"],
)
def test_garbage_inside_tls_gives_no_frame_and_the_inbox_lives_on(pki: Any, end: Any, sent: bytes) -> None:
    """An insider's broken implementation must not disturb the others."""
    files = pki("b")
    a, b = end(pki("a")), end(files)
    with raw_tls(b.address, pki("odd"), files.authority) as sock:
        sock.sendall(sent)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        drained(sock)
    assert not b.told.frames()
    wait(lambda: len(b.told.all("inbound_opened")) == len(b.told.all("inbound_closed")), "its end is told")
    a.dial(b, b"still here")
    wait(lambda: b.told.frames() == [b"still here"], "others are heard")


def test_raw_ssl_peer_that_follows_the_wire_is_a_peer(pki: Any, end: Any) -> None:
    """The wire is documented for second implementations: they must be able to join."""
    files = pki("b")
    b = end(files)
    with raw_tls(b.address, pki("second"), files.authority) as sock:
        sock.sendall(SP_PUSH + struct.pack(">Q", 3) + b"one" + struct.pack(">Q", 0))
        wait(lambda: b.told.frames() == [b"one", b""], "its frames")
    pipe = b.told.one("inbound_opened")[1]
    assert b.told.one("inbound_closed") == ("inbound_closed", pipe)


def test_slow_reader_makes_try_send_decline_then_tells_writable(pki: Any, end: Any) -> None:
    """Back-pressure must reach the publisher, who decides what to drop; nothing may be lost or block here."""
    a, b = end(pki("a")), end(pki("b"))
    release = threading.Event()
    b.told.on_frame = lambda pipe, frame: None if release.is_set() else bool(release.wait(10))
    lane = a.dial(b)
    a.told.one("lane_opened")
    wait(lambda: b.transport.receiving_since_ns() is not None, "the reader is stuck")
    frame, taken, declined_since = b"x" * 1_000_000, 0, time.monotonic()
    while time.monotonic() - declined_since < 0.3:  # full is when nothing was taken for a while
        if lane.try_send(frame):
            taken, declined_since = taken + 1, time.monotonic()
        time.sleep(0.001)
    seen = len(a.told.all("lane_writable"))
    release.set()
    wait(lambda: len(a.told.all("lane_writable")) > seen, "writable")
    assert lane.try_send(b"last")
    wait(lambda: b.told.frames()[-1:] == [b"last"], "the rest arrives")
    assert len(b.told.frames()) == taken + 2


def test_lane_asked_to_notify_tells_writable_once_and_not_when_closed(pki: Any, end: Any) -> None:
    """The driver hands work to the I/O thread this way; a lost or repeated notice would stall or spin it."""
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    lane.notify()
    a.told.one("lane_opened")
    assert not a.told.all("lane_writable")
    for count in (1, 2):
        lane.notify()
        wait(lambda count=count: len(a.told.all("lane_writable")) == count, "told")
    lane.close()
    lane.notify()
    wait(lambda: a.transport.statistics()["lanes"] == 0, "closed")
    assert len(a.told.all("lane_writable")) == 2


def test_peer_killed_while_the_reader_is_slow_is_told(pki: Any, end: Any) -> None:
    """The library forgets such pipes: they would stay open here for ever, and the dead neighbour with them."""
    files = pki("b")
    b = end(files)
    release = threading.Event()
    b.told.on_frame = lambda pipe, frame: None if release.is_set() else bool(release.wait(10))
    with raw_tls(b.address, pki("a"), files.authority) as sock:
        sock.sendall(SP_PUSH + (struct.pack(">Q", 1) + b"x") * 2)
        wait(lambda: b.transport.receiving_since_ns() is not None, "the reader is stuck")
    # closed without TLS's farewell, as the kernel does for a process that is killed; nothing waits to receive that
    wait(lambda: not connected(b.address.port), "the end has arrived")
    release.set()
    b.told.one("inbound_closed")
    assert b.told.frames() == [b"x", b"x"]


def connected(port: int) -> bool:
    """Whether a connection into ``port`` is established, for the kernel."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


def test_frame_above_the_bound_is_refused_by_sender(pki: Any, end: Any) -> None:
    """Sent, it would cost us the link: the other end closes on it."""
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    with pytest.raises(BoundExceeded, match="split"):
        lane.try_send(bytes(MAX_FRAME_BYTES + 1))


def test_last_frame_before_close_is_received(pki: Any, end: Any) -> None:
    """A goodbye is always followed by a close: it must not be overtaken by it."""
    b = end(pki("b"))
    for number in range(20):
        a = end(pki("a"))
        lane = a.dial(b)
        a.told.one("lane_opened")
        goodbye = b"goodbye %d" % number
        wait(lambda lane=lane, goodbye=goodbye: lane.try_send(goodbye), "the lane takes it")
        a.transport.close()
        wait(lambda number=number: len(b.told.all("inbound_closed")) == number + 1, "its end is told")
        assert b.told.frames()[-1] == goodbye
    assert not a.told.all("lane_closed")


def test_lane_closed_by_us_gives_no_notice_and_ends_the_pipe(pki: Any, end: Any) -> None:
    """Membership closed it and knows; a notice would make it redial."""
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    lane.close()
    lane.close()
    assert not lane.try_send(b"x")
    b.told.one("inbound_closed")
    wait(lambda: a.transport.statistics()["lanes"] == 0, "its socket is gone")
    assert not a.told.all("lane_closed")


def test_pipe_closed_by_inbox_is_told_to_both_ends(pki: Any, end: Any) -> None:
    """A Hello that contradicts its certificate ends like this."""
    a, b = end(pki("a")), end(pki("b"))
    b.told.on_frame = lambda pipe, frame: b.transport.close_pipe(pipe)
    lane = a.dial(b)
    assert "closed the connection" in a.told.one("lane_closed")[2]
    b.told.one("inbound_closed")
    assert not lane.try_send(b"x")
    b.transport.close_pipe(12345)


def test_close_while_threads_send_returns_and_nothing_is_told_after(pki: Any, end: Any) -> None:
    """Shutdown happens under load: it must neither hang nor crash."""
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            lane.try_send(b"x" * 1000)

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    wait(lambda: len(b.told.frames()) > 50, "frames flow")
    a.transport.close()
    told = len(a.told.log)
    stop.set()
    for sender in senders:
        sender.join(5)
        assert not sender.is_alive()
    assert not lane.try_send(b"x")
    lane.close()
    a.transport.close()
    assert len(a.told.log) == told
    b.told.one("inbound_closed")


def test_inbox_restarted_on_its_port_is_met_again_by_a_new_dial(pki: Any, end: Any) -> None:
    """A restarted neighbour comes back on its configured port; the old lane must not linger."""
    a, b = end(pki("a")), end(pki("b"))
    first = a.dial(b)
    a.told.one("lane_opened")
    b.transport.close()
    assert a.told.one("lane_closed")[1] is first
    second = a.dial(b, b"again")  # dialled before it listens: the engine tries again by itself
    again = end(pki("b"), port=b.address.port)
    assert wait(lambda: a.told.all("lane_opened")[1:], "opened again")[0][1] is second
    wait(lambda: again.told.frames() == [b"again"], "greeting")


def test_port_in_use_names_address_and_way_out(pki: Any, end: Any) -> None:
    """The first thing that goes wrong when a node is started twice."""
    b = end(pki("b"))
    with pytest.raises(TransportError, match=rf"127\.0\.0\.1:{b.address.port} is in use.*another port"):
        end(pki("a"), port=b.address.port)
    with pytest.raises(TransportError, match="has an inbox"):
        b.transport.listen("127.0.0.1", 0)


def test_listen_on_foreign_address_names_it(pki: Any) -> None:
    """A typo in the configuration."""
    transport = open_transport(pki("a"), Recorder(), MESH)
    with pytest.raises(TransportError, match=r"192\.0\.2\.1"):
        transport.listen("192.0.2.1", 0)
    transport.close()


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "binary", "key of another", "no authority"])
def test_unusable_credentials_name_the_file(pki: Any, tmp_path: Path, damage: str) -> None:
    """Found at start, not as a handshake that fails for ever."""
    good, other = pki("a"), pki("b")
    files = {name: tmp_path / name for name in ("certificate", "key", "authority")}
    for name, path in files.items():
        path.write_bytes(getattr(good, name).read_bytes())
    if damage == "missing":
        files["key"].unlink()
    elif damage == "key of another":
        files["key"].write_bytes(other.key.read_bytes())
    elif damage == "no authority":
        files["authority"].write_bytes(b"")
    else:
        files["certificate"].write_bytes({"empty": b"", "text": b"hello\n", "binary": bytes(range(256))}[damage])
    with pytest.raises(IdentityError, match=str(tmp_path)):
        open_transport(Credentials(**files), Recorder(), MESH)


def test_hundreds_of_lanes_leave_no_descriptor_and_no_thread(pki: Any, end: Any) -> None:
    """A node redials for months: one leaked descriptor per dial ends it within a day."""
    a, b = end(pki("a")), end(pki("b"))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        nowhere = Address("127.0.0.1", mute.getsockname()[1])

        def round_of(count: int) -> None:
            a.told.log.clear()
            good = [a.dial(b) for _ in range(count)]
            bad = [a.dial(nowhere, timeout_s=20) for _ in range(count)]
            wait(lambda: len(a.told.all("lane_opened")) == count, "all open", 20)
            for lane in good + bad:
                lane.close()
            wait(lambda: a.transport.statistics()["lanes"] == 0, "all closed")
            wait(lambda: len(b.told.all("inbound_opened")) == len(b.told.all("inbound_closed")), "all gone")

        def held() -> tuple[int, int]:
            return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

        round_of(50)
        before = held()
        for _ in range(2):
            round_of(50)
        wait(lambda: held() <= (before[0] + 2, before[1]), f"as many descriptors and threads as before: {before}")


def test_connections_of_strangers_are_shut_once_older_than_a_handshake() -> None:
    """Without this any stranger takes all descriptors of a node by connecting and keeping still."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)) as stranger,
            socket.create_connection(("127.0.0.1", port)) as peer,
        ):
            ours = [listener.accept()[0] for _ in range(2)]
            known, gone = ("127.0.0.1", peer.getsockname()[1]), ("127.0.0.1", 1)
            connections = Connections(port, handshake_ns=100)
            for now_ns, closed in ((0, 0), (99, 0), (100, 1), (101, 0)):
                found = connections.look({known, gone}, now_ns)
                assert (found.mute_closed, found.vanished) == (closed, {gone})
            stranger.settimeout(5)
            assert stranger.recv(1) == b""
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            for sock in ours:
                sock.close()


def test_stranger_keeping_still_at_the_inbox_is_closed_and_peers_stay(
    pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own negotiation time-out has no effect while TLS waits for the first bytes."""
    monkeypatch.setattr("meshnode.net._links._SWEEP_NS", 100_000_000)
    monkeypatch.setattr("meshnode.net._links._HANDSHAKE_NS", 300_000_000)
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    with socket.create_connection((b.address.host, b.address.port)) as stranger:
        stranger.settimeout(8)
        assert stranger.recv(1) == b""
    wait(lambda: b.transport.statistics()["mute_connections_closed"] == 1, "it is counted")
    assert lane.try_send(b"still here")
    wait(lambda: b.told.frames() == [b"hello", b"still here"], "the peer is heard")


def test_pipe_lost_during_a_notice_is_told_after_it() -> None:
    """Subscribers run on the receiving thread and may be slow: the I/O thread may not wait, the order must hold."""
    told, inside, go_on = Recorder(), threading.Event(), threading.Event()
    pipes = InboundPipes(told, 1)
    pipe = InboundPipe(7, PeerIdentity(MESH, Role.RSU, node_id("b")), "127.0.0.1", 1)
    assert pipes.admit(pipe)
    assert not pipes.admit(InboundPipe(8, pipe.identity, "127.0.0.1", 2))
    told.on_frame = lambda number, frame: (inside.set(), go_on.wait(5), told.log.append(("returned",)))[0]
    receiver = threading.Thread(target=pipes.receive, args=(7, b"x"))
    receiver.start()
    assert inside.wait(5)
    pipes.close(pipe)
    assert not told.all("inbound_closed")
    go_on.set()
    receiver.join(5)
    assert [entry[0] for entry in told.log] == ["inbound_opened", "frame", "returned", "inbound_closed"]
    assert not pipes.receive(7, b"late")
    assert pipes.admit(InboundPipe(8, pipe.identity, "127.0.0.1", 2))


# --- other processes -----------------------------------------------------------------------------------------------

_CHILD = """
import sys, time
from pathlib import Path
from meshnode.net.nng import open_transport
from meshnode.net.transport import Address, Credentials
from tests.link_fixture import MESH, Recorder

told = Recorder()
transport = open_transport(Credentials(*map(Path, sys.argv[1:4])), told, MESH)
print(transport.listen("127.0.0.1", 0), flush=True)
lane = transport.dial(Address("127.0.0.1", int(sys.argv[4])), lambda: b"child", 5)
told.one("lane_opened")
told.one("frame")
"""


def child(files: Credentials, port: int, then: str) -> "subprocess.Popen[str]":
    script = textwrap.dedent(_CHILD) + then
    arguments = [str(files.certificate), str(files.key), str(files.authority), str(port)]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_process_killed_is_told_at_both_its_pipes(pki: Any, end: Any) -> None:
    """SIGKILL must be noticed by the kernel's word, long before silence is."""
    b = end(pki("b"))
    with child(pki("a"), b.address.port, "time.sleep(60)") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        b.told.one("inbound_opened")
        lane = b.dial(Address("127.0.0.1", port))
        b.told.one("lane_opened")
        process.send_signal(signal.SIGKILL)
        assert b.told.one("lane_closed")[1] is lane
        b.told.one("inbound_closed")


def test_interpreter_that_forgets_to_close_exits_cleanly(pki: Any, end: Any) -> None:
    """NNG panics when its callbacks meet an interpreter that is going away."""
    b = end(pki("b"))
    with child(pki("a"), b.address.port, "") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        b.dial(Address("127.0.0.1", port))
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
