"""What only the express engine promises: reasons, new limits on strangers, expiry, and TLS that nothing stalls."""

import contextlib
import errno
import itertools
import logging
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from meshnode.links.express import engine, inbox
from meshnode.links.express.engine import ExpressLinks, open_express
from meshnode.links.transport import Address, CredentialFiles
from tests.tools.eventually import eventually
from tests.tools.link_fixture import (  # noqa: F401 -- fixtures
    MESH,
    SP_PULL,
    SP_PUSH,
    End,
    Recorder,
    given_ca,
    given_end,
    given_pki,
    raw_tls,
)
from tests.tools.pki_fixture import authority


@contextlib.contextmanager
def raw_inbox(files: CredentialFiles, serve: Callable[[ssl.SSLSocket], object], **options: Any) -> Iterator[Address]:
    """A TLS server that is not ours, for one connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    for name, value in options.items():
        setattr(context, name, value)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def run() -> None:
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                plain = stack.enter_context(listener.accept()[0])
                plain.settimeout(30)
                serve(stack.enter_context(context.wrap_socket(plain, server_side=True)))

        thread = threading.Thread(target=run)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join(60)
        assert not thread.is_alive()


# --- reasons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "stranger", "kind", "why"),
    [
        ({}, True, "other_authority", "another authority"),
        ({"days": -1}, False, "expired", "has expired"),
        ({"dns": ("other.name",)}, False, "wrong_name", "lacks the name mesh.node"),
    ],
)
def test_dial_of_untrusted_inbox_counts_and_tells_why(
    pki: Any, end: Any, options: dict[str, Any], stranger: bool, kind: str, why: str
) -> None:
    """'TLS failed' sends an operator to search through four causes; each has its own way out."""
    a, b = end(pki("a")), end(pki("bad", authority(), **options) if stranger else pki("bad", **options))
    a.dial(b)
    assert why in a.told.one("lane_closed")[2]
    assert a.transport.statistics()[f"handshakes_failed_{kind}"] == 1
    eventually(
        lambda: b.transport.statistics()["handshakes_failed_rejects_ours"] == 1, "the inbox knows that it is refused"
    )


@pytest.mark.parametrize(
    ("options", "stranger", "kind", "why"),
    [
        ({}, True, "other_authority", "does not trust the authority of our certificate"),
        ({"days": -1}, False, "expired", "our certificate has expired"),
    ],
)
def test_inbox_dialled_by_the_untrusted_counts_why_and_the_dialler_learns_it(
    pki: Any, end: Any, options: dict[str, Any], stranger: bool, kind: str, why: str
) -> None:
    """The side with the wrong certificate is the one where somebody can mend it."""
    a, b = end(pki("bad", authority("other"), **options) if stranger else pki("bad", **options)), end(pki("b"))
    a.dial(b)
    assert why in a.told.one("lane_closed")[2]
    eventually(lambda: b.transport.statistics()[f"handshakes_failed_{kind}"] == 1, "counted")


def test_strangers_of_every_kind_are_counted_apart_and_logged_once(
    pki: Any, end: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A log that any stranger can fill hides what matters, and one that says nothing helps nobody."""
    files = pki("b")
    b = end(files)
    caplog.set_level(logging.WARNING)
    for _ in range(5):
        with socket.create_connection((b.address.host, b.address.port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            sock.recv(100)
        with contextlib.suppress(OSError):
            raw_tls(b.address, pki("a"), files.authority, maximum_version=ssl.TLSVersion.TLSv1_2).close()
        with contextlib.suppress(OSError), raw_tls(b.address, None, files.authority) as tls:
            tls.recv(1)
        with socket.create_connection((b.address.host, b.address.port)) as sock:
            sock.sendall(b"\x16\x03")
    counts = eventually(lambda: (s := b.transport.statistics())["handshakes_failed"] == 20 and s, "all are counted")
    kinds = ("not_our_protocol", "old_tls", "no_certificate", "hung_up")
    assert [counts[f"handshakes_failed_{kind}"] for kind in kinds] == [5, 5, 5, 5]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(kinds), lines
    assert all(line.startswith("no link with 127.0.0.1: ") for line in lines)


def test_dial_of_old_tls_says_so(pki: Any, end: Any) -> None:
    """An inbox behind somebody's TLS proxy."""
    a = end(pki("a"))
    with raw_inbox(pki("b"), lambda tls: None, maximum_version=ssl.TLSVersion.TLSv1_2) as address:
        a.dial(address)
        reason = a.told.one("lane_closed")[2]
    assert f"no connection to {address}: the TLS handshake failed" in reason
    assert a.transport.statistics()["handshakes_failed_old_tls"] == 1


def test_refused_peer_is_logged_by_name(pki: Any, end: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever revoked a node wants to read that it tried."""
    a, b = end(pki("a")), end(pki("b"), Recorder(refusal="revoked"))
    a.dial(b)
    a.told.one("lane_closed")
    eventually(lambda: "no link with vehicle a at 127.0.0.1: refused: revoked" in caplog.text, "the line")


# --- strangers -----------------------------------------------------------------------------------------------------


def test_five_hundred_half_open_connections_keep_no_neighbour_out(pki: Any, end: Any) -> None:
    """Anybody on the radio can connect and keep still; that must cost neighbours nothing, open or new."""
    a, b, c = end(pki("a")), end(pki("b")), end(pki("c"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    descriptors = psutil.Process().num_fds()
    with contextlib.ExitStack() as stack:
        for number in range(500):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((b.address.host, b.address.port))
            if number % 100 == 0:
                assert eventually(lambda: lane.try_send(b"still here"), "the open link takes a frame")
        c.dial(b, b"new")
        c.told.one("lane_opened")
        eventually(lambda: b"new" in b.told.frames() and b.told.frames().count(b"still here") == 5, "both are heard")

        def ended() -> int:
            """Those that made room, and those whose time was over before they had to."""
            told = b.transport.statistics()
            return told["handshakes_failed_crowded_out"] + told["mute_connections_closed"]

        # a kernel whose queue was full lets some of them in seconds later
        eventually(lambda: ended() >= 500 - inbox._MAX_NEWCOMERS - 1, lambda: f"all but a few have ended: {ended()}")
        assert psutil.Process().num_fds() - descriptors < 500 + inbox._MAX_NEWCOMERS + 20
    assert not a.told.all("lane_closed")


def test_strangers_at_once_have_their_turn_one_by_one_between_looks_at_open_links(
    pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of handshakes dealt with in a row would hold up a brake event for as long as all of them take."""
    files, b = pki("b"), end(pki("b"))
    links: Any = b.transport
    epoll, steps, accepted = links._epoll, [0], [0]

    class Watched:
        def poll(self, *arguments: Any) -> Any:
            steps.append(0)
            accepted.append(0)
            return epoll.poll(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(epoll, name)

    turn, attach = inbox.Inbound.turn, inbox.Inbound.attach

    def counted_turn(self: Any, events: int) -> None:
        steps[-1] += not self.open
        turn(self, events)

    def counted_attach(self: Any, sock: socket.socket) -> None:
        accepted[-1] += 1
        attach(self, sock)

    monkeypatch.setattr(links, "_epoll", Watched())
    monkeypatch.setattr(inbox.Inbound, "turn", counted_turn)
    monkeypatch.setattr(inbox.Inbound, "attach", counted_attach)
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            sock = stack.enter_context(socket.create_connection((b.address.host, b.address.port)))
            sock.sendall(b"\x16\x03\x01")
        with raw_tls(b.address, pki("a"), files.authority) as tls:
            tls.sendall(SP_PUSH)
            b.told.one("inbound_opened")
        eventually(lambda: sum(steps) > 60, "all had their turn")
    assert max(steps[1:]) == 1
    assert 1 <= max(accepted) <= 8


def test_handshake_of_one_byte_at_a_time_is_ended(pki: Any, end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress does not buy time: the deadline is one for the whole handshake."""
    monkeypatch.setattr(inbox, "_HANDSHAKE_NS", 300_000_000)
    b = end(pki("b"))
    with socket.create_connection((b.address.host, b.address.port)) as sock, pytest.raises(OSError):  # noqa: PT012
        for byte in b"\x16\x03\x01\x02\x00" + bytes(10_000):
            sock.sendall(bytes([byte]))
            time.sleep(0.02)
    assert b.transport.statistics()["mute_connections_closed"] == 1


def test_listener_out_of_descriptors_rests_and_accepts_again(pki: Any, end: Any) -> None:
    """The listener stays readable then: without a rest the I/O thread would spin and starve every link."""
    a, b = end(pki("a")), end(pki("b"))
    links: Any = b.transport
    real, tried = links._inbox._listener, []

    class Exhausted:
        def accept(self) -> None:
            tried.append(time.monotonic_ns())
            raise OSError(errno.EMFILE, "Too many open files")

    links._inbox._listener = Exhausted()
    a.dial(b, b"patient")
    eventually(lambda: len(tried) >= 3, "it tries again")
    links._inbox._listener = real
    eventually(lambda: b.told.frames() == [b"patient"], "accepted after all")
    assert all(later - earlier >= inbox._REST_NS for earlier, later in itertools.pairwise(tried))


def test_frames_announced_but_not_sent_take_no_memory(pki: Any, end: Any) -> None:
    """An insider announces 16 MiB on each of many links with eight bytes."""
    files = pki("b")
    b = end(files)
    before = psutil.Process().memory_info().rss
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(raw_tls(b.address, pki("odd"), files.authority))
            sock.sendall(SP_PUSH + struct.pack(">Q", 16 * 1024 * 1024) + b"x" * 1000)
        eventually(lambda: len(b.told.all("inbound_opened")) == 40, "all are open")
        b.transport.close_pipe(b.told.all("inbound_opened")[-1][1])
        b.told.one("inbound_closed")
        assert psutil.Process().memory_info().rss - before < 60_000_000
    eventually(lambda: len(b.told.all("inbound_closed")) == 40, "all are told")
    assert not b.told.frames()


def test_inbox_that_never_reads_declines_frames_and_can_be_closed(pki: Any, end: Any) -> None:
    """A neighbour that hangs must cost a declined frame, never a blocked thread or a lane that can't be ended."""
    a, done = end(pki("a")), threading.Event()

    def serve(tls: ssl.SSLSocket) -> None:
        tls.sendall(SP_PULL)
        done.wait(30)

    with raw_inbox(pki("b"), serve) as address:
        lane = a.dial(address)
        a.told.one("lane_opened")
        frame = bytes(1_000_000)
        eventually(lambda: not lane.try_send(frame), "the lane is full")
        assert not lane.try_send(b"x")
        lane.close()
        assert not lane.try_send(b"x")
        eventually(lambda: a.transport.statistics()["lanes"] == 0, "its descriptor is given back")
        done.set()
    assert not a.told.all("lane_closed")


def test_inbox_that_sends_frames_back_loses_the_lane(pki: Any, end: Any) -> None:
    """Nothing flows that way: whoever sends there has another protocol in mind."""
    a = end(pki("a"))
    with raw_inbox(pki("b"), lambda tls: tls.sendall(SP_PULL + b"junk") or tls.recv(1000)) as address:
        a.dial(address)
        assert "only we send on" in a.told.one("lane_closed")[2]


@pytest.mark.processes
def test_peer_changing_its_keys_again_and_again_is_heard(pki: Any, end: Any) -> None:
    """TLS 1.3 may renew keys at any time, and asks us to do so too."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command: nothing else here can ask for a key update")
    files, odd = pki("b"), pki("odd")
    b = end(files)
    command = [openssl, "s_client", "-connect", str(b.address), "-tls1_3", "-servername", "mesh.node"]
    command += ["-cert", str(odd.certificate), "-key", str(odd.key), "-CAfile", str(odd.authority)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe) as client:
        assert client.stdin is not None
        assert client.stderr is not None
        client.stdin.write(SP_PUSH + struct.pack(">Q", 1) + b"0")
        client.stdin.flush()
        eventually(lambda: b.told.frames() == [b"0"], "the first frame")
        for number in range(1, 6):
            client.stdin.write(b"K\n")
            client.stdin.flush()
            while b"KEYUPDATE" not in client.stderr.readline():
                pass
            client.stdin.write(struct.pack(">Q", 1) + b"%d" % number)
            client.stdin.flush()
            eventually(lambda number=number: b.told.frames()[-1] == b"%d" % number, "a frame under new keys")
        client.stdin.close()
        client.wait(30)
    b.told.one("inbound_closed")


# --- certificates --------------------------------------------------------------------------------------------------


def test_certificate_that_ends_closes_pipe_and_lane(pki: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe outlives its certificate unless somebody ends it: a stolen one would work for months."""
    monkeypatch.setattr(engine, "_EXPIRY_CHECK_NS", 30_000_000)
    now = time.time_ns()
    days_ahead = [0, 0]
    with contextlib.ExitStack() as stack:
        ends = []
        for number, files in enumerate((pki("a", days=300), pki("b", days=30))):
            told = Recorder()
            links = ExpressLinks(
                files, told, MESH, utc_now_ns=lambda number=number: now + days_ahead[number] * 86_400 * 10**9
            )
            stack.callback(links.close)
            ends.append(End(links, told, Address("127.0.0.1", links.listen("127.0.0.1", 0))))
        a, b = ends
        lane = a.dial(b)
        b.dial(a)
        a.told.one("lane_opened")
        b.told.one("lane_opened")
        days_ahead[1] = 40  # b's clock: a's certificate of 300 days is good for long
        days_ahead[0] = 29
        eventually(lambda: lane.try_send(b"day 29"), "the lane takes a frame")
        eventually(lambda: b.told.frames()[-1:] == [b"day 29"], "the day before")
        days_ahead[0] = 31
        assert "certificate has expired" in a.told.one("lane_closed")[2]
        a.told.one("inbound_closed")
        assert a.transport.statistics()["expired_connections_closed"] == 2
        assert b.transport.statistics()["expired_connections_closed"] == 0


# --- the rest ------------------------------------------------------------------------------------------------------


def test_dial_of_host_name_is_resolved(pki: Any, end: Any) -> None:
    """Seeds in a configuration may be names."""
    a, b = end(pki("a")), end(pki("b"))
    a.dial(Address("localhost", b.address.port))
    a.told.one("lane_opened")


def test_transport_closed_by_its_own_callback_ends(pki: Any, end: Any) -> None:
    """An application that shuts down on an order it receives."""
    a, b = end(pki("a")), end(pki("b"))
    b.told.on_frame = lambda pipe, frame: b.transport.close()
    a.dial(b)
    a.told.one("lane_closed")
    b.transport.close()
    assert [entry[0] for entry in b.told.log] == ["admit", "inbound_opened", "frame"]


def test_notices_asked_for_by_many_threads_are_never_lost(pki: Any, end: Any) -> None:
    """The wake-up of the I/O thread is shared by all: one that is lost leaves readings waiting for the next."""
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")

    def ask() -> None:
        for _ in range(300):
            seen = len(a.told.all("lane_writable"))
            lane.notify()
            eventually(lambda seen=seen: len(a.told.all("lane_writable")) > seen, "told")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    told = len(a.told.all("lane_writable"))
    assert 300 <= told <= 900


@pytest.mark.parametrize(("spin_ns", "awake"), [(0, False), (50_000_000, True)])
def test_wait_in_quick_succession_is_awake_when_allowed(pki: Any, spin_ns: int, awake: bool) -> None:
    """To be woken takes as long as all the rest of a reading's way; a computer that runs on a battery may forbid it."""
    with contextlib.ExitStack() as stack:
        ends = []
        for files in (pki("a"), pki("b")):
            links = open_express(files, told := Recorder(), MESH, spin_ns)
            stack.callback(links.close)
            ends.append(End(links, told, Address("127.0.0.1", links.listen("127.0.0.1", 0))))
        a, b = ends
        lanes = a.dial(b), b.dial(a)
        a.told.one("lane_opened"), b.told.one("lane_opened")
        b.told.on_frame = lambda _, frame: frame == b"hello" or lanes[1].try_send(frame)
        rounds = threading.Semaphore(0)
        a.told.on_frame = lambda _, frame: rounds.release()

        def exchange() -> int:
            for _ in range(60):
                assert lanes[0].try_send(b"ping")
                assert rounds.acquire(timeout=30)
            return int(b.transport.statistics()["frames_awaited_awake"])

        if awake and len(os.sched_getaffinity(0)) > 1:
            eventually(exchange, "it stays awake for one of the frames")
        else:
            assert exchange() == 0


def test_wait_for_rare_frames_sleeps(pki: Any, end: Any) -> None:
    """Ten readings a second must cost ten wake-ups, not a core."""
    links: Any = open_express(pki("a"), told := Recorder(), MESH, 200_000)
    epoll, sleeps = links._epoll, threading.Event()

    class Watched:
        def poll(self, timeout_s: float, events: int) -> Any:
            if timeout_s:
                sleeps.set()
            return epoll.poll(timeout_s, events)

        def __getattr__(self, name: str) -> Any:
            return getattr(epoll, name)

    links._epoll = Watched()
    try:
        a, b = End(links, told, Address("127.0.0.1", links.listen("127.0.0.1", 0))), end(pki("b"))
        lane = b.dial(a)
        b.told.one("lane_opened")

        def rare_frames(number: int) -> int:
            for _ in range(number):
                seen = len(told.frames())
                sleeps.clear()
                assert lane.try_send(b"rare")
                eventually(lambda seen=seen: len(told.frames()) > seen, "it came")
                assert sleeps.wait(30), "it sleeps again"
                time.sleep(0.005)  # longer than it may stay awake: this is the pace under test
            return int(links.statistics()["frames_awaited_awake"])

        before = rare_frames(10)
        assert rare_frames(10) == before
    finally:
        links.close()


def test_late_calls_after_close_touch_nothing(pki: Any, tmp_path: Path) -> None:
    """Descriptors are numbers: a late wake-up must not write into a file that was opened meanwhile."""
    links = open_express(pki("a"), Recorder(), MESH)
    lane = links.dial(Address("127.0.0.1", 9), lambda: b"", 5)
    links.close()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((tmp_path / str(number)).open("w+b", buffering=0)) for number in range(20)]
        lane.notify()
        lane.close()
        links.close_pipe(1)
        links.dial(Address("127.0.0.1", 9), lambda: b"", 5).close()
        assert all(file.read() == b"" for file in files)


def segments_sent(descriptor: int) -> int:
    """How many segments with data a connection has sent, by Linux's ``tcp_info``."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int(struct.unpack_from("I", info, 156)[0])


def test_frames_that_go_along_arrive_in_order_in_the_same_segment(pki: Any, end: Any) -> None:
    """On a full radio channel a segment costs more than what is in it."""
    a, b = end(pki("a")), end(pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    assert lane.try_send(b"first")
    eventually(lambda: len(b.told.frames()) == 2, "the greeting and the first frame")
    before = segments_sent(lane.descriptor)
    along = [b"beat", b"", b"goodbye" * 20]
    assert lane.try_send(b"reading" * 30, along)
    eventually(lambda: len(b.told.frames()) == 6, "all frames")
    assert b.told.frames()[2:] == [b"reading" * 30, *along]
    assert segments_sent(lane.descriptor) == before + 1
    for name in ("frames", "bytes"):
        assert a.transport.statistics()[f"{name}_sent"] == b.transport.statistics()[f"{name}_received"]
