"""What only the NNG engine needs: it is watched from outside where the library does not watch."""

import socket
import threading
from typing import Any

import pytest

from meshnode.links.nng.connections import Connections
from meshnode.links.nng.inbound import InboundPipe, InboundPipes
from meshnode.links.transport import OutgoingLane
from protocols.base.ids import PeerIdentity, Role, node_id
from tests.tools.eventually import eventually
from tests.tools.link_fixture import MESH, Recorder, given_ca, given_end, given_pki  # noqa: F401 -- fixtures


def test_connections_of_strangers_are_shut_once_older_than_a_handshake() -> None:
    """Without this any stranger takes all descriptors of a node by connecting and keeping still."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)) as stranger,
            socket.create_connection(("127.0.0.1", port)) as peer,
        ):
            ours = [listener.accept()[0] for _ in range(2)]
            known, gone = ("127.0.0.1", peer.getsockname()[1]), ("127.0.0.1", 1, 10**19)
            connections = Connections(port, handshake_ns=100)
            for now_ns, closed in ((0, 0), (99, 0), (100, 1), (101, 0)):
                found = connections.look({known, gone}, now_ns)
                assert (found.mute_closed, found.vanished) == (closed, {gone})
            stranger.settimeout(30)
            assert stranger.recv(1) == b""
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            for sock in ours:
                sock.close()


def test_lane_whose_connection_has_ended_is_found_without_a_notice() -> None:
    """The library forgot to tell of one whose peer ended as it opened, and the lane stayed for good."""
    with socket.create_server(("127.0.0.1", 0)) as inbox, socket.create_server(("127.0.0.1", 0)) as other:
        connections = Connections(inbox.getsockname()[1], handshake_ns=100)
        dialled = [socket.create_connection(other.getsockname()) for _ in range(3)]
        accepted = [other.accept()[0] for _ in dialled]
        lanes = [(sock.getpeername(), sock.getsockname()[1]) for sock in dialled]
        assert connections.look((), 0, lanes).lanes_ended == frozenset()
        dialled[0].close()  # as the library does
        accepted[1].close()
        assert dialled[1].recv(1) == b"", "its end has come"
        assert connections.look((), 0, lanes).lanes_ended == {lanes[0], lanes[1]}
        for sock in (*dialled, *accepted):
            sock.close()


def test_stranger_keeping_still_at_the_inbox_is_closed_and_peers_stay(
    pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own negotiation time-out has no effect while TLS waits for the first bytes."""
    monkeypatch.setattr("meshnode.links.nng.links._SWEEP_NS", 100_000_000)
    monkeypatch.setattr("meshnode.links.nng.links._HANDSHAKE_NS", 300_000_000)
    a, b = end(pki("a"), engine="nng"), end(pki("b"), engine="nng")

    def dialled() -> OutgoingLane | None:
        """A lane, unless a busy machine took longer for its handshake than strangers have here."""
        lane = a.dial(b)
        return lane if "lane_opened" in eventually(lambda: a.told.of(lane), "it opens or is closed") else None

    lane = eventually(dialled, "a link")
    closed = b.transport.statistics()["mute_connections_closed"]
    with socket.create_connection((b.address.host, b.address.port)) as stranger:
        stranger.settimeout(30)
        assert stranger.recv(1) == b""
    eventually(lambda: b.transport.statistics()["mute_connections_closed"] == closed + 1, "it is counted")
    eventually(lambda: lane.try_send(b"still here"), "the lane takes a frame")
    eventually(lambda: b.told.frames()[-2:] == [b"hello", b"still here"], "the peer is heard")


