"""What a hostile or broken insider may do to a node, and a disk that fills under it: refused, counted, and nobody else
suffers.

The insider has a valid certificate of the mesh and speaks raw bytes by its own TLS: no code of ours holds it back.
Bytes of strangers are the subject of ``test_links``, damaged frames of ``test_codec``.
"""

import os
import resource
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import msgpack
import msgspec
import pytest

import meshnode
from meshnode.identity import issue
from meshnode.links.transport import Address, CredentialFiles
from meshnode.records.section import CurationRulesSection, CurationSection
from protocols.base import limits
from protocols.base.errors import UnknownFrame
from protocols.wire.codec import decode_untrusted_node_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.membership import MINOR, Heartbeat, Hello, Refusal
from tests.tools.eventually import LIMIT_S, eventually, until
from tests.tools.link_fixture import SP_PUSH, raw_tls
from tests.tools.mesh_fixture import House
from tests.tools.node_fixture import RunningNode, prepare

pytestmark = pytest.mark.processes

SP_PULL = b"\0SP\0\0\x51\0\0"
RECORDS = '[[curation]]\nname = "all"\nkeys = "rsu/**"\n'


@pytest.fixture(scope="module", name="folder")
def given_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module", name="target")
def given_target(folder: Path) -> Iterator[RunningNode]:
    with RunningNode(prepare(folder, "rsu-1", "rsu")) as node:
        yield node


@pytest.fixture(scope="module", name="bystander")
def given_bystander(folder: Path, target: RunningNode) -> Iterator[RunningNode]:
    """A good neighbour, who must not notice any of it."""
    with RunningNode(prepare(folder, "veh-1", "vehicle", seeds=(target.port,))) as node:
        eventually(lambda: node.met("rsu-1") and target.met("veh-1"), "the good ones meet")
        yield node


@pytest.fixture(autouse=True)
def _nobody_else_suffers(target: RunningNode, bystander: RunningNode) -> Iterator[None]:
    """After each test: the node serves its good neighbour, nobody was called dead, and no bug was logged."""
    pid = target.process.pid
    yield
    assert target.process.poll() is None, target.log.read_text()[-3_000:]
    assert target.process.pid == pid
    value = f"after {time.monotonic_ns()}"
    stream = threading.Thread(target=lambda: got.append(_next_reading(bystander, value)), daemon=True)
    got: list[Any] = []
    stream.start()
    ends_s = time.monotonic() + 25
    while stream.is_alive() and time.monotonic() < ends_s:
        status, answer = target.post("/v1/readings", {"key": "rsu/rsu-1/still", "value": value})
        assert status in (200, 201, 202), answer
        stream.join(0.1)
    assert got == [value]
    for node, other in ((target, "veh-1"), (bystander, "rsu-1")):
        log = node.log.read_text()
        assert f"NeighbourDead(node='{other}'" not in log
        assert "Traceback" not in log
    eventually(lambda: bystander.met("rsu-1"), "a suspicion is refuted")


def _next_reading(node: RunningNode, value: str) -> Any:
    status, _, body = node.ask("GET", "/v1/readings?key=rsu/*/still&count=1&timeout_s=25&own=false&history=false")
    assert status == 200, body
    return value if value.encode() in body else body


class Insider:
    """A raw connection into the inbox of the target."""

    def __init__(self, folder: Path, target: RunningNode, name: str, role: str = "vehicle") -> None:
        home = folder / f"{name}-{role}"
        if not home.exists():
            issue(folder / "authority", role, name, home)
        self.name, self.target = name, target
        self.files = CredentialFiles(home / f"{name}.crt", home / f"{name}.key", home / "authority.crt")
        self.link = raw_tls(Address("127.0.0.1", target.port), self.files, self.files.authority)
        self.link.sendall(SP_PUSH)

    def say(self, *frames: Frame | bytes) -> None:
        """Send frames, whatever they are."""
        encoded = [frame if isinstance(frame, bytes) else encode_frame(frame) for frame in frames]
        self.link.sendall(b"".join(struct.pack(">Q", len(frame)) + frame for frame in encoded))

    def hello(self, **changes: Any) -> None:
        self.say(hello(self.name, **changes))

    def closed(self, timeout_s: float = LIMIT_S) -> bool:
        """Whether the target hangs up in time."""
        self.link.settimeout(timeout_s)
        try:
            while self.link.recv(4_096):
                pass
        except TimeoutError:
            return False
        except (ssl.SSLError, OSError):
            return True
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()


