"""Who may connect to a node's local socket, what hostile bytes do to it, and that its wire is NNG's."""

import asyncio
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pynng
import pytest
from hypothesis import given
from hypothesis import strategies as st

import meshnode
from meshnode.config.sections import NodeConfig
from meshnode.local.running import RunningLocal
from meshnode.local.section import LocalSection, socket_of
from protocols.access import DEFAULT_RULES, AccessRule
from protocols.base import limits
from protocols.base.errors import (
    ConfigError,
    RemoteProtocolError,
    TransportError,
)
from protocols.base.ids import Role
from protocols.local import (
    LOCAL_MAJOR,
    OWN_POSITION,
    Ask,
    Closing,
    Flush,
    Open,
    Parcels,
    Subscribe,
    Welcome,
    decode_untrusted_application_frame,
    decode_untrusted_local_node_frame,
    decode_untrusted_parcel,
    encode_local,
    encode_parcel,
)
from protocols.wire.parcels import frame_of_encoded_readings
from protocols.wire.readings import EventTime, Provenance, Reading
from tests.tools.eventually import until
from tests.tools.mesh_fixture import HERE, House

_GREETING = b"\x00SP\x00\x00\x10\x00\x00"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@contextmanager
def raw(path: Path, greeting: bytes = _GREETING) -> Iterator[socket.socket]:
    """A connection on which a test says what it likes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(os.fspath(path))
        sock.settimeout(30)
        sock.sendall(greeting)
        yield sock


def message(data: bytes) -> bytes:
    return struct.pack(">BQ", 1, len(data)) + data


def received(sock: socket.socket) -> list[Any]:
    """Every frame until the node hangs up."""
    data = b""
    while True:
        try:
            more = sock.recv(65_536)
        except ConnectionResetError:
            break
        if not more:
            break
        data += more
    assert data[:8] == _GREETING
    frames, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">Q", data, at + 1)
        frames.append(decode_untrusted_local_node_frame(data[at + 9 : at + 9 + length]))
        at += 9 + length
    return frames


# --- who may connect -------------------------------------------------------------------------------------------------
@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_socket_admits_only_whom_its_mode_admits() -> None:
    """File permissions are the guard: without them any process on the vehicle could publish as the vehicle."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # noqa: ASYNC240 -- nothing else runs yet
        house = House(Path(folder))
        script = (
            "import socket, sys, os\n"
            "os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "try: s.connect(sys.argv[1])\n"
            "except PermissionError: sys.exit(13)\n"
        )

        def attempt(path: Path, uid: int, gid: int) -> int:
            return subprocess.run([sys.executable, "-c", script, str(path), str(uid), str(gid)], check=False).returncode

        for mode, member in (("0600", 13), ("0660", 0)):
            config = house.config(f"veh-{mode}").with_sections(LocalSection(mode=mode))  # type: ignore[arg-type]
            async with meshnode.open(config):
                assert stat.S_IMODE(socket_of(config).stat().st_mode) == int(mode, 8)
                stranger = await asyncio.to_thread(attempt, socket_of(config), 65_534, 65_534)
                same_group = await asyncio.to_thread(attempt, socket_of(config), 65_534, os.getegid())
                assert (stranger, same_group) == (13, member)


async def test_connect_to_nothing_says_what_to_do(house: House) -> None:
    """The first mistake everybody makes: the node is not running, or the path is another."""
    config = house.config("veh-1")
    with pytest.raises(TransportError, match="meshnode run"):
        async with meshnode.connect(config):
            pass
    with pytest.raises(ConfigError, match="does not exist"):
        meshnode.connect(house.folder / "nothing.toml")
    file = house.file("veh-1", "[local]\nenabled = false\n", mdns=False)
    with pytest.raises(ConfigError, match="enabled = false"):
        meshnode.connect(file)
    file = house.file("veh-1", "[local]\nsocket = 7\n", mdns=False)
    with pytest.raises(ConfigError, match=r"local\.socket"):
        meshnode.connect(file)
    stale = house.folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    with pytest.raises(TransportError, match="no node answers"):
        async with meshnode.connect(stale):
            pass


async def test_path_that_no_socket_can_have_is_refused_with_its_length(house: House) -> None:
    """The kernel says 'invalid argument' at best; deep home directories exist."""
    config = house.config("veh-1")
    long = "/".join(["a" * 20] * 6) + "/s"
    with pytest.raises(ConfigError, match=str(len(os.fsencode(config.node.state_dir / long)))):
        config.with_sections(LocalSection(socket=long))
    with pytest.raises(ConfigError, match=r"local\.socket"):
        meshnode.open(house.file("veh-1", f'[local]\nsocket = "{long}"\n', mdns=False))


