"""Compressed bodies: unpacked within the bounds, whatever is sent, and answers packed for those that want it."""

import gzip
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.http.bodies import PIECE_BYTES, coding_for, packed, unpacked_pieces
from meshnode.http.guard import BadRequest
from tests.tools.node_fixture import RunningNode, prepare

MEBIBYTE = 1024 * 1024


def raw_deflate(content: bytes) -> bytes:
    """Without the head that the standard wants: some clients send it so."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def bomb(mebibytes: int) -> bytes:
    """Bytes that unpack to so many MiB of zeros: one block again and again, so that making it costs nothing."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + packer.flush()


@given(st.binary(max_size=5_000), st.sampled_from([gzip.compress, zlib.compress, raw_deflate]))
def test_body_that_was_packed_unpacks_to_itself(content: bytes, pack: object) -> None:
    """Each of the three is sent by some client."""
    coding = "gzip" if pack is gzip.compress else "deflate"
    assert b"".join(unpacked_pieces(pack(content), coding)) == content  # type: ignore[operator, arg-type]


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_body_of_any_bytes_is_unpacked_or_refused(body: bytes, coding: str) -> None:
    """Whatever a program sends, it is told 400, and nothing else is raised."""
    try:
        b"".join(unpacked_pieces(body, coding))  # type: ignore[arg-type]
    except BadRequest as error:
        status = error.status
    else:
        status = 400
    assert status == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (gzip.compress(bytes(100), mtime=0)[:-1], "cut off"),
        (gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0), "bytes stand behind the end"),
        (b"", "cut off"),
        (b"no gzip", "can't be unpacked"),
    ],
)
def test_body_that_is_not_whole_is_refused_and_says_how(body: bytes, said: str) -> None:
    """Half a tensor must not pass for a whole one."""
    with pytest.raises(BadRequest, match=said):
        list(unpacked_pieces(body, "gzip"))


def test_bomb_is_unpacked_no_further_than_it_is_taken() -> None:
    """4 MB that become 4 GiB must be refused before they take memory, so they come piece by piece."""
    pieces = unpacked_pieces(bomb(4_096), "deflate")
    assert [len(next(pieces)) for _ in range(3)] == [PIECE_BYTES] * 3


@pytest.mark.parametrize(
    ("accept", "numbers", "coding"),
    [
        ("", False, None),
        ("gzip", False, "gzip"),
        ("gzip", True, "gzip"),
        ("deflate", True, "deflate"),
        ("gzip, deflate, br", False, "gzip"),
        ("gzip, deflate, br", True, None),
        ("deflate;q=1, gzip;q=0.5", False, "deflate"),
        ("gzip;q=0", False, None),
        ("identity, gzip;q=0.5", False, None),
        ("br", False, None),
        ("GZIP;q=x, deflate", False, "deflate"),
        (";;,,=", False, None),
    ],
)
def test_answer_is_packed_as_the_client_asks(accept: str, numbers: bool, coding: str | None) -> None:
    """Who asks for one coding gets it; a library that lists what it knows does not pay for packed numbers."""
    assert coding_for(accept, numbers) == coding


def test_packed_answers_are_what_clients_unpack() -> None:
    """By the functions that they unpack with."""
    content = b"numbers" * 1_000
    assert gzip.decompress(packed(content, "gzip")) == zlib.decompress(packed(content, "deflate")) == content


@pytest.mark.processes
def test_node_sent_a_bomb_refuses_it_and_keeps_its_memory(tmp_path: Path) -> None:
    """One request of 4 MB would otherwise end a node that has two gigabytes."""
    with RunningNode(prepare(tmp_path, "veh-1", "vehicle")) as node:
        body = json.dumps({"key": "veh/veh-1/x", "value": 1}).encode()
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert node.ask("POST", "/v1/readings", gzip.compress(body), headers)[0] == 200
        before = _peak_mib(node.process.pid)
        status, _, answer = node.ask("POST", "/v1/readings", bomb(4_096), {**headers, "Content-Encoding": "deflate"})
        assert (status, "once it is unpacked" in json.loads(answer)["error"]) == (413, True)
        assert _peak_mib(node.process.pid) - before < 128
        status, _, answer = node.ask("POST", "/v1/readings", body, {**headers, "Content-Encoding": "br"})
        assert (status, "use gzip or deflate" in json.loads(answer)["error"]) == (415, True)
        assert node.ask("POST", "/v1/readings", body, {**headers, "Content-Encoding": "identity"})[0] == 200


def _peak_mib(pid: int) -> int:
    """The most memory that a process ever had."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024
