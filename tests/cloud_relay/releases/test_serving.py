"""Releases from the relay: who gets what, and news without a thread held for everybody."""

import os
import threading
from pathlib import Path
from random import Random

import pytest

from cloud_relay.releases.serving import ReleaseService
from cloud_relay.releases.shown import read_shown
from cloud_relay.server import by_frame
from protocols.access import AccessRule, AccessTable
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.records import Acknowledgement, RelayRefusal
from protocols.wire.releases import RelayChunk, RelayChunkWanted, ReleaseNews, ReleasesAsked, ReleasesTold
from tests.tools.eventually import eventually
from tests.tools.release_fixture import Publisher, given_publisher, sha256

__all__ = ["given_publisher"]


def asked(service: ReleaseService, frame: Frame, role: Role = Role.VEHICLE, node: str = "v-1") -> Frame:
    peer = PeerIdentity(MeshName("demo"), role, NodeId(node))
    return decode_untrusted_relay_frame(service.answer(peer, encode_frame(frame)))


def news(service: ReleaseService, version: int = 0, wait_ms: int = 0, role: Role = Role.VEHICLE) -> ReleaseNews | None:
    told = asked(service, ReleasesAsked(version, wait_ms), role)
    assert isinstance(told, ReleasesTold)
    return told.news


def chunk(service: ReleaseService, digest: bytes, role: Role = Role.VEHICLE) -> RelayChunk:
    given = asked(service, RelayChunkWanted(digest), role)
    assert isinstance(given, RelayChunk)
    assert given.digest == digest
    return given


def test_service_tells_news_and_gives_every_chunk_of_a_release(publisher: Publisher) -> None:
    """All that a node needs, by digests that it learnt from what it got before."""
    content = Random(7).randbytes(256_000)
    publisher.release(1, content=content)
    service = ReleaseService(publisher.folder, AccessTable())
    told = news(service)
    assert told is not None
    assert chunk(service, told.bundle).data == publisher.bundle
    assert (told.root_version, told.timestamp_version, told.bundle_bytes) == (1, 2, len(publisher.bundle))
    assert told.timestamp == sha256(publisher.files["timestamp.json"])
    shown = read_shown(publisher.folder)
    assert shown is not None
    given = {digest: chunk(service, digest).data for digest in shown.paths}
    assert all(sha256(data) == digest for digest, data in given.items())
    parts = sorted((data for data in given.values()), key=len)[-4:]
    assert sum(map(len, parts)) == len(content)


def test_service_without_a_repository_says_so_and_finds_one_later(tmp_path: Path) -> None:
    """A relay runs before its operator makes releases."""
    service = ReleaseService(tmp_path / "repository", AccessTable())
    assert news(service) is None
    assert chunk(service, bytes(32)).data == b""
    Publisher(tmp_path / "repository").release(1)
    assert news(service) is not None


def test_service_gives_nothing_that_is_not_published(publisher: Publisher) -> None:
    """What was revoked stays on the disk until the next publication, and is not given."""
    publisher.release(1)
    shown = read_shown(publisher.folder)
    assert shown is not None
    with publisher.changing() as repository:
        repository.remove("models/plate/1.json")
        stray = repository.shelf.keep(b"nobody's")
    service = ReleaseService(publisher.folder, AccessTable())
    for digest in (stray, *shown.paths):
        refused = chunk(service, digest)
        assert (refused.data, refused.detail) == (b"", "the relay does not publish it")


def test_service_asks_the_access_table_by_the_role_of_the_certificate(publisher: Publisher) -> None:
    """A role that may have no releases gets nothing, and one that may have some gets those."""
    publisher.release(1, "plate")
    publisher.release(1, "signs")
    table = AccessTable((AccessRule(Role.VEHICLE, "release", "models/plate"), AccessRule(Role.TOOL, "release", "**")))
    service = ReleaseService(publisher.folder, table)
    told, shown = news(service, role=Role.TOOL), read_shown(publisher.folder)
    assert told is not None
    assert shown is not None
    assert news(service, role=Role.RSU) is None
    assert chunk(service, told.bundle, Role.RSU).data == b""
    assert chunk(service, told.bundle).data != b""
    for digest, paths in shown.paths.items():
        assert bool(chunk(service, digest).data) == ("models/plate" in paths)
        assert chunk(service, digest, Role.RSU).data == b""
        assert chunk(service, digest, Role.TOOL).data != b""


def test_service_answers_as_soon_as_there_is_news(publisher: Publisher) -> None:
    """The relay is asked once a minute, and a release must not take that long."""
    service = ReleaseService(publisher.folder, AccessTable())
    answers: list[ReleaseNews | None] = []
    asker = threading.Thread(target=lambda: answers.append(news(service, 1, 60_000)))
    asker.start()
    publisher.release(1)
    asker.join(30)
    assert answers, "it waits for a minute"
    assert answers[0] is not None
    assert answers[0].timestamp_version == 2


