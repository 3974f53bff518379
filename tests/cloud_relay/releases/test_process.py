"""Releases of a real relay over its real door, and a publication that is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from threading import Thread

import pytest

from cloud_relay.releases.repository import opened
from cloud_relay.releases.serving import MAX_WAITING
from cloud_relay.releases.shown import read_shown
from cloud_relay.releases.signing import keys_in
from meshnode.links.transport import Requester
from meshnode.releases.trust import Trust
from protocols.base.ids import Role
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.frame import Frame
from protocols.wire.records import Acknowledgement
from protocols.wire.releases import RelayChunk, RelayChunkWanted, ReleasesAsked, ReleasesTold
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import RelayProcess, batch
from tests.tools.release_fixture import Publisher, list_file, sha256

pytestmark = pytest.mark.processes


def asked(requester: Requester, frame: Frame, timeout_s: float = 20.0) -> Frame:
    return decode_untrusted_relay_frame(requester.request(encode_frame(frame), timeout_s))


def told_meanwhile(relay: RelayProcess, version: int, publish: Callable[[], object]) -> int:
    """The version that a node is told that waits for another one than ``version`` while there is news. It asks twice,
    and the relay answers its first question when it has the second one: so it waits before there is news."""
    answers: list[Frame] = []
    with relay.requester("tool-1", Role.TOOL) as first, relay.requester("tool-1", Role.TOOL) as second:
        question = ReleasesAsked(version, 60_000)
        askers = [Thread(target=lambda by=by: answers.append(asked(by, question, 70.0))) for by in (first, second)]
        for asker in askers:
            asker.start()
        eventually(lambda: len(answers) == 1, "one question waits")
        publish()
        eventually(lambda: len(answers) == 2, "the other question is answered too")
        for asker in askers:
            asker.join()
    told = answers[1]
    assert isinstance(told, ReleasesTold)
    assert told.news is not None
    return told.news.timestamp_version


def test_relay_process_hands_out_releases_and_takes_batches_beside_it(tmp_path: Path) -> None:
    """A node that waits for news, one that fetches, and one that sends records, all at once."""
    publisher = Publisher(tmp_path / "relay" / "state" / "releases")
    trust = Trust(tmp_path / "trust", publisher.root_path)
    content = Random(3).randbytes(700_000)
    publisher.release(1, content=content)
    with RelayProcess(tmp_path / "relay") as relay, relay.requester() as node, relay.requester("v-2") as other:
        told = asked(node, ReleasesAsked(0, 30_000))
        assert isinstance(told, ReleasesTold)
        assert told.news is not None
        given = asked(node, RelayChunkWanted(told.news.bundle))
        assert isinstance(given, RelayChunk)
        assert trust.verify(given.data).releases[0].path == "models/plate"
        assert asked(other, batch(1, 2, node="v-2")) == Acknowledgement((1, 2))
        shown = read_shown(publisher.folder)
        assert shown is not None
        for digest in shown.paths:
            part = asked(node, RelayChunkWanted(digest))
            assert isinstance(part, RelayChunk)
            assert sha256(part.data) == digest
        assert told_meanwhile(relay, told.news.timestamp_version, lambda: publisher.release(2)) == 3


def test_relay_process_told_to_end_answers_whoever_waits(tmp_path: Path) -> None:
    """A long question must not hold up the end of the relay for a minute."""
    Publisher(tmp_path / "relay" / "state" / "releases")
    answers: list[tuple[int, Frame]] = []

    def ask(number: int, requester: Requester) -> None:
        answers.append((number, asked(requester, ReleasesAsked(1, 60_000), 70.0)))

    with RelayProcess(tmp_path / "relay") as relay, ExitStack() as nodes:
        requesters = [nodes.enter_context(relay.requester(f"v-{number}")) for number in range(MAX_WAITING + 1)]
        askers = [Thread(target=ask, args=each) for each in enumerate(requesters)]
        for asker in askers:
            asker.start()
        eventually(lambda: len(answers) == 1)  # it made room for the last one, so all others wait now
        relay.process.terminate()
        assert relay.process.wait(20) == 0
        for asker in askers:
            asker.join(20)
    assert [type(answer) for _, answer in answers] == [ReleasesTold] * (MAX_WAITING + 1)


_PUBLISH = """
import sys
from pathlib import Path
from tests.cloud_relay.releases.test_process import publish_for_ever
publish_for_ever(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def publish_for_ever(folder: Path, keys: Path) -> None:
    """Publish release after release, until somebody ends it. It says when one is out."""
    while True:
        with opened(folder) as repository:
            repository.load()
            repository.use_keys(keys_in([keys]).values())
            counter = repository.state.counters.get("models/plate", 0) + 1
            for path in repository.paths()[:-3]:
                repository.remove(path)
            list_file(repository, counter, "plate", os.urandom(50_000))
            repository.commit()
        os.write(1, b".")


def test_publication_killed_at_any_moment_leaves_a_repository_that_nodes_follow(tmp_path: Path) -> None:
    """SIGKILL of the relay's operator: the metadata of before or after, all of whose chunks are there."""
    publisher = Publisher(tmp_path / "repository")
    keys = tmp_path / "keys"
    keys.mkdir()
    for role, signer in publisher.signers.items():
        (keys / f"{role}.pem").write_bytes(signer.private_bytes)  # type: ignore[attr-defined]
    trust = Trust(tmp_path / "trust", publisher.root_path)
    random, version = Random(11), 0
    for _ in range(4):
        command = [sys.executable, "-c", _PUBLISH, str(publisher.folder), str(keys)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1), "one is out, and the next one is under way"
            time.sleep(random.uniform(0, 0.15))
            process.kill()
        catalogue = trust.verify(publisher.bundle)
        assert catalogue.timestamp_version > version
        version = catalogue.timestamp_version
        with publisher.changing() as repository:
            for listed in catalogue.releases:
                assert repository.shelf.find(listed.digest) is not None
            repository.refresh()
    assert version >= 2 * 4, "each time a new release, and the new signatures of the time before"


_WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("tuf", "securesystemslib", "zstandard"))  # as if they were not installed
import cloud_relay.server
from cloud_relay.cli import main
main()
"""


@pytest.mark.parametrize("words", [["release", "list"], ["rollout", "status"], ["release", "key", "make", "k.pem"]])
def test_commands_without_the_library_say_what_to_install(tmp_path: Path, words: list[str]) -> None:
    """A relay that only takes records needs none of it, and starts."""
    command = [sys.executable, "-c", _WITHOUT, *words]
    place = [] if "key" in words else ["--folder", str(tmp_path)]
    ended = subprocess.run([*command, *place], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 2
    assert "install it" in ended.stderr
    assert "meshnode[releases]" in ended.stderr
    assert subprocess.run([*command[:3], "--help"], capture_output=True, check=False).returncode == 0