async def test_place_that_is_taken_or_open_to_all_is_not_used_and_tried_again(house: House) -> None:
    """Replacing a file that is no stale socket, or a socket that others replace, would be worse than no socket."""

    async def why(config: NodeConfig) -> str:
        async with meshnode.open(config) as node:
            return "; ".join(trouble.why for trouble in node.troubles.current() if trouble.part == "local")

    config = house.config("veh-1")
    file = house.folder / "file"
    file.write_text("precious")
    assert "not a socket" in await why(config.with_sections(LocalSection(socket=str(file))))
    assert file.read_text() == "precious"
    common = config.with_sections(LocalSection(socket=str(house.folder / "common.sock")))
    async with meshnode.open(common):
        other = house.config("veh-2").with_sections(common.of(LocalSection))
        assert "in use" in await why(other)
    public = house.folder / "public"
    public.mkdir()
    public.chmod(0o777)
    assert "everybody" in await why(config.with_sections(LocalSection(socket=str(public / "s"))))
    assert "folder" in await why(config.with_sections(LocalSection(socket=str(house.folder / "no" / "s"))))
    async with meshnode.open(config.with_sections(LocalSection(socket=str(file)))) as node:
        file.unlink()
        await until(lambda: file.is_socket() and node.troubles.current() == [], "it listens")


# --- hostile applications --------------------------------------------------------------------------------------------
_OPEN = message(encode_local(Open(LOCAL_MAJOR, 0, "hostile")))
_HOSTILE = {
    "other_protocol": b"GET / HTTP/1.1\r\n\r\n",
    "other_nng_protocol": b"\x00SP\x00\x00\x50\x00\x00",
    "length_beyond_all": _GREETING + struct.pack(">BQ", 1, 2**63),
    "kind_unknown": _GREETING + struct.pack(">BQ", 2, 4) + b"abcd",
    "no_frame": _GREETING + message(b"\xc1\xc1"),
    "not_opened": _GREETING + message(encode_local(Ask(1, "peers"))),
    "opened_twice": _GREETING + _OPEN + _OPEN,
    "reading_malformed": _GREETING + _OPEN + message(b"\x92\x06\x91\x92\x01\x93abc"),
    "nested": _GREETING + _OPEN + message(b"\x92\x06" + b"\x91" * 100_000),
    "subject_malformed": _GREETING + _OPEN + message(b"\x93\x65\x01\x07"),
    "negative": _GREETING + _OPEN + message(b"\x93\x61\xff\xa1a"),
}


async def test_hostile_bytes_are_counted_and_hurt_nobody(house: House) -> None:
    """The guard is a file's mode: an application with a bug passes it, and must not take the node along."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as good:
        for name, data in _HOSTILE.items():
            with raw(socket_of(config), data) as sock:
                frames = await asyncio.to_thread(received, sock)
            assert isinstance(frames[-1], Closing), name
            assert frames[-1].code == "malformed", name
        assert node.statistics()["local_malformed"] == len(_HOSTILE)
        assert good.position == HERE


async def test_unknown_frame_of_a_newer_version_is_skipped(house: House) -> None:
    """A newer application on an older node keeps working, less what the node doesn't know."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node:
        newer = _OPEN + message(b"\x92\x7e\x01") + message(b"\x93\x66\x07\xa5extra")
        with raw(socket_of(config), _GREETING + newer) as sock:
            await until(lambda: node.statistics()["local_frames_unknown"] == 1, "skipped")
            sock.shutdown(socket.SHUT_WR)
            welcome, done = await asyncio.to_thread(received, sock)
        assert isinstance(welcome, Welcome)
        assert done.question == 7
        with raw(socket_of(config), _GREETING + message(encode_local(Open(LOCAL_MAJOR + 1, 0, "x")))) as sock:
            (closing,) = await asyncio.to_thread(received, sock)
        assert closing.code == "version"


