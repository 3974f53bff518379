"""The commands ``cloud-relay release`` and ``cloud-relay rollout``, as an operator types them and as a node follows."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloud_relay.cli import main
from cloud_relay.releases.publishing import description_of
from cloud_relay.releases.repository import ReleaseRepository, opened
from cloud_relay.releases.shown import read_shown
from meshnode.releases.trust import Trust
from tests.tools.publishable_fixture import write_model


class Operator:
    """Somebody who types commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        place = [] if words[:2] == ("release", "key") and words[2] == "make" else ["--folder", str(self.folder)]
        result: Result = CliRunner().invoke(main, [*map(str, words), *place])
        assert result.exit_code == status, result.output + repr(result.exception)
        return result.output


@pytest.fixture(name="operator")
def given_operator(tmp_path: Path) -> Operator:
    operator = Operator(tmp_path / "repository")
    for number in (1, 2, 3):
        operator("release", "key", "make", tmp_path / f"{number}.pem")
    keys = [word for number in (1, 2, 3) for word in ("--root-key", tmp_path / f"{number}.pem")]
    operator("release", "init", *keys)
    return operator


def listed(operator: Operator, trust: Trust) -> list[tuple[str, int]]:
    shown = read_shown(operator.folder)
    assert shown is not None
    return [(each.path, each.counter) for each in trust.verify(shown.bundle).releases]


def test_commands_publish_list_revoke_and_a_node_follows(operator: Operator, tmp_path: Path) -> None:
    """The life of two releases, as an operator types it and as a node sees it."""
    trust = Trust(tmp_path / "trust", operator.folder / "metadata" / "1.root.json")
    write_model(tmp_path / "v1")
    write_model(tmp_path / "v2", scale=2.001)
    assert "models/plate 1: 4 files" in operator("release", "publish", tmp_path / "v1")
    assert listed(operator, trust) == [("models/plate", 1)]
    out = operator("release", "publish", tmp_path / "v2" / "plate.onnx", "--deltas", "0", "--changelog", "better")
    assert "models/plate 2" in out
    assert "delta of plate.onnx" in operator("release", "delta", "plate", "2", "--from", "1")
    assert listed(operator, trust) == [("models/plate", 1), ("models/plate", 2)]
    assert "models/plate 2" in operator("release", "list")
    operator("rollout", "start", "plate", "2", "--canary", "a", "--canary", "b", "--canary", "c")
    out = operator("release", "revoke", "plate", "2")
    assert "order 1 is aborted" in out
    assert listed(operator, trust) == [("models/plate", 1)]
    assert "there is no release 2" in operator("release", "revoke", "plate", "2", status=2)


def test_list_names_a_damaged_description_and_shows_the_others(operator: Operator, tmp_path: Path) -> None:
    """One bad sector of the relay hid everything that is published, and which release it is that is damaged."""
    write_model(tmp_path / "v1")
    write_model(tmp_path / "v2", scale=2.001)
    operator("release", "publish", tmp_path / "v1")
    operator("release", "publish", tmp_path / "v2", "--deltas", "0")
    target = ReleaseRepository(operator.folder).load().target("models/plate/1.json")
    assert target is not None
    digest = target.hashes["sha256"]
    (operator.folder / "chunks" / digest[:2] / digest).write_bytes(b"{}")
    out = operator("release", "list", status=1)
    assert "the description of models/plate 1 is damaged: restore a copy of" in out
    assert "models/plate 2: " in out
    assert '"counter": 2' in operator("release", "list", "--json", status=1)
    operator("release", "revoke", "plate", "1")
    assert "damaged" not in operator("release", "list")


def test_commands_remove_chunks_that_nothing_leads_to(operator: Operator, tmp_path: Path) -> None:
    """The disk of a relay must not fill with what was revoked."""
    write_model(tmp_path / "v1")
    chunks = operator.folder / "chunks"
    operator("release", "publish", tmp_path / "v1")
    assert len(list(chunks.glob("*/*"))) >= 8
    operator("release", "revoke", "plate", "1")
    assert list(chunks.glob("*/*")) == []