def hello(
    node: str, *, major: int = 1, minor: int = 0, incarnation: int = 1, port: int = 9, lane: str = "realtime"
) -> Hello:
    return Hello(major, minor, node, incarnation, port, lane)  # type: ignore[arg-type]


def counters(node: RunningNode) -> dict[str, int]:
    found: dict[str, int] = node.get("/v1/node")["statistics"]
    return found


@pytest.fixture(name="insider")
def given_insider(folder: Path, target: RunningNode, bystander: RunningNode) -> Iterator[Callable[[str], Insider]]:
    """Connect as an insider: ``insider("veh-61")``. The bystander is there before."""
    assert bystander.port
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(Insider(folder, target, name))


def logged(node: RunningNode, text: str) -> None:
    eventually(lambda: text in node.log.read_text(), f"the log says {text!r}: {node.log.read_text()[-2_000:]}")


# --- who it is -------------------------------------------------------------------------------------------------------
def test_hello_that_contradicts_its_certificate_is_refused_by_name(
    insider: Callable[[str], Insider], target: RunningNode
) -> None:
    """An insider must not become somebody else by saying so."""
    liar = insider("veh-61")
    liar.say(hello("veh-1"))
    assert liar.closed()
    logged(target, "its Hello says 'veh-1', its certificate 'veh-61'")
    assert not any(peer["node"] == "veh-61" for peer in target.get("/v1/peers"))


@pytest.mark.parametrize("node", ["", "x" * 64, "veh 1", "../veh", "\u202eveh"])
def test_hello_with_no_possible_id_is_refused(insider: Callable[[str], Insider], node: str) -> None:
    """Ids stand in logs, metrics and file names."""
    liar = insider("veh-62")
    liar.say(msgpack.packb([1, 1, 0, node, 1, 9, "realtime", []]))
    assert liar.closed()


def test_frame_before_hello_is_refused_and_counted(insider: Callable[[str], Insider], target: RunningNode) -> None:
    """Nobody speaks before saying who it is and in which version."""
    before = counters(target)["frames_before_hello"]
    early = insider("veh-63")
    early.say(Heartbeat(1, 1, 0, 0, 0))
    assert early.closed()
    logged(target, "its first frame was Heartbeat, not Hello")
    assert counters(target)["frames_before_hello"] == before + 1


def test_insider_that_never_says_hello_is_closed(insider: Callable[[str], Insider], target: RunningNode) -> None:
    """Mute connections would fill the table of pipes."""
    mute = insider("veh-64")
    assert mute.closed()
    logged(target, "veh-64: protocol: it said no Hello")


def test_insider_that_connects_a_hundred_times_keeps_few_pipes(
    insider: Callable[[str], Insider], target: RunningNode
) -> None:
    """One identity can't take all places from the others."""
    for _ in range(40):
        insider("veh-65").hello()
    eventually(lambda: any(p["node"] == "veh-65" for p in target.get("/v1/peers")), "it is a neighbour")
    (peer,) = [peer for peer in target.get("/v1/peers") if peer["node"] == "veh-65"]
    assert peer["inbound_pipes"] <= 8


# --- versions --------------------------------------------------------------------------------------------------------
class OtherVersion:
    """An inbox of a node of the next major version: takes the target's frames and keeps them."""

    def __init__(self, files: CredentialFiles) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self.port = int(self._listener.getsockname()[1])
        self.frames: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError, ssl.SSLError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._read, args=(plain,), daemon=True).start()

    def _read(self, plain: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError, struct.error), self._context.wrap_socket(plain, server_side=True) as link:
            link.settimeout(30)
            link.sendall(SP_PULL)
            stream = link.makefile("rb")
            stream.read(8)
            while head := stream.read(8):
                self.frames.append(stream.read(struct.unpack(">Q", head)[0]))

    def close(self) -> None:
        self._listener.close()


