"""Exchanges with a relay over real sockets: whose request it is, whose answer, and what a failure leaves behind."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.identity import create_mesh, issue
from meshnode.links.nng.library import open_requester, open_responder
from meshnode.links.nng.requesters import MAX_PIPES_PER_IDENTITY, RequesterPipes
from meshnode.links.transport import Address, CredentialFiles
from protocols.base.errors import TransportError
from protocols.base.ids import NodeId, PeerIdentity, Role
from protocols.base.limits import SECOND
from tests.tools.eventually import eventually
from tests.tools.link_fixture import MESH, given_ca, given_pki, raw_tls  # noqa: F401 -- fixtures
from tests.tools.pki_fixture import authority

SP_REQ = b"\0SP\0\0\x30\0\0"


@pytest.fixture
def relay(pki: Any) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as stack:

        def make(
            handler: Callable[[PeerIdentity, bytes], bytes], files: CredentialFiles | None = None, port: int = 0
        ) -> Any:
            responder = open_responder(files or pki("relay", role="relay"), "127.0.0.1", port, MESH, handler, workers=2)
            stack.callback(responder.close)
            return responder

        yield make


@pytest.fixture
def ask(pki: Any) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as stack:

        def make(port: int, files: CredentialFiles | None = None, **options: Any) -> Any:
            requester = open_requester(files or pki("a"), Address("127.0.0.1", port), MESH, **options)
            stack.callback(requester.close)
            return requester

        yield make


def test_request_is_answered_with_the_requesters_identity(relay: Any, ask: Any) -> None:
    """The relay files records under the identity of the certificate, never under what a batch claims."""
    responder = relay(lambda identity, frame: f"{identity.role}/{identity.node}:".encode() + frame)
    requester = ask(responder.port)
    assert requester.request(b"batch", 30) == b"vehicle/a:batch"
    assert requester.request(b"x" * 300_000, 30)[-10:] == b"x" * 10


def test_request_to_mute_server_times_out(ask: Any) -> None:
    """An uplink behind a dead middlebox looks like this; the outbox must get its turn back."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        requester = ask(mute.getsockname()[1])
        with pytest.raises(TransportError, match=r"within 0\.6 s.*mute"):
            requester.request(b"x", 0.6)


def test_late_response_is_never_taken_for_the_next_request(relay: Any, ask: Any) -> None:
    """Taken for it, records would be acknowledged that never arrived."""
    slow = threading.Event()

    def handle(identity: PeerIdentity, frame: bytes) -> bytes:
        if frame == b"slow":
            slow.wait(60)
        return b"answer to " + frame

    requester = ask(relay(handle).port)
    assert requester.request(b"first", 30) == b"answer to first"
    with pytest.raises(TransportError, match="no answer"):
        requester.request(b"slow", 0.3)
    slow.set()
    for number in range(20):
        assert requester.request(b"%d" % number, 30) == b"answer to %d" % number


@pytest.mark.parametrize(
    ("relay_options", "ask_options", "why"),
    [
        ({"role": "rsu"}, {}, "role 'rsu'"),
        ({"role": "relay", "mesh": "other"}, {}, "mesh 'other'"),
        ({"role": "relay"}, {"node": "relay-2"}, "'relay-2' is expected"),
    ],
)
def test_relay_that_is_somebody_else_is_sent_nothing(
    pki: Any, relay: Any, ask: Any, relay_options: dict[str, str], ask_options: dict[str, Any], why: str
) -> None:
    """Any vehicle of the mesh could otherwise pose as the relay and swallow everybody's records."""
    asked: list[bytes] = []
    responder = relay(lambda identity, frame: asked.append(frame) or b"ok", pki("relay", **relay_options))
    requester = ask(responder.port, **ask_options)
    for _ in range(2):
        with pytest.raises(TransportError, match=f"refused.*{why}"):
            requester.request(b"records", 30)
    assert not asked


def test_requester_of_another_authority_learns_why(pki: Any, relay: Any, ask: Any) -> None:
    """Said within a second instead of as a time-out: the operator can act on it."""
    responder = relay(lambda identity, frame: b"ok")
    requester = ask(responder.port, pki("a", authority()))
    with pytest.raises(TransportError, match="TLS handshake failed"):
        requester.request(b"x", 30)


def test_requester_of_another_mesh_gets_no_answer(pki: Any, relay: Any, ask: Any) -> None:
    """The relay's own check, whatever the requester believes."""
    asked: list[bytes] = []
    responder = relay(lambda identity, frame: asked.append(frame) or b"ok")
    requester = ask(responder.port, pki("a", mesh="other"))
    with pytest.raises(TransportError):
        requester.request(b"x", 1)
    assert not asked