@pytest.mark.parametrize("words", [("release", "list"), ("release", "key", "list"), ("rollout", "status")])
def test_commands_that_only_show_do_so_while_another_one_publishes(operator: Operator, words: tuple[str, ...]) -> None:
    """A large model takes minutes, and nobody could look at what is published meanwhile."""
    with opened(operator.folder):
        shown = operator(*words)
        assert "another command" in operator("release", "refresh", status=2)
    assert shown == operator(*words)


@pytest.mark.parametrize("part", ["description", "index"])
def test_commands_with_a_damaged_release_leave_its_chunks_on_the_shelf(
    operator: Operator, tmp_path: Path, part: str
) -> None:
    """One damaged file of a few bytes, and the next command removed all weights of the release."""
    write_model(tmp_path / "v1")
    operator("release", "publish", tmp_path / "v1")
    repository = ReleaseRepository(operator.folder).load()
    target, description = repository.target("models/plate/1.json"), description_of(repository, "models/plate", 1)
    assert target is not None
    name = target.hashes["sha256"] if part == "description" else description.files[0].content.index
    chunks = operator.folder / "chunks"
    damaged = chunks / name[:2] / name
    whole = damaged.read_bytes()
    damaged.write_bytes(b"~" * len(whole))
    assert "models/plate/1.json can't be read" in operator("release", "refresh")
    damaged.write_bytes(whole)
    assert [repository.shelf.read(file.content) for file in description.files]
    operator("release", "revoke", "plate", "1")
    assert list(chunks.glob("*/*")) == []


def test_commands_rotate_keys_and_a_node_follows(operator: Operator, tmp_path: Path) -> None:
    """Every role once, root included, and what was signed before counts no more."""
    trust = Trust(tmp_path / "trust", operator.folder / "metadata" / "1.root.json")
    two = ["--root-key", tmp_path / "1.pem", "--root-key", tmp_path / "2.pem"]
    for role in ("timestamp", "snapshot", "targets"):
        operator("release", "rotate", role, *two)
    for role in ("models", "rollouts"):
        operator("release", "rotate", role)
    operator("release", "key", "make", tmp_path / "4.pem")
    keyid = operator("release", "key", "list").splitlines()[0].rpartition(" ")[2]
    operator("release", "rotate", "root", *two, "--add-key", tmp_path / "4.pem", "--drop-key", keyid)
    shown = read_shown(operator.folder)
    assert shown is not None
    assert trust.verify(shown.bundle).root_version == 5
    dropped = ["--root-key", tmp_path / "3.pem", "--root-key", tmp_path / "1.pem"]
    assert "is no key of root" in operator("release", "rotate", "timestamp", *dropped, status=2)
    assert "1 of 2 keys" in operator("release", "rotate", "timestamp", *two[:2], status=2)
    assert "0 keys of root begin with" in operator("release", "rotate", "root", *two, "--drop-key", "zz", status=2)
    assert "1 keys of root" in operator("release", "rotate", "root", *two, *[
        word for line in operator("release", "key", "list").splitlines()[:1]
        for keyid in line.rpartition(" of ")[2].split(", ")[:2] for word in ("--drop-key", keyid)
    ], status=2)  # fmt: skip


def test_commands_that_failed_after_a_key_was_made_can_be_repeated(operator: Operator, tmp_path: Path) -> None:
    """The key of targets was on a stick that nobody had named. Its file was in the way of the second attempt."""
    away = tmp_path / "stick"
    away.mkdir()
    (key,) = (operator.folder / "keys").glob("targets*.pem")
    key.rename(away / key.name)
    for words in (("rotate", "models"), ("delegate", "acme", "--model", "sign-*")):
        assert "the key of targets" in operator("release", *words, status=2)
        assert "published" in operator("release", *words, "--keys", away)