def test_service_lets_few_wait_and_answers_the_one_that_waited_longest(publisher: Publisher) -> None:
    """A hundred nodes that wait would otherwise take all threads, and no batch would be answered."""
    service = ReleaseService(publisher.folder, AccessTable(), max_waiting=2)
    question = ReleasesAsked(1, 60_000)
    askers = [
        threading.Thread(target=asked, args=(service, question, Role.VEHICLE, f"v-{number}")) for number in range(6)
    ]
    for number, asker in enumerate(askers):
        asker.start()
        eventually(lambda number=number: f"v-{number}" in service._waiting)
    for asker in askers[:4]:
        asker.join(30)
    assert [asker.is_alive() for asker in askers] == [False] * 4 + [True] * 2
    service.close()
    for asker in askers:
        asker.join(30)
        assert not asker.is_alive()


def test_service_asked_again_by_one_node_answers_its_question_of_before(publisher: Publisher) -> None:
    """A node that starts again leaves its question behind, which would count as one of its requests for a while."""
    service = ReleaseService(publisher.folder, AccessTable())
    askers = [threading.Thread(target=news, args=(service, 1, 60_000)) for _ in range(3)]
    for number, asker in enumerate(askers):
        before = service._waiting.get(NodeId("v-1"))
        asker.start()
        eventually(lambda before=before: service._waiting.get(NodeId("v-1")) not in (None, before))
        for earlier in askers[:number]:
            earlier.join(30)
            assert not earlier.is_alive()
    service.close()
    askers[-1].join(30)
    assert not askers[-1].is_alive()


def test_service_whose_disk_was_damaged_gives_no_wrong_chunk(publisher: Publisher) -> None:
    """Otherwise every node would report the relay as a liar."""
    publisher.release(1)
    shown = read_shown(publisher.folder)
    assert shown is not None
    digest = next(iter(shown.paths))
    service = ReleaseService(publisher.folder, AccessTable())
    assert chunk(service, digest).data
    path = publisher.folder / "chunks" / digest.hex()[:2] / digest.hex()
    path.write_bytes(path.read_bytes()[:-1] + b"~")
    assert chunk(service, digest).detail == "the relay's copy is damaged"


def test_service_whose_bundle_was_damaged_goes_on_with_the_one_before(publisher: Publisher) -> None:
    """A disk that fails must not take the releases away that nodes are fetching."""
    publisher.release(1)
    service = ReleaseService(publisher.folder, AccessTable())
    before = news(service)
    (publisher.folder / "current.bundle").write_bytes(b"\x80")
    assert news(service) == before


def test_service_that_could_not_read_a_publication_reads_it_again(
    publisher: Publisher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that failed for a moment kept a release from all nodes until the next publication."""
    monkeypatch.setattr("cloud_relay.releases.serving.RETRY_S", 3_600.0)
    service, path = ReleaseService(publisher.folder, AccessTable()), publisher.folder / "current.bundle"
    before = news(service)
    bundle = publisher.release(1)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(bytes(len(bundle)))
    os.utime(path, ns=times)
    assert news(service) == before
    path.write_bytes(bundle)
    os.utime(path, ns=times)
    assert news(service) == before, "it is not read again at once"
    service._again_s = 0.0  # as if the pause were over
    found = news(service)
    assert found is not None
    assert found.timestamp_version == 2
    assert len(caplog.messages) == 1


def test_service_that_could_not_read_a_description_reads_it_again(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay out of descriptors gave no node the chunks of a release until the next publication."""
    monkeypatch.setattr("cloud_relay.releases.serving.RETRY_S", 0.0)
    publisher.release(1)
    shown = read_shown(publisher.folder)
    assert shown is not None
    chunks = publisher.folder / "chunks"
    chunks.rename(publisher.folder / "away")
    service = ReleaseService(publisher.folder, AccessTable())
    assert not any(chunk(service, digest).data for digest in shown.paths)
    (publisher.folder / "away").rename(chunks)
    assert all(chunk(service, digest).data for digest in shown.paths)


@pytest.mark.parametrize("frame", [ReleasesTold(None), RelayChunk(bytes(32), b"x")])
def test_service_asked_something_else_refuses(publisher: Publisher, frame: Frame) -> None:
    """Frames that only a relay sends."""
    refused = asked(ReleaseService(publisher.folder, AccessTable()), frame)
    assert isinstance(refused, RelayRefusal)
    assert refused.code == "malformed"


def test_dispatch_hands_batches_on_as_they_came(publisher: Publisher) -> None:
    """The way of records stays what it was, malformed frames too."""
    service = ReleaseService(publisher.folder, AccessTable())
    seen: list[bytes] = []

    def batches(peer: PeerIdentity, data: bytes) -> bytes:
        seen.append(data)
        return b"batch"

    handler = by_frame(batches, service)
    peer = PeerIdentity(MeshName("demo"), Role.VEHICLE, NodeId("v-1"))
    others = (b"", b"\xc0", b"\x92\x40\x01", encode_frame(Acknowledgement((1,))))
    assert [handler(peer, data) for data in others] == [b"batch"] * 4
    assert seen == list(others)
    frames = (ReleasesAsked(0, 0), RelayChunkWanted(bytes(32)))
    answers = [decode_untrusted_relay_frame(handler(peer, encode_frame(frame))) for frame in frames]
    assert [type(answer) for answer in answers] == [ReleasesTold, RelayChunk]
    malformed = decode_untrusted_relay_frame(handler(peer, b"\x93\x43\xa1x\x00"))
    assert isinstance(malformed, RelayRefusal)