def test_relay_restarted_ends_the_request_and_is_found_again(relay: Any, ask: Any) -> None:
    """A lost connection must not cost the whole time-out, and needs no new requester."""
    entered, never = threading.Event(), threading.Event()

    def stuck(identity: PeerIdentity, frame: bytes) -> bytes:
        entered.set()
        never.wait(60)
        return b"too late"

    first = relay(stuck)
    requester = ask(first.port)
    failed: list[Exception] = []

    def request() -> None:
        try:
            requester.request(b"x", 30)
        except TransportError as error:
            failed.append(error)

    waiting = threading.Thread(target=request)
    waiting.start()
    assert entered.wait(30)
    first._sock.close()  # as a crash would: the request under way gets no answer
    waiting.join(30)
    assert failed
    assert "lost" in str(failed[0])
    never.set()
    first.close()
    relay(lambda identity, frame: b"back", port=first.port)
    assert requester.request(b"y", 30) == b"back"


def test_requester_closed_ends_a_waiting_request(relay: Any, ask: Any) -> None:
    """SIGTERM must not wait for the relay."""
    entered, release = threading.Event(), threading.Event()
    responder = relay(lambda identity, frame: (entered.set(), release.wait(60), b"late")[2])
    requester = ask(responder.port)
    failed: list[Exception] = []

    def request() -> None:
        try:
            requester.request(b"x", 30)
        except TransportError as error:
            failed.append(error)

    waiting = threading.Thread(target=request)
    waiting.start()
    assert entered.wait(30)
    requester.close()
    waiting.join(30)
    assert failed
    release.set()
    with pytest.raises(TransportError, match="closed here"):
        requester.request(b"x", 1)


def test_responder_closing_answers_the_request_under_way(relay: Any, ask: Any) -> None:
    """A record that was stored must be acknowledged, or it comes again at once."""
    entered, release = threading.Event(), threading.Event()
    responder = relay(lambda identity, frame: (entered.set(), release.wait(60), b"done")[2])
    requester = ask(responder.port)
    answers: list[bytes] = []
    waiting = threading.Thread(target=lambda: answers.append(requester.request(b"x", 30)))
    waiting.start()
    assert entered.wait(30)
    closing = threading.Thread(target=responder.close)
    closing.start()
    release.set()
    waiting.join(30)
    closing.join(30)
    assert answers == [b"done"]
    assert not closing.is_alive()


def test_responder_whose_handler_fails_goes_on(relay: Any, ask: Any) -> None:
    """One request that trips a bug must not end the relay."""

    def handle(identity: PeerIdentity, frame: bytes) -> bytes:
        if frame == b"bad":
            raise ValueError("bug")
        return b"ok"

    requester = ask(relay(handle).port)
    for _ in range(3):
        with pytest.raises(TransportError):
            requester.request(b"bad", 0.3)
    assert requester.request(b"good", 30) == b"ok"


def test_responder_port_in_use_is_named(relay: Any) -> None:
    """Two relays on one host."""
    first = relay(lambda identity, frame: b"")
    with pytest.raises(TransportError, match=f"{first.port} is in use"):
        relay(lambda identity, frame: b"", port=first.port)