def test_other_major_version_gets_a_named_refusal(insider: Callable[[str], Insider], target: RunningNode) -> None:
    """The one that was not upgraded has to learn why it is alone."""
    future = insider("veh-67")
    inbox = OtherVersion(future.files)
    try:
        future.hello(port=inbox.port)  # a first life in our version, so that the target has a lane to it
        eventually(lambda: inbox.frames, "the target dials back")
        upgraded = insider("veh-67")
        upgraded.say(msgpack.packb([1, 2, 0, {"everything": "else", "may": "differ"}]))
        assert upgraded.closed()

        def refusals() -> list[Refusal]:
            frames = [decode_untrusted_node_frame(frame) for frame in list(inbox.frames)]
            return [frame for frame in frames if isinstance(frame, Refusal)]

        (refusal,) = eventually(refusals, "the refusal arrives")
        assert refusal.code == "version"
        assert f"it speaks version 2, this node 1.{MINOR}" in refusal.detail
        logged(target, "veh-67: version: it speaks version 2")
    finally:
        inbox.close()


def test_newer_minor_version_with_unknown_fields_and_types_is_a_neighbour(
    insider: Callable[[str], Insider], target: RunningNode
) -> None:
    """A mesh is upgraded node by node: what an older one does not know it counts and skips."""
    before = counters(target)["frames_unknown"]
    newer = insider("veh-68")
    newer.say(msgpack.packb([1, 1, 9, "veh-68", 5, 9, "realtime", [], "a new field", {"and": "another"}]))
    newer.say(msgpack.packb([2, 1, 1, 0, 0, 0, [], False, "more"]), msgpack.packb([42, "a new frame"]))
    newer.say(msgpack.packb([200, 1]), msgpack.packb([2, 2, 2, 0, 0, 0, [], False]))
    with pytest.raises(UnknownFrame):
        decode_untrusted_node_frame(msgpack.packb([42, "a new frame"]))
    eventually(lambda: counters(target)["frames_unknown"] == before + 2, "both are counted")
    assert any(peer["node"] == "veh-68" and peer["incarnation"] == 5 for peer in target.get("/v1/peers"))
    assert not newer.closed(0.3)


def test_flood_of_unknown_frames_of_two_bytes_ends_the_pipes_and_is_counted_by_name(
    insider: Callable[[str], Insider], target: RunningNode
) -> None:
    """They cost their sender nothing, and took a whole core of the node for as long as it liked."""
    pipes = [insider("veh-91"), insider("veh-91")]
    for pipe in pipes:
        pipe.hello()
    for pipe in pipes:
        with suppress(OSError):
            pipe.say(*[b"\x91\x3f"] * 50_000)
    assert all(pipe.closed() for pipe in pipes)
    drops = {drop["reason"]: drop["count"] for drop in target.get("/v1/drops") if drop["peer"] == "veh-91"}
    assert limits.MAX_UNKNOWN_FRAME_BURST < drops["unknown_frame"] < 10 * limits.MAX_UNKNOWN_FRAME_BURST
    logged(target, "veh-91: protocol: it sends too many frames of unknown types")


def test_node_that_was_issued_again_with_another_role_loses_the_old_rights(folder: Path, target: RunningNode) -> None:
    """Its neighbours took the role from the first certificate that they saw, until they forgot the node."""

    def denied() -> int:
        return sum(drop["count"] for drop in target.get("/v1/drops") if drop["peer"] == "veh-92")

    before, frame = counters(target)["readings_accepted"], reading(key="rsu/veh-92/x", origin="veh-92")
    with Insider(folder, target, "veh-92", "rsu") as first, Insider(folder, target, "veh-92", "vehicle") as second:
        first.say(hello("veh-92"), msgpack.packb([6, [frame]]))
        eventually(lambda: counters(target)["readings_accepted"] == before + 1, "an RSU may say this")
        assert denied() == 0
        second.say(hello("veh-92"), msgpack.packb([6, [frame]]))
        eventually(lambda: denied() == 1, "a vehicle may not")
        assert first.closed()
        assert [peer["role"] for peer in target.get("/v1/peers") if peer["node"] == "veh-92"] == ["vehicle"]


# --- what it says ----------------------------------------------------------------------------------------------------
def reading(**changes: Any) -> list[Any]:
    """A reading as it stands on the wire."""
    fields = {
        "key": "veh/veh-66/x", "origin": "veh-66", "sequence": 1, "value": 1, "where": [48.0, 11.0, 1.0],
        "when": [time.time_ns(), 0], "how": ["s", "1"], "priority": 3, "lifespan_ms": 0, "hops": 0,
    } | changes  # fmt: skip
    return list(fields.values())


def deep(levels: int) -> bytes:
    """A readings frame whose value is nested so deep."""
    whole: bytes = msgpack.packb([6, [reading(value="MARK")]])
    head, tail = whole.split(msgpack.packb("MARK"))
    return head + b"\x91" * levels + b"\x01" + tail


