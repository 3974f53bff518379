"""Links between real sockets, on each engine and across them: what arrives, and how each end comes to be told."""

import random
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from meshnode.links.nng import gate
from meshnode.links.transport import Address, CredentialFiles, OutgoingLane
from protocols.base.errors import TransportError
from protocols.base.ids import PeerIdentity, Role, node_id
from tests.tools.eventually import eventually
from tests.tools.link_fixture import (  # noqa: F401 -- fixtures
    ENGINES,
    MESH,
    End,
    Recorder,
    given_ca,
    given_end,
    given_engine,
    given_pair,
    given_pki,
    given_two,
)


def test_lane_dialled_greets_first_and_both_ends_know_each_other(pki: Any, two: Any) -> None:
    """Everything above relies on this order: identity, opened, greeting, frames."""
    a, b = two(pki("a"), pki("b", role="rsu"))
    lane = a.dial(b, b"greeting")
    _, opened, identity = a.told.one("lane_opened")
    assert opened is lane
    assert identity == PeerIdentity(MESH, Role.RSU, node_id("b"))
    eventually(lambda: lane.try_send(b"reading"), "the lane takes a frame")
    eventually(lambda: len(b.told.frames()) == 2, "both frames")
    kinds = [entry[0] for entry in b.told.log]
    assert kinds == ["admit", "inbound_opened", "frame", "frame"]
    _, pipe, identity, host = b.told.one("inbound_opened")
    assert (identity, host) == (PeerIdentity(MESH, Role.VEHICLE, node_id("a")), "127.0.0.1")
    assert b.told.log[2:] == [("frame", pipe, b"greeting"), ("frame", pipe, b"reading")]
    eventually(lambda: b.transport.receiving_since_ns() is None, "the notice has returned")
    assert a.transport.statistics()["frames_sent"] == b.transport.statistics()["frames_received"] == 2
    assert a.transport.statistics()["bytes_sent"] == b.transport.statistics()["bytes_received"] == 15