# --- what one identity can take ------------------------------------------------------------------------------------
def test_identity_that_takes_all_places_leaves_room_for_others(
    pki: Any, relay: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One certificate could take all 4,096 places of a relay, and nobody else got in."""
    monkeypatch.setattr("meshnode.links.nng.requesters.MAX_PIPES", 6)
    responder = relay(lambda identity, frame: identity.node.encode())
    insider = [ask(responder.port) for _ in range(12)]
    for requester in insider:
        with contextlib.suppress(TransportError):  # its oldest connections make way for its newest
            requester.request(b"x", 30)
    honest = [ask(responder.port, pki(name)) for name in ("b", "c", "d", "e")]
    for requester, name in zip(honest, (b"b", b"c", b"d", b"e"), strict=True):
        assert requester.request(b"x", 30) == name
    assert responder.statistics()["requesters"] <= 6


def test_identity_whose_connections_were_left_behind_gets_a_new_one(relay: Any, ask: Any) -> None:
    """A vehicle that changes networks leaves connections behind that nobody closes for hours."""
    responder = relay(lambda identity, frame: b"ok")
    for _ in range(MAX_PIPES_PER_IDENTITY + 3):
        assert ask(responder.port).request(b"x", 30) == b"ok"
    assert responder.statistics()["requesters_gave_way"] >= 3


def test_identity_with_many_requests_under_way_leaves_threads_for_others(
    pki: Any, ask: Any, relay_of_four: Any
) -> None:
    """Requests that wait for the disk would otherwise keep each thread of the relay."""
    release, waiting = threading.Event(), threading.Semaphore(0)

    def handle(identity: PeerIdentity, frame: bytes) -> bytes:
        if identity.node == "a":
            waiting.release()
            release.wait(60)
        return b"ok"

    responder = relay_of_four(handle)
    insider = [ask(responder.port) for _ in range(4)]
    threads = [threading.Thread(target=_tried, args=(requester,)) for requester in insider]
    for thread in threads:
        thread.start()
    try:
        assert waiting.acquire(timeout=30)
        assert waiting.acquire(timeout=30)
        eventually(lambda: responder.statistics()["requests_refused"] >= 2, "the other two are not handled")
        assert ask(responder.port, pki("b")).request(b"x", 30) == b"ok"
    finally:
        release.set()
        for thread in threads:
            thread.join(60)


def test_identity_that_asks_again_before_its_answer_was_noted_as_sent_is_handled() -> None:
    """A node that fetches chunk after chunk had its connection closed, because it was faster than the thread that had
    sent its answer. Answers that it does not take keep threads too, so they are bounded as well."""
    pipes, identity = RequesterPipes(2), PeerIdentity(MESH, Role.VEHICLE, NodeId("a"))
    assert pipes.admit(1, identity, ("192.0.2.7", 7000), 0)
    for _ in range(4):
        assert pipes.begin(1) == identity
        pipes.handled(identity)
    assert pipes.begin(1) is None, "twice as many answers as requests are on their way"
    pipes.ended(1, identity)
    assert [pipes.begin(1), pipes.begin(1)] == [identity, identity]
    assert pipes.begin(1) is None
    assert pipes.statistics()["requests_refused"] == 2


def test_identity_that_never_reads_its_answers_leaves_threads_for_others(
    pki: Any, ask: Any, relay_of_four: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer that waits for the one before it keeps a thread. One connection took all four of them for ever, and
    the relay could not even be closed."""
    monkeypatch.setattr("meshnode.links.nng.library._ANSWER_TIMEOUT_MS", 3_000)  # all five are handled by then
    handled: list[bytes] = []

    def handle(identity: PeerIdentity, frame: bytes) -> bytes:
        if identity.node == "b":
            return b"ok"
        handled.append(frame)
        return bytes(16_000_000)  # more than the kernel's buffers hold

    responder, files = relay_of_four(handle), pki("a")
    with contextlib.closing(raw_tls(Address("127.0.0.1", responder.port), files, files.authority)) as insider:
        insider.sendall(SP_REQ)
        for number in range(5):  # the first answer is on its way, and the others wait for it
            request = struct.pack(">I", 0x8000_0000 + number) + b"x"
            insider.sendall(struct.pack(">Q", len(request)) + request)
            eventually(lambda number=number: len(handled) > number, "the relay handles it")
        assert ask(responder.port, pki("b")).request(b"x", 30) == b"ok"
        eventually(lambda: responder.statistics()["requesters_not_reading"] == 1, "its connection is closed")


def test_identity_that_does_not_take_its_answers_gets_no_other_connection_for_a_minute() -> None:
    """Two of them that connected again at once would have kept most threads of a relay."""
    pipes, remote = RequesterPipes(2), ("192.0.2.1", 5)
    bad, good = (PeerIdentity(MESH, Role.VEHICLE, NodeId(node)) for node in ("a", "b"))
    assert pipes.admit(1, bad, remote, 0)
    pipes.not_taken(1, 10 * SECOND)
    assert list(pipes.to_close(10 * SECOND)) == [1]
    assert not pipes.admit(2, bad, remote, 69 * SECOND)
    assert pipes.admit(3, good, remote, 69 * SECOND)
    assert pipes.admit(4, bad, remote, 70 * SECOND)


def _tried(requester: Any) -> None:
    with contextlib.suppress(TransportError):
        requester.request(b"x", 30)


@pytest.fixture
def relay_of_four(pki: Any) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as stack:

        def make(handler: Callable[[PeerIdentity, bytes], bytes]) -> Any:
            responder = open_responder(pki("relay", role="relay"), "127.0.0.1", 0, MESH, handler, workers=4)
            stack.callback(responder.close)
            return responder

        yield make


# --- certificates that end -----------------------------------------------------------------------------------------
def test_connection_whose_certificate_has_ended_is_not_served_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay went on to serve it until its connection broke, which may take months."""
    monkeypatch.setattr("meshnode.links.nng.requesters.PIPE_AGE_NS", SECOND)
    create_mesh(tmp_path / "authority", MESH)
    files = {
        name: issue(tmp_path / "authority", role, name, tmp_path, valid_days=seconds / 86_400).credentials
        for name, role, seconds in (("relay-1", Role.RELAY, 600), ("valid", Role.RSU, 600), ("ending", Role.RSU, 10))
    }
    answered = dict.fromkeys(("valid", "ending"), 0)
    refused: list[str] = []

    def asked(name: str, requester: Any) -> None:
        try:
            requester.request(b"x", 30)
        except TransportError as error:
            if "TLS handshake failed" in str(error):
                refused.append(name)
        else:
            answered[name] += 1

    with (
        contextlib.closing(open_responder(files["relay-1"], "127.0.0.1", 0, MESH, lambda *_: b"ok")) as responder,
        contextlib.closing(open_requester(files["valid"], Address("127.0.0.1", responder.port), MESH)) as valid,
        contextlib.closing(open_requester(files["ending"], Address("127.0.0.1", responder.port), MESH)) as ending,
    ):
        asked("ending", ending)
        assert answered["ending"] == 1
        eventually(lambda: asked("ending", ending) or bool(refused), "the relay closes it, and takes it no more", 60)
        asked("valid", valid)
        eventually(lambda: asked("valid", valid) or answered["valid"] > 1, "who proves its certificate goes on", 60)
        assert responder.statistics()["requesters_outlived"] >= 1
    assert refused == ["ending"]