MALFORMED = {
    "nothing": b"",
    "no array": b"\x01",
    "no type": b"\x90",
    "cut off": msgpack.packb([6, [reading()]])[:-3],
    "trailing bytes": msgpack.packb([2, 1, 1, 0, 0, 0]) + b"\0",
    "relay's business": msgpack.packb([66, "storage", "not yours"]),
    "deeply nested": deep(100_000),
    "nested by one too many": deep(33),
    "latitude 91": msgpack.packb([6, [reading(where=[91.0, 0.0, 1.0])]]),
    "not a number": msgpack.packb([6, [reading(where=[float("nan"), 0.0, 1.0])]]),
    "priority 8": msgpack.packb([6, [reading(priority=8)]]),
    "too many readings": msgpack.packb([6, [reading(sequence=n) for n in range(65)]]),
    "too many wants": msgpack.packb([5, 1, [["**"]] * 257]),
    "count of four billion": b"\x92\x06\xdd\xff\xff\xff\xff",
    "text of four gigabytes": b"\x92\x06\xdb\xff\xff\xff\xff",
    "tensor that lies": msgpack.packb(
        [6, [reading(value=msgpack.ExtType(1, msgpack.packb(["f4", [1 << 40, 1 << 40], b"1234"])))]]
    ),
    "other extension": msgpack.packb([6, [reading(value=msgpack.ExtType(77, b""))]]),
    "number too large": msgpack.packb([3, -1]),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_frame_ends_its_pipe_and_is_counted(
    insider: Callable[[str], Insider], target: RunningNode, frame: bytes
) -> None:
    """Whoever sends nonsense is not listened to any further; its pipe is the only thing lost."""
    before = counters(target)["frames_malformed"]
    hostile = insider("veh-69")
    hostile.hello(incarnation=2)
    hostile.say(frame)
    assert hostile.closed()
    assert counters(target)["frames_malformed"] == before + 1


@pytest.mark.parametrize("length", [limits.MAX_FRAME_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_frame_announced_too_large_is_refused_before_it_is_sent(
    insider: Callable[[str], Insider], target: RunningNode, length: int
) -> None:
    """One length field must not claim all memory."""
    hostile = insider("veh-70")
    hostile.hello()
    hostile.link.sendall(struct.pack(">Q", length) + b"x" * 1_000)
    assert hostile.closed()
    assert counters(target)["link_oversize_frames"] >= 1


def test_readings_of_others_and_on_foreign_keys_are_denied(
    insider: Callable[[str], Insider], target: RunningNode
) -> None:
    """An insider publishes on its own keys and as itself, whatever it writes into the frame."""
    before = counters(target)["readings_delivered"]
    forger = insider("veh-71")
    forger.hello()
    for fields in (
        {"key": "veh/veh-1/speed", "origin": "veh-71"},
        {"key": "rsu/rsu-1/hazard", "origin": "veh-71"},
        {"key": "rsu/rsu-1/hazard", "origin": "rsu-1"},
        {"key": "veh/*/x", "origin": "veh-71"},
        {"key": "veh/veh-71/x", "origin": "*"},
        {"key": "veh/veh-71/old", "origin": "veh-71", "when": [1, 0], "lifespan_ms": 1},
    ):
        forger.say(msgpack.packb([6, [reading(**fields)]]))

    def reasons() -> set[str]:
        return {drop["reason"] for drop in target.get("/v1/drops") if drop["peer"] == "veh-71"}

    told = {"denied", "echo", "invalid_key", "unsigned", "expired"}
    eventually(lambda: reasons() == told, lambda: f"each is counted, not {reasons()}")
    assert counters(target)["readings_delivered"] == before
    assert not forger.closed(0.1)


def test_interest_in_everything_many_times_over_costs_the_others_nothing(
    insider: Callable[[str], Insider], target: RunningNode
) -> None:
    """256 wants of ``**``, again and again, by a neighbour that takes nothing of what it asked for."""
    greedy = insider("veh-72")
    greedy.hello()
    for version in range(1, 200):
        greedy.say(msgpack.packb([5, version, [["**", n, False, True, 8] for n in range(limits.MAX_SUBSCRIPTIONS)]]))
    greedy.say(msgpack.packb([5, 1_000, [["veh/" + "**/" * 7 + "x"] for _ in range(limits.MAX_SUBSCRIPTIONS)]]))
    greedy.say(msgpack.packb([5, 1_001, [["a//b"], ["", 0], ["x" * 199]]]))
    before = counters(target)["readings_published"]
    for number in range(50):
        assert target.post("/v1/readings", {"key": f"rsu/rsu-1/k{number}", "value": number})[0] < 300
    assert counters(target)["readings_published"] == before + 50


def test_heartbeats_by_the_thousand_that_accuse_everybody_kill_nobody(
    insider: Callable[[str], Insider], target: RunningNode, bystander: RunningNode
) -> None:
    """An insider's word buries nobody, its echo can't be turned on us, and a flood of them ends the pipe."""
    flood = insider("veh-73")
    flood.hello()
    huge = (1 << 64) - 1
    beats = [Heartbeat(huge - n, huge, huge, huge, huge, ("veh-1", "rsu-1", "veh-73"), answer=True) for n in range(500)]
    with suppress(OSError):  # it is closed at some point
        for _ in range(20):
            flood.say(*beats)
    eventually(lambda: flood.closed(0.1), "the flood is over")
    assert ("veh-73", "malformed_frame") in {(drop["peer"], drop["reason"]) for drop in target.get("/v1/drops")}
    eventually(lambda: target.met("veh-1") and bystander.met("rsu-1"), "suspicions are refuted")
    assert "NeighbourDead" not in bystander.log.read_text()


def test_inference_frames_that_nobody_asked_for_are_answered_or_ignored(
    insider: Callable[[str], Insider], target: RunningNode
) -> None:
    """Answers to no question, cancels of nothing, requests for models that are not there, offers of anything."""
    odd = insider("veh-74")
    odd.hello()
    before = counters(target)["inference_late_answers"]
    odd.say(msgpack.packb([9, 12345, "done", [], 0, 0, ""]), msgpack.packb([10, 777]))
    tensor = ["x", ["f4", [1], b"\0\0\0\0"]]
    odd.say(*(msgpack.packb([8, n, "nothing", "0" * 64, 1_000_000, [tensor], []]) for n in range(300)))
    offers = [["m" * 200, "f" * 64, 0, 0]] * limits.MAX_OFFERS
    odd.say(*(msgpack.packb([7, version, offers]) for version in range(50)))
    eventually(lambda: counters(target)["inference_late_answers"] == before + 1, "the answer is counted")
    assert counters(target)["inference_served"] == 0
    assert not odd.closed(0.1)


def test_goodbye_in_the_name_of_another_life_is_ignored(insider: Callable[[str], Insider], target: RunningNode) -> None:
    """A late goodbye of the life before must not end this one."""
    again = insider("veh-75")
    again.hello(incarnation=9)
    again.say(msgpack.packb([3, 8, "late"]))
    eventually(lambda: any(p["node"] == "veh-75" for p in target.get("/v1/peers")), "it is a neighbour")
    again.say(Heartbeat(1, 1, 0, 0, 0))
    assert not again.closed(0.2)
    (peer,) = [peer for peer in target.get("/v1/peers") if peer["node"] == "veh-75"]
    assert peer["state"] != "left"


def test_node_with_mute_and_dead_seeds_still_meets_the_good_one(folder: Path, target: RunningNode) -> None:
    """A TCP server that says nothing, a port that nobody listens on: neither may hold up the others."""
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as dead:
        ports = (mute.getsockname()[1], dead.getsockname()[1], target.port)
        dead.close()
        with RunningNode(prepare(folder, "veh-2", "vehicle", seeds=ports)) as node:
            eventually(lambda: node.met("rsu-1"), "it meets the good one")
            assert node.stop() == 0


# --- a disk that fills -----------------------------------------------------------------------------------------------
@contextmanager
def _small_disk(folder: Path) -> Iterator[tuple[Callable[[], None], Callable[[int], None]]]:
    """A file system of one megabyte at ``folder``: (make room, fill up)."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    ballast = folder / "ballast"

    def fill(_: int) -> None:
        with suppress(OSError), ballast.open("wb", buffering=0) as out:
            while True:
                out.write(bytes(4_096))

    try:
        yield ballast.unlink, fill
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def _limited_files(folder: Path) -> Iterator[tuple[Callable[[], None], Callable[[int], None]]]:
    """The kernel refuses to let files of the process grow: (lift that, impose it on a process)."""
    folder.mkdir()
    limited: list[int] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(pid: int) -> None:
        limited.append(pid)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4_096, before[1]))

    def lift() -> None:
        for pid in limited:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    yield lift, fill


@pytest.mark.parametrize("disk", [_small_disk, _limited_files], ids=["full file system", "files may not grow"])
def test_node_whose_disk_is_full_goes_on_counts_and_recovers(tmp_path: Path, folder: Path, disk: Any) -> None:
    """Records that can't be kept are counted, never silently lost; what was kept stays; sharing goes on."""
    with disk(tmp_path / "disk") as (make_room, fill):
        config = prepare(tmp_path, "rsu-5", "rsu", RECORDS)
        config.write_text(config.read_text().replace("[listen]", f'state_dir = "{tmp_path}/disk/state"\n[listen]', 1))
        with RunningNode(config) as node:
            sent = 0

            def publish(count: int = 1) -> None:
                nonlocal sent
                for _ in range(count):
                    status, answer = node.post("/v1/readings", {"key": "rsu/rsu-5/x", "value": "x" * 2_000})
                    assert status < 300, answer
                    sent += 1

            publish(5)
            eventually(lambda: counters(node)["outbox_pending"] == 5, "the first are kept")
            fill(node.process.pid)

            def full() -> int:
                publish(20)
                return int(counters(node)["outbox_not_stored"])

            eventually(full, lambda: f"the disk becomes full: {counters(node)}")
            assert node.ask("GET", "/healthz")[0] == 200
            make_room()

            def settled() -> bool:
                count = counters(node)
                return sent == count["outbox_issued"] + count["outbox_not_stored"]

            eventually(settled, f"{sent} records are kept or counted: {counters(node)}")
            kept = counters(node)["outbox_issued"]

            def keeps() -> bool:
                publish()
                return counters(node)["outbox_issued"] > kept

            eventually(keeps, "it keeps records again")
            eventually(settled, f"{sent} records are kept or counted: {counters(node)}")
            drops = {drop["reason"]: drop["count"] for drop in node.get("/v1/drops")}
            assert sum(drops.values()) == counters(node)["outbox_not_stored"]
            assert set(drops) <= {"outbox_failed", "outbox_behind"}
            pending = counters(node)["outbox_pending"]
            assert node.stop() == 0
            assert "Traceback" not in node.log.read_text()
        with RunningNode(config) as node:
            assert counters(node)["outbox_pending"] == pending, "nothing acknowledged is lost"


async def test_reading_too_large_for_a_record_costs_no_other_its_record(tmp_path: Path) -> None:
    """A picture under a rule meant for numbers must not take the numbers that come with it along."""
    house = House(tmp_path)
    config = house.config("veh-1").with_sections(CurationRulesSection(rules=(CurationSection(name="all", keys="**"),)))
    async with meshnode.open(config) as node:
        for number in range(60):
            node.publish("veh/veh-1/number", number)
            if number % 20 == 7:
                node.publish("veh/veh-1/picture", bytes(limits.MAX_RECORD_BYTES))
        await until(lambda: node.statistics()["outbox_issued"] == 60, f"the numbers are kept: {node.drops()}")
        assert dict(node.drops()) == {("", "veh/veh-1/picture", "record_too_large"): 3}
        assert node.statistics()["outbox_not_stored"] == 3


async def test_burst_on_a_full_disk_counts_every_record_it_lost(tmp_path: Path) -> None:
    """A counter that says one where a hundred were lost is worse than none."""
    house = House(tmp_path)
    with _small_disk(tmp_path / "disk") as (_, fill):
        config = house.config("veh-1")
        node_section = msgspec.structs.replace(config.node, state_dir=tmp_path / "disk" / "state")
        rules = CurationRulesSection(rules=(CurationSection(name="all", keys="**"),))
        config = msgspec.structs.replace(config, node=node_section).with_sections(rules)
        async with meshnode.open(config) as node:
            node.publish("veh/veh-1/x", 0)
            await until(lambda: node.statistics()["outbox_issued"] == 1, "the first is kept")
            fill(0)
            for number in range(2_000):
                node.publish("veh/veh-1/x", bytes(1_000) + b"%d" % number)

            def settled() -> bool:
                count = node.statistics()
                return count["outbox_issued"] + count["outbox_not_stored"] == 2_001

            await until(settled, "each is kept or counted")
            assert node.statistics()["outbox_not_stored"] > 100
            assert sum(count for _, count in node.drops()) == node.statistics()["outbox_not_stored"]