def test_lane_that_has_lived_its_hour_is_ended_after_its_last_frame_and_told(
    pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe outlives its certificate, whose end the library does not show: only a new handshake proves it again."""
    monkeypatch.setattr("meshnode.links.nng.links._SWEEP_NS", 20_000_000)
    monkeypatch.setattr("meshnode.links.nng.links._LANE_AGE_NS", 400_000_000)
    a, b = end(pki("a"), engine="nng"), end(pki("b"), engine="nng")
    lane = a.dial(b)
    a.told.one("lane_opened")
    sent = [b"hello"]
    while not a.told.all("lane_closed"):
        frame = b"%d" % len(sent)
        if lane.try_send(frame):
            sent.append(frame)
    assert "after its hour" in a.told.one("lane_closed")[2]
    b.told.one("inbound_closed")
    assert b.told.frames() == sent
    assert a.transport.statistics()["outlived_connections_closed"] == 1
    assert b.transport.statistics()["outlived_connections_closed"] == 0
    again = a.dial(b)
    eventually(lambda: "lane_opened" in a.told.of(again), "the next handshake")


def test_pipe_whose_dialler_does_not_end_it_is_ended_by_the_inbox(
    pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds a stolen certificate would never hang up."""
    monkeypatch.setattr("meshnode.links.nng.links._SWEEP_NS", 20_000_000)
    monkeypatch.setattr("meshnode.links.nng.links._PIPE_AGE_NS", 300_000_000)
    a, b = end(pki("a"), engine="express"), end(pki("b"), engine="nng")
    a.dial(b)
    assert "closed the connection" in a.told.one("lane_closed")[2]
    b.told.one("inbound_closed")
    assert b.transport.statistics()["outlived_connections_closed"] == 1


def test_pipe_whose_time_is_over_is_ended_once_however_late_the_library_tells_of_its_end() -> None:
    pipes = InboundPipes(Recorder(), 2)
    assert pipes.admit(InboundPipe(7, PeerIdentity(MESH, Role.RSU, node_id("b")), "127.0.0.1", 1, 100))
    assert pipes.admit(InboundPipe(8, PeerIdentity(MESH, Role.RSU, node_id("c")), "127.0.0.1", 2, 200))
    assert pipes.outlived(99) == []
    assert pipes.outlived(100) == [7]
    assert pipes.outlived(200) == [8]


def test_pipe_lost_during_a_notice_is_told_after_it() -> None:
    """Subscribers run on the receiving thread and may be slow: the I/O thread may not wait, the order must hold."""
    told, inside, go_on = Recorder(), threading.Event(), threading.Event()
    pipes = InboundPipes(told, 1)
    pipe = InboundPipe(7, PeerIdentity(MESH, Role.RSU, node_id("b")), "127.0.0.1", 1, 10**19)
    assert pipes.admit(pipe)
    assert not pipes.admit(InboundPipe(8, pipe.identity, "127.0.0.1", 2, 10**19))
    told.on_frame = lambda number, frame: (inside.set(), go_on.wait(30), told.log.append(("returned",)))[0]
    receiver = threading.Thread(target=pipes.receive, args=(7, b"x"))
    receiver.start()
    assert inside.wait(30)
    pipes.close(pipe)
    assert not told.all("inbound_closed")
    go_on.set()
    receiver.join(30)
    assert [entry[0] for entry in told.log] == ["inbound_opened", "frame", "returned", "inbound_closed"]
    assert not pipes.receive(7, b"late")
    assert pipes.admit(InboundPipe(8, pipe.identity, "127.0.0.1", 2, 10**19))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_lane_whose_connection_is_there_survives_every_comparison(
    pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """The library and the kernel must name the ends of one connection alike, in both families."""
    looked: list[frozenset[Any]] = []
    original = Connections.look

    def look(self: Connections, *arguments: Any) -> Any:
        found = original(self, *arguments)
        if len(arguments) > 2 and arguments[2]:
            looked.append(found.lanes_ended)
        return found

    monkeypatch.setattr("meshnode.links.nng.links._SWEEP_NS", 20_000_000)
    monkeypatch.setattr(Connections, "look", look)
    a, b = end(pki("a"), engine="nng"), end(pki("b"), engine="nng", host=host)
    a.dial(b)
    a.told.one("lane_opened")
    eventually(lambda: len(looked) >= 3, "the open lane is compared")
    assert set(looked) == {frozenset()}
    assert a.told.all("lane_closed") == []