def test_commands_init_with_one_key_of_root_twice_can_be_repeated(tmp_path: Path) -> None:
    """A slip of an operator must not leave keys behind that are in the way of the next attempt."""
    operator = Operator(tmp_path / "repository")
    for number in (1, 2):
        operator("release", "key", "make", tmp_path / f"{number}.pem")
    once, twice = ["--root-key", tmp_path / "1.pem"], ["--root-key", tmp_path / "2.pem"]
    assert "it was given 1 and" in operator("release", "init", *once, *once, status=2)
    assert not (operator.folder / "keys").exists()
    assert "published" in operator("release", "init", *once, *twice)


def test_commands_delegate_to_a_publisher_and_back(operator: Operator, tmp_path: Path) -> None:
    """Another team publishes its own models, and no others."""
    trust = Trust(tmp_path / "trust", operator.folder / "metadata" / "1.root.json")
    write_model(tmp_path / "v1")
    operator("release", "delegate", "acme", "--model", "sign-*")
    operator("release", "publish", tmp_path / "v1", "--name", "sign-limit")
    operator("release", "publish", tmp_path / "v1")
    assert "acme 2 for models/sign-*/*.json" in operator("release", "key", "list")
    assert listed(operator, trust) == [("models/plate", 1), ("models/sign-limit", 1)]
    operator("release", "undelegate", "acme")
    assert listed(operator, trust) == [("models/plate", 1)]
    assert "exists" in operator("release", "delegate", "targets", "--model", "x", status=2)


def test_commands_undelegate_of_the_role_of_orders_is_refused(operator: Operator, tmp_path: Path) -> None:
    """It took all orders out, and nobody could ever order anything again."""
    write_model(tmp_path / "v1")
    operator("release", "publish", tmp_path / "v1")
    operator("rollout", "start", "plate", "1")
    assert "release rotate rollouts" in operator("release", "undelegate", "rollouts", status=2)
    assert "order 1: models/plate 1, running" in operator("rollout", "status")


def test_commands_orders_run_through_their_states(operator: Operator, tmp_path: Path) -> None:
    """Start, pause, resume, promote, abort; each of them is one order."""
    write_model(tmp_path / "v1")
    operator("release", "publish", tmp_path / "v1")
    out = operator(
        "rollout", "start", "plate", "1", "--role", "rsu", "--share", "0.25", "--canary", "a", "--soak", "5m"
    )
    assert "order 1: models/plate 1, running, for rsu, 25%" in out
    for verb, state in (("pause", "paused"), ("resume", "running"), ("promote", "promoted"), ("abort", "aborted")):
        assert f"order 1: models/plate 1, {state}" in operator("rollout", verb, "plate")
        assert f"order 1: models/plate 1, {state}" in operator("rollout", "status")
    assert "start a new one" in operator("rollout", "resume", "plate", status=2)
    assert "order 2" in operator("rollout", "start", "plate", "1")
    assert "aborted already" in operator("rollout", "abort", "plate", "--serial", "1", status=2)
    assert "there is no order 7" in operator("rollout", "abort", "plate", "--serial", "7", status=2)