def test_frame_of_every_size_arrives_unchanged(pki: Any, two: Any) -> None:
    """Tensors cross TLS records and socket buffers; an off-by-one would corrupt them."""
    a, b = two(pki("a"), pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    frames = [bytes([size % 251]) * size for size in (0, 1, 16_383, 16_384, 16_385, 1_000_003)]
    for frame in frames:
        eventually(lambda frame=frame: lane.try_send(frame), "the lane takes a frame")
    eventually(lambda: len(b.told.frames()) == 7, "all frames")
    assert b.told.frames()[1:] == frames


def test_slow_reader_makes_try_send_decline_then_tells_writable(pki: Any, two: Any) -> None:
    """Back-pressure must reach the publisher, who decides what to drop; nothing may be lost or block here."""
    a, b = two(pki("a"), pki("b"))
    release = threading.Event()
    b.told.on_frame = lambda pipe, frame: None if release.is_set() else bool(release.wait(60))
    lane = a.dial(b)
    a.told.one("lane_opened")
    eventually(lambda: b.transport.receiving_since_ns() is not None, "the reader is stuck")
    frame, taken, declined = b"x" * 1_000_000, 0, 0
    while declined < 300:  # full is when nothing was taken for a while; a stall is one of these steps
        if lane.try_send(frame):
            taken, declined = taken + 1, 0
        else:
            declined += 1
        time.sleep(0.001)
    seen = len(a.told.all("lane_writable"))
    release.set()
    eventually(lambda: len(a.told.all("lane_writable")) > seen, "writable")
    assert lane.try_send(b"last")
    eventually(lambda: b.told.frames()[-1:] == [b"last"], "the rest arrives")
    assert len(b.told.frames()) == taken + 2


def test_lane_asked_to_notify_tells_writable_once_and_not_when_closed(pki: Any, two: Any) -> None:
    """The driver hands work to the I/O thread this way; a lost or repeated notice would stall or spin it."""
    a, b = two(pki("a"), pki("b"))
    asked = threading.Event()
    lane = a.transport.dial(b.address, lambda: b"hello" if asked.wait(30) else b"late", 30.0)
    lane.notify()  # before it is open, which it is after its greeting
    asked.set()
    a.told.one("lane_opened")
    assert not a.told.all("lane_writable")
    for count in (1, 2):
        lane.notify()
        eventually(lambda count=count: len(a.told.all("lane_writable")) == count, "told")
    lane.close()
    lane.notify()
    eventually(lambda: a.transport.statistics()["lanes"] == 0, "closed")
    assert len(a.told.all("lane_writable")) == 2


def test_last_frame_before_close_is_received(pki: Any, end: Any, engine: str) -> None:
    """A goodbye is always followed by a close: it must not be overtaken by it."""
    b = end(pki("b"), engine=engine)
    for number in range(20):
        a = end(pki("a"), engine=engine)
        lane = a.dial(b)
        a.told.one("lane_opened")
        goodbye = b"goodbye %d" % number
        eventually(lambda lane=lane, goodbye=goodbye: lane.try_send(goodbye), "the lane takes it")
        a.transport.close()
        eventually(lambda number=number: len(b.told.all("inbound_closed")) == number + 1, "its end is told")
        assert b.told.frames()[-1] == goodbye
    assert not a.told.all("lane_closed")


def test_lane_closed_by_us_gives_no_notice_and_ends_the_pipe(pki: Any, two: Any) -> None:
    """Membership closed it and knows; a notice would make it redial."""
    a, b = two(pki("a"), pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    lane.close()
    lane.close()
    assert not lane.try_send(b"x")
    b.told.one("inbound_closed")
    eventually(lambda: a.transport.statistics()["lanes"] == 0, "its socket is gone")
    assert not a.told.all("lane_closed")


def test_pipe_closed_by_inbox_is_told_to_both_ends(pki: Any, two: Any) -> None:
    """A Hello that contradicts its certificate ends like this."""
    a, b = two(pki("a"), pki("b"))
    b.told.on_frame = lambda pipe, frame: b.transport.close_pipe(pipe)
    lane = a.dial(b)
    assert "closed the connection" in a.told.one("lane_closed")[2]
    b.told.one("inbound_closed")
    assert not lane.try_send(b"x")
    b.transport.close_pipe(12345)


def test_close_while_threads_send_returns_and_nothing_is_told_after(pki: Any, two: Any) -> None:
    """Shutdown happens under load: it must neither hang nor crash."""
    a, b = two(pki("a"), pki("b"))
    lane = a.dial(b)
    a.told.one("lane_opened")
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            lane.try_send(b"x" * 1000)

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    eventually(lambda: len(b.told.frames()) > 50, "frames flow")
    a.transport.close()
    told = len(a.told.log)
    stop.set()
    for sender in senders:
        sender.join(30)
        assert not sender.is_alive()
    assert not lane.try_send(b"x")
    lane.close()
    a.transport.close()
    assert len(a.told.log) == told
    b.told.one("inbound_closed")


def met_again(a: End, b: End) -> OutgoingLane | None:
    """A lane that came to be; each dial is one attempt, as membership makes them."""
    lane = a.dial(b, b"again")
    opened = eventually(lambda: a.told.of(lane) & {"lane_opened", "lane_closed"}, "the dial ends")
    return lane if "lane_opened" in opened else None


def test_inbox_restarted_on_its_port_is_met_again_by_a_new_dial(pki: Any, two: Any, end: Any, pair: Any) -> None:
    """A restarted neighbour comes back on its configured port; the old lane must not linger."""
    a, b = two(pki("a"), pki("b"))
    first = a.dial(b)
    a.told.one("lane_opened")
    b.transport.close()
    assert a.told.one("lane_closed")[1] is first
    again = end(pki("b"), port=b.address.port, engine=pair[1])
    second = eventually(lambda: met_again(a, again), "opened again")
    eventually(lambda: again.told.frames() == [b"again"], "greeting")
    assert second.try_send(b"x")


def test_port_in_use_names_address_and_way_out(pki: Any, end: Any, engine: str) -> None:
    """The first thing that goes wrong when a node is started twice."""
    b = end(pki("b"), engine=engine)
    with pytest.raises(TransportError, match=rf"127\.0\.0\.1:{b.address.port} is in use.*another port"):
        end(pki("a"), port=b.address.port, engine=engine)
    with pytest.raises(TransportError, match="has an inbox"):
        b.transport.listen("127.0.0.1", 0)


def test_listen_on_foreign_address_names_it(pki: Any, engine: str) -> None:
    """A typo in the configuration."""
    transport = ENGINES[engine](pki("a"), Recorder(), MESH)
    with pytest.raises(TransportError, match=r"192\.0\.2\.1"):
        transport.listen("192.0.2.1", 0)
    transport.close()


@pytest.mark.parametrize(("engine", "count"), [("express", 400), ("nng", 150)], ids=["express", "nng"])
def test_hundreds_of_lanes_leave_no_descriptor_no_thread_and_no_memory(
    pki: Any, end: Any, engine: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node redials for months: one leaked descriptor per dial ends it within a day."""
    monkeypatch.setattr(gate, "MAX_BURST", 1_000)  # one host opens 300 of them at once
    a, b = end(pki("a"), engine=engine), end(pki("b"), engine=engine)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        nowhere = Address("127.0.0.1", mute.getsockname()[1])

        def round_of(good_count: int, bad_count: int = 5) -> None:
            for told in (a.told, b.told):
                told.log.clear()
            good = [a.dial(b, timeout_s=30) for _ in range(good_count)]
            bad = [a.dial(nowhere, timeout_s=20) for _ in range(bad_count)]

            def all_open() -> bool:
                """Dials again what was hung up on before it opened, as membership does: a stall may take that long."""
                opened, closed = ({id(told[1]) for told in a.told.all(f"lane_{kind}")} for kind in ("opened", "closed"))
                for at, lane in enumerate(good):
                    if id(lane) in closed:
                        good[at] = a.dial(b, timeout_s=30)
                return all(id(lane) in opened for lane in good)

            eventually(all_open, "all open")
            for lane in good + bad:
                lane.close()
            eventually(lambda: a.transport.statistics()["lanes"] == 0, "all closed")
            eventually(lambda: len(b.told.all("inbound_closed")) == len(b.told.all("inbound_opened")), "all gone")

        def held() -> tuple[int, int]:
            return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

        for _ in range(3):
            round_of(50)
        before, resident = held(), psutil.Process().memory_info().rss
        for _ in range(count // 50):
            round_of(50)
        eventually(lambda: held() <= (before[0] + 2, before[1]), f"as many descriptors and threads as before: {before}")
        assert psutil.Process().memory_info().rss - resident < 12_000_000


def test_ten_thousand_frames_of_mixed_sizes_arrive_whole_and_in_order_both_ways(pki: Any, two: Any) -> None:
    """Readings carry sequences and tensors carry numbers: one lost, doubled or mixed-up byte and both are wrong."""
    count = 10_000
    sizes = [random.Random(7).choice((8, 9, 64, 300, 4_096)) for _ in range(count)]
    for number, size in ((100, 16_376), (1_000, 16_377), (2_000, 65_528), (3_000, 65_529), (5_000, 70_000)):
        sizes[number] = size
    for number in range(500, count, 1_000):
        sizes[number] = 1_000_000
    failures: list[str] = []

    def payload(number: int) -> bytes:
        return (struct.pack(">Q", number) * (sizes[number] // 8 + 1))[: sizes[number]]

    class Checker(Recorder):
        seen = 0

        def frame_received(self, pipe: int, frame: bytes | bytearray) -> None:
            if frame != b"hello":
                if frame != payload(self.seen):
                    failures.append(f"frame {self.seen}: {len(frame)} bytes, {bytes(frame[:8])!r}")
                self.seen += 1

        def lane_writable(self, lane: OutgoingLane) -> None:
            writable.set()

    def send(lane: OutgoingLane) -> None:
        for number in range(count):
            frame = payload(number)
            while not lane.try_send(frame):
                writable.wait(0.01)
                writable.clear()

    writable = threading.Event()
    a, b = two(pki("a"), pki("b"), Checker(), Checker())
    lanes = [a.dial(b), b.dial(a)]
    for end_ in (a, b):
        end_.told.one("lane_opened")
    senders = [threading.Thread(target=send, args=(lane,)) for lane in lanes]
    for sender in senders:
        sender.start()
    eventually(lambda: a.told.seen == b.told.seen == count or failures, "all frames", 120)
    for sender in senders:
        sender.join(60)
    assert failures == []


def test_notice_that_fails_or_exits_does_not_end_the_links(pki: Any, two: Any) -> None:
    """Callbacks of applications run on our threads: neither a bug nor a sys.exit() may make a node deaf."""
    a, b = two(pki("a"), pki("b"))
    b.told.on_frame = lambda pipe, frame: (_ for _ in ()).throw(SystemExit if frame == b"exit" else RuntimeError)
    lane = a.dial(b)
    a.told.one("lane_opened")
    for frame in (b"exit", b"bug", b"fine"):
        eventually(lambda frame=frame: lane.try_send(frame), "the lane takes a frame")
    eventually(lambda: b.told.frames() == [b"hello", b"exit", b"bug", b"fine"], "all of them")


# --- other processes -----------------------------------------------------------------------------------------------

_CHILD = """
import sys, time
from pathlib import Path
from meshnode.links.transport import Address, CredentialFiles
from tests.tools.link_fixture import ENGINES, MESH, Recorder

told = Recorder()
transport = ENGINES[sys.argv[5]](CredentialFiles(*map(Path, sys.argv[1:4])), told, MESH)
print(transport.listen("127.0.0.1", 0), flush=True)
lane = transport.dial(Address("127.0.0.1", int(sys.argv[4])), lambda: b"child", 30)
told.one("lane_opened")
told.one("frame")
"""


def child(files: CredentialFiles, port: int, engine: str, then: str) -> "subprocess.Popen[str]":
    script = textwrap.dedent(_CHILD) + then
    arguments = [str(files.certificate), str(files.key), str(files.authority), str(port), engine]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.processes
def test_process_killed_is_told_at_both_its_pipes(pki: Any, end: Any, engine: str) -> None:
    """SIGKILL must be noticed by the kernel's word, long before silence is."""
    b = end(pki("b"), engine=engine)
    with child(pki("a"), b.address.port, engine, "time.sleep(60)") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        b.told.one("inbound_opened")
        lane = b.dial(Address("127.0.0.1", port))
        b.told.one("lane_opened")
        process.send_signal(signal.SIGKILL)
        assert b.told.one("lane_closed")[1] is lane
        b.told.one("inbound_closed")


@pytest.mark.processes
def test_interpreter_that_forgets_to_close_exits_cleanly(pki: Any, end: Any, engine: str) -> None:
    """NNG panics when its callbacks meet an interpreter that is going away."""
    b = end(pki("b"), engine=engine)
    with child(pki("a"), b.address.port, engine, "") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        b.dial(Address("127.0.0.1", port))
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