@pytest.mark.parametrize("rules", [None, (*DEFAULT_RULES, AccessRule(Role.VEHICLE, "publish", "lab/**"))])
async def test_welcome_has_only_rules_for_publishing(house: House, rules: tuple[AccessRule, ...] | None) -> None:
    """A library that was built before a verb existed refuses a Welcome that names it."""
    config = house.config("veh-1", rules=rules)
    async with meshnode.open(config):
        with raw(socket_of(config), _GREETING + _OPEN) as sock:
            sock.shutdown(socket.SHUT_WR)
            (welcome,) = await asyncio.to_thread(received, sock)
    wanted = [rule for rule in rules or DEFAULT_RULES if rule.verb == "publish"]
    assert list(welcome.rules) == wanted
    assert {"veh/{id}/**", "rsu/{id}/**", "tool/{id}/**"} <= {rule.keys for rule in wanted}


async def test_application_cut_off_at_any_byte_leaves_the_node_whole(house: House) -> None:
    """A killed process stops in the middle of a frame, anywhere."""
    config = house.config("veh-1")
    whole = _GREETING + _OPEN + message(encode_local(Subscribe(1, "veh/**"))) + message(encode_local(Flush(2)))
    async with meshnode.open(config) as node, meshnode.connect(socket_of(config)) as good:
        for end in range(len(whole)):
            with raw(socket_of(config), whole[:end]):
                pass
        await until(lambda: len(node.part(RunningLocal)._server._applications) == 1, "all are gone")  # type: ignore[union-attr]
        assert node.statistics()["local_malformed"] == 0
        assert len(node.driver._handlers) == 0
        assert good.peers() == []


async def test_applications_beyond_the_bound_are_turned_away(house: House) -> None:
    """A program that connects in a loop must not use up the node's memory."""
    config = house.config("veh-1")
    async with meshnode.open(config) as node, asyncio.timeout(60):
        apps = [meshnode.connect(socket_of(config)) for _ in range(limits.MAX_LOCAL_APPLICATIONS)]
        for app in apps:
            await app.__aenter__()
        with pytest.raises(TransportError, match="full"):
            async with meshnode.connect(socket_of(config)):
                pass
        assert node.statistics()["local_turned_away"] == 1
        for app in apps:
            await app.close()
        await until(lambda: node.statistics()["local_closed"] == len(apps), "their places are free")
        async with meshnode.connect(socket_of(config)) as late:
            assert late.id == "veh-1"


async def test_mute_connection_is_closed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that never says who it is holds a place."""
    monkeypatch.setattr(limits, "LOCAL_OPEN_TIMEOUT_NS", 100 * limits.MS)
    config = house.config("veh-1")
    async with meshnode.open(config):
        with raw(socket_of(config)) as sock:
            assert await asyncio.to_thread(received, sock) == []


# --- the wire --------------------------------------------------------------------------------------------------------
async def test_program_on_libnng_is_an_application(house: House) -> None:
    """The wire is NNG's: a program in another language needs its NNG binding and MessagePack, nothing of ours."""
    config = house.config("veh-1")
    reading = Reading("veh/veh-1/x", "veh-1", 1, 2.5, HERE, EventTime(5, 0), Provenance("c", "1"))

    def talk() -> list[Any]:
        with pynng.Pair0(dial=f"ipc://{socket_of(config)}", recv_timeout=30_000, send_timeout=30_000) as sock:
            sock.send(encode_local(Open(LOCAL_MAJOR, 0, "c")))
            answers = [sock.recv()]
            sock.send(encode_local(Subscribe(1, "veh/**")))
            answers.append(sock.recv())
            sock.send(frame_of_encoded_readings([encode_parcel(OWN_POSITION, reading)]))
            answers.append(sock.recv())
            return [decode_untrusted_local_node_frame(answer) for answer in answers]

    async with meshnode.open(config):
        welcome, _done, parcels = await asyncio.to_thread(talk)
    assert welcome.node == "veh-1"
    assert isinstance(parcels, Parcels)
    (parcel,) = parcels.parcels
    got = decode_untrusted_parcel(parcel)
    assert (parcel.label, got.key, got.value, got.when.utc_ns) == (1, "veh/veh-1/x", 2.5, 5)


@given(st.binary(max_size=200))
def test_decoders_of_untrusted_bytes_raise_one_error_only(data: bytes) -> None:
    """Whatever comes, the reader of a socket has one kind of error to handle."""
    for decode in (decode_untrusted_application_frame, decode_untrusted_local_node_frame):
        for attempt in (data, b"\x92\x06" + data, b"\x93\x63" + data, b"\x92\x74" + data):
            with suppress(RemoteProtocolError):
                decode(attempt)