def test_commands_pass_over_a_damaged_order_and_take_it_out(
    operator: Operator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One damaged file of 300 bytes, and no rollout could be started, paused or aborted any more."""
    write_model(tmp_path / "v1")
    operator("release", "publish", tmp_path / "v1")
    for _ in range(2):
        operator("rollout", "start", "plate", "1")
    target = ReleaseRepository(operator.folder).load().target("rollouts/2.json")
    assert target is not None
    name = target.hashes["sha256"]
    (operator.folder / "chunks" / name[:2] / name).write_bytes(b"~")
    assert "order 1: models/plate 1, running" in operator("rollout", "status")
    assert "rollout remove 2" in caplog.text
    assert "order 1: models/plate 1, paused" in operator("rollout", "pause", "plate")
    assert "order 3: models/plate 1, running" in operator("rollout", "start", "plate", "1")
    assert "order 3 is aborted" in operator("release", "revoke", "plate", "1")
    assert "order 1 for models/plate 1 is not damaged" in operator("rollout", "remove", "1", status=2)
    assert "there is no order 9" in operator("rollout", "remove", "9", status=2)
    operator("rollout", "remove", "2")
    caplog.clear()
    assert "order 2" not in operator("rollout", "status")
    assert not caplog.messages


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["start", "plate", "9"], "there is no release 9"),
        (["start", "plate", "1", "--canary", "a b"], "--canary"),
        (["start", "plate", "1", "--canary", "a", "--canary", "a"], "named twice"),
        (["start", "plate", "1", "--canary", "a", "--promote-quorum", "2"], "there are 1 canaries"),
        (["start", "plate", "1", "--promote-quorum", "2"], "name some with --canary"),
        (["start", "plate", "1", "--canary", "a", "--soak", "1d"], "raise --silence"),
        (["start", "plate", "1", "--soak", "31d"], "no node would take"),
        (["start", "plate", "1", "--soak", "soon"], "is no duration"),
        (["pause", "plate"], "there is no order for models/plate"),
    ],
)
def test_commands_refuse_orders_that_make_no_sense(
    operator: Operator, tmp_path: Path, words: list[str], match: str
) -> None:
    """An order that is signed goes to all nodes."""
    write_model(tmp_path / "v1")
    operator("release", "publish", tmp_path / "v1")
    assert match in operator("rollout", *words, status=2)


def test_commands_refuse_to_compare_a_release_that_breaks_its_signature(operator: Operator, tmp_path: Path) -> None:
    """Its canaries would wait for ever for a run that can be compared."""
    write_model(tmp_path / "v1")
    operator("release", "publish", tmp_path / "v1", "--breaks-signature")
    assert "leave --min-agreement out" in operator("rollout", "start", "plate", "1", "--min-agreement", "0.9", status=2)
    assert "order 1" in operator("rollout", "start", "plate", "1")


def test_commands_without_a_repository_say_how_to_make_one(tmp_path: Path) -> None:
    """The first thing that an operator meets."""
    operator = Operator(tmp_path / "repository")
    assert "release init" in operator("release", "list", status=2)
    assert "release key make" in operator("release", "init", status=2)
    operator("release", "key", "make", tmp_path / "1.pem")
    once = ["--root-key", tmp_path / "1.pem"]
    assert "needs 2 keys" in operator("release", "init", *once, status=2)
    assert "it was given 1 and" in operator("release", "init", *once, *once, status=2)
    assert "exists already" in operator("release", "key", "make", tmp_path / "1.pem", status=2)


def test_key_with_a_passphrase_signs_only_for_whoever_knows_it(tmp_path: Path) -> None:
    """A stick that is found on the street is not enough."""
    folder, runner = tmp_path / "repository", CliRunner()
    keys = [str(tmp_path / f"{number}.pem") for number in (1, 2)]
    for key in keys:
        made = runner.invoke(main, ["release", "key", "make", key, "--passphrase"], input="secret\nsecret\n")
        assert made.exit_code == 0, made.output
    words = ["release", "init", "--folder", str(folder), "--root-key", keys[0], "--root-key", keys[1]]
    wrong = runner.invoke(main, words, input="secret\nwrong\n")
    assert (wrong.exit_code, "is wrong" in wrong.output) == (2, True)
    assert not (folder / "keys").exists()
    right = runner.invoke(main, words, input="secret\nsecret\n")
    assert right.exit_code == 0, right.output
    assert b"ENCRYPTED" in Path(keys[0]).read_bytes()
    assert Path(keys[0]).stat().st_mode & 0o077 == 0
