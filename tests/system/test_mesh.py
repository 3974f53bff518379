"""A mesh of six processes that find each other by mDNS on loopback, and what is done to them.

Times are bounded loosely here, so that a busy machine fails nothing: ``python -m benchmarks.idle`` holds them against
the promises.
"""

import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from meshnode.identity import create_mesh, issue
from meshnode.links.transport import Address, CredentialFiles
from tests.tools.eventually import LIMIT_S, eventually
from tests.tools.link_fixture import SP_PUSH, drained, raw_tls
from tests.tools.mesh_fixture import House, Member

pytestmark = pytest.mark.processes

NAMES = ("rsu-1", "rsu-2", "veh-1", "veh-2", "veh-3", "veh-4")


def role(name: str) -> str:
    return "rsu" if name.startswith("rsu") else "vehicle"


class Six:
    """Six members by name; each test leaves them as it found them: all alive, all met."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.house, self._stack = House(folder), stack
        self.members: dict[str, Member] = {}
        for name in NAMES:
            self.start(name)

    def start(self, name: str) -> Member:
        member = Member(self.house.file(name, role=role(name)))
        self.members[name] = self._stack.enter_context(member)
        return member

    def others(self, *names: str) -> list[Member]:
        return [member for name, member in self.members.items() if name not in names]

    def all_met(self) -> None:
        """Until everybody holds everybody for alive, both ways."""
        for name, member in self.members.items():
            eventually(
                lambda m=member, n=name: m.alive() == set(NAMES) - {n}, f"{name} knows all, not {member.alive()}"
            )

    def deaths(self) -> list[tuple[str, str]]:
        return [(name, line["node"]) for name, member in self.members.items() for line in member.heard("NeighbourDead")]


@pytest.fixture(scope="module", name="six")
def given_six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Six]:
    with ExitStack() as stack:
        six = Six(tmp_path_factory.mktemp("six"), stack)
        six.all_met()
        yield six


def test_six_nodes_started_at_once_all_meet_within_bounds(six: Six) -> None:
    """The first promise of a mesh: whoever is there is known, with nobody configured."""
    last_start_s = max(member.started_s for member in six.members.values())
    for name, member in six.members.items():
        for other in set(NAMES) - {name}:
            met = member.wait_for("NeighbourMet", node=other)
            assert met["at"] - last_start_s < LIMIT_S
            assert met["role"] == role(other)
    assert six.deaths() == []


def test_readings_in_the_mesh_reach_everybody_once(six: Six) -> None:
    """Six nodes with five links each: nobody is left out, nobody hears a thing twice."""
    six.all_met()
    for name, member in six.members.items():
        key = f"{'rsu' if role(name) == 'rsu' else 'veh'}/{name}/hello"
        eventually(lambda m=member, k=key: m.ask("publish", k, "first") == 5, f"five neighbours want {key}")
        member.ask("publish", key, "counted")
    for name, member in six.members.items():
        for other in set(NAMES) - {name}:
            member.wait_for("reading", origin=other, value="counted")
            assert len(member.heard("reading", origin=other, value="counted")) == 1


def test_node_killed_is_dead_everywhere_and_met_again_when_it_restarts(six: Six) -> None:
    """SIGKILL at any moment: nobody may go on relying on the dead, and the next life must be welcome."""
    six.all_met()
    victim = six.members["rsu-2"]
    before = victim.heard("up")[0]["incarnation"]
    others, deaths = six.others("rsu-2"), six.deaths()
    killed_s = time.time()
    victim.end(signal.SIGKILL)
    for member in others:
        assert member.wait_for("NeighbourDead", node="rsu-2")["at"] - killed_s < LIMIT_S
    assert {about for who, about in six.deaths() if (who, about) not in deaths} == {"rsu-2"}
    again = six.start("rsu-2")
    assert again.wait_for("up")["incarnation"] > before
    for member in others:
        met = member.wait_for("NeighbourMet", node="rsu-2", since=1)
        assert met["incarnation"] == again.heard("up")[0]["incarnation"]
    six.all_met()


def test_node_told_to_leave_has_left_everywhere_and_exits_with_0(six: Six) -> None:
    """A planned stop is no accident: nobody waits for it, nobody calls it dead."""
    six.all_met()
    leaving = six.members["veh-1"]
    deaths = six.deaths()
    assert leaving.end(signal.SIGTERM) == 0
    assert leaving.heard("closed")
    for member in six.others("veh-1"):
        assert member.wait_for("NeighbourLeft", node="veh-1")["reason"]
        assert "veh-1" not in member.alive()
    assert six.deaths() == deaths
    six.start("veh-1")
    six.all_met()


def test_node_stopped_for_seconds_is_given_up_and_met_again_and_harms_no_other(six: Six) -> None:
    """A laptop lid, a debugger, a starved container: the node comes back to a mesh that went on without it, and accuses
    nobody for its own absence."""
    six.all_met()
    frozen, others = six.members["veh-2"], six.others("veh-2")
    deaths = six.deaths()
    frozen.send(signal.SIGSTOP)
    try:
        for member in others:
            member.wait_for("NeighbourDead", node="veh-2")
        rsu = six.members["rsu-1"]
        eventually(lambda: rsu.ask("publish", "rsu/rsu-1/news", "while frozen") == 4, "the others still listen")
        for member in six.others("veh-2", "rsu-1"):
            member.wait_for("reading", key="rsu/rsu-1/news", value="while frozen")
    finally:
        frozen.send(signal.SIGCONT)
    six.all_met()
    fresh = [death for death in six.deaths() if death not in deaths]
    assert {about for who, about in fresh if who != "veh-2"} == {"veh-2"}, "no other link broke"
    assert frozen.ask("statistics")["local_stalls"] >= 1
    assert [about for who, about in fresh if who == "veh-2"] == [], "it accuses nobody"


def test_second_node_with_the_id_of_another_is_named_and_harms_no_third(six: Six, tmp_path: Path) -> None:
    """Whoever clones a disk image must be told so, by name; the other nodes must not suffer for it."""
    six.all_met()
    deaths = six.deaths()
    original, others = six.members["veh-4"], six.others("veh-4")
    refused = {member.name: member.ask("statistics")["pipes_refused"] for member in others}
    text = (six.house.folder / "veh-4" / "node.toml").read_text()
    clone_home = tmp_path / "veh-4"
    clone_home.mkdir()
    for file in (six.house.folder / "veh-4").iterdir():
        if file.suffix in (".crt", ".key"):
            (clone_home / file.name).write_bytes(file.read_bytes())
            (clone_home / file.name).chmod(0o600)
    (clone_home / "node.toml").write_text(text)
    with Member(clone_home / "node.toml") as clone:
        clone.wait_for("up")
        told = [original, clone]
        eventually(
            lambda: any(m.heard("DuplicateIdentity", node="veh-4") for m in (*told, *others)), "somebody names the id"
        )
        eventually(
            lambda: any(m.heard("DuplicateIdentity", node="veh-4", ours=True) for m in told), "one is told itself"
        )
        eventually(
            lambda: any(m.ask("statistics")["pipes_refused"] > refused[m.name] for m in others), "a refusal is counted"
        )
        for member in others:
            assert set(NAMES) - {member.name, "veh-4"} <= member.alive()
            assert sum(peer["node"] == "veh-4" for peer in member.ask("peers")) == 1
        assert clone.end() == 0
    assert {about for who, about in six.deaths() if who != "veh-4" and (who, about) not in deaths} <= {"veh-4"}
    assert original.process.poll() is None, "it lives on, whoever is believed"
    assert original.end() == 0
    six.start("veh-4")
    eventually(lambda: all("veh-4" in member.alive() for member in others), "the next life is welcome", 45.0)
    six.all_met()


def test_strangers_meet_nobody_and_hear_nothing(six: Six, tmp_path: Path) -> None:
    """Of another mesh, of another authority that copied our name, with a certificate that has ended: the mesh is closed
    to them, whatever addresses they know."""
    six.all_met()
    ports = [member.port for member in six.members.values()]
    seeds = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    tables = f"[discovery]\nmdns = false\nseeds = [{seeds}]\n"
    other_mesh = House(tmp_path / "other-mesh")
    impostor = House(tmp_path / "impostor")
    (tmp_path / "impostor" / "authority" / "authority.crt").unlink()
    (tmp_path / "impostor" / "authority" / "authority.key").unlink()
    create_mesh(tmp_path / "impostor" / "authority", six.house.mesh)
    issue(six.house.folder / "authority", "vehicle", "veh-8", tmp_path / "ended", valid_days=0.000_01)
    strangers = [Member(house.file("veh-9", tables)) for house in (other_mesh, impostor)]
    with strangers[0], strangers[1]:
        for stranger in strangers:
            stranger.wait_for("up")
        for name, member in six.members.items():
            top = "rsu" if role(name) == "rsu" else "veh"
            assert member.ask("publish", f"{top}/{name}/secret", "for the mesh") == 5
        for stranger in strangers:
            eventually(lambda s=stranger: s.ask("statistics")["dials_failed"] >= len(NAMES), "it knocked everywhere")
            assert stranger.ask("peers") == []
            assert stranger.heard("reading") == stranger.heard("NeighbourMet") == []
        for stranger in strangers:
            assert stranger.end() == 0
    files = CredentialFiles(*(tmp_path / "ended" / name for name in ("veh-8.crt", "veh-8.key", "authority.crt")))
    time.sleep(max(0.0, files.certificate.stat().st_mtime + 1.2 - time.time()))  # until its end has passed
    for port in ports[:2]:
        got = b""
        try:
            with raw_tls(Address("127.0.0.1", port), files, files.authority) as link:
                link.sendall(SP_PUSH)
                got = drained(link)
        except (ssl.SSLError, OSError):
            pass
        assert got == b"", "not even a greeting"
    for member in six.members.values():
        assert {peer["node"] for peer in member.ask("peers")} <= set(NAMES)
        assert member.ask("statistics")["link_handshakes_failed"] >= 1
    six.all_met()


def test_member_whose_certificate_has_ended_does_not_start(six: Six) -> None:
    """It would be refused by everybody: better to say so at once, and how to get a new one."""
    home = six.house.folder / "veh-7"
    issue(six.house.folder / "authority", "vehicle", "veh-7", home, valid_days=0.000_01)
    time.sleep(max(0.0, (home / "veh-7.crt").stat().st_mtime + 1.2 - time.time()))
    with Member(six.house.file("veh-7")) as late:
        assert late.process.wait(LIMIT_S) == 1
        said = late.log.read_text()
    assert "veh-7.crt" in said
    assert "expired" in said
    assert "Traceback" not in said
