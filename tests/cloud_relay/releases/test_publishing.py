"""Publishing: what is fit to be released, and what a node gets of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from cloud_relay.cli import main
from cloud_relay.releases import chunking
from cloud_relay.releases.publishing import description_of, publish, revoke, with_deltas
from cloud_relay.releases.repository import ReleaseRepository, opened
from cloud_relay.releases.shown import read_shown
from meshnode.models.deltas import apply_delta
from meshnode.releases.trust import Trust
from protocols.base.errors import ModelInvalid, ReleaseInvalid, StorageError
from protocols.base.limits import MAX_CHUNK_BYTES, MAX_CHUNKS, MAX_CONTENT_BYTES
from protocols.releases.catalogue import Description
from tests.tools.onnx_graphs import write_external
from tests.tools.release_fixture import Publisher

SIZE = 64
ELSEWHERE = '[[golden]]\ninputs = { x = "a/b.npy" }\noutputs = { y = "out.npy" }\n'


def write_model(folder: Path, name: str = "plate", *, scale: float = 2.0, golden: bool = True, **io: Any) -> Path:
    """A model that multiplies, with its manifest and one golden vector."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, weights = io.get("shape", ["n", SIZE]), np.full((SIZE, SIZE), scale, "f4")
    graph = helper.make_graph(
        [helper.make_node("MatMul", [io.get("takes", "x"), "w"], [io.get("gives", "y")])], "g",
        [helper.make_tensor_value_info(io.get("takes", "x"), TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(io.get("gives", "y"), TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    manifest = 'licence = "Apache-2.0"\n'
    if golden:
        array = np.ones((1, SIZE), "f4")
        np.save(folder / "in.npy", array)
        np.save(folder / "out.npy", array @ weights)
        manifest += '[[golden]]\ninputs = { x = "in.npy" }\noutputs = { y = "out.npy" }\n'
    (folder / f"{name}.toml").write_text(manifest)
    return path


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "repository")


@pytest.fixture
def repository(publisher: Publisher) -> Iterator[ReleaseRepository]:
    with publisher.changing() as repository:
        yield repository


def test_publish_model_with_manifest_and_vectors_is_described_and_complete(
    repository: ReleaseRepository, tmp_path: Path
) -> None:
    """A node can put the folder together again out of what the description leads to."""
    folder = write_model(tmp_path / "v1").parent
    made = publish(repository, folder, changelog="the first", runtime="1.17")
    assert (made.path, made.counter, made.model, made.licence) == ("models/plate", 1, "plate.onnx", "Apache-2.0")
    assert (made.changelog, made.runtime, made.breaks_signature, made.deltas) == ("the first", "1.17", False, ())
    assert {file.name: repository.shelf.read(file.content) for file in made.files} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert description_of(repository, "models/plate", 1) == made


def test_publish_weights_in_a_file_of_their_own_go_along(repository: ReleaseRepository, tmp_path: Path) -> None:
    """Many exporters write them so."""
    made = publish(repository, write_external(tmp_path / "plate.onnx", "plate.weights"))
    assert [file.name for file in made.files] == ["plate.onnx", "plate.weights"]


def test_publish_newer_release_counts_on_and_offers_a_delta(repository: ReleaseRepository, tmp_path: Path) -> None:
    """A few changed weights; the delta makes the very file."""
    old, new = write_model(tmp_path / "v1"), write_model(tmp_path / "v2", scale=2.001)
    first, second = publish(repository, old), publish(repository, new)
    assert second.counter == 2
    (delta,) = [each for each in second.deltas if each.name == "plate.onnx"]
    assert delta.base == first.files[0].content.sha256
    data = repository.shelf.read(delta.content)
    assert apply_delta(delta.method, old.read_bytes(), data, 1_000_000) == new.read_bytes()
    assert delta.content.size_bytes < 0.1 * second.files[0].content.size_bytes


def test_publish_with_more_deltas_than_releases_offers_one_from_each(
    repository: ReleaseRepository, tmp_path: Path
) -> None:
    """Two releases, and deltas from up to three: it offered one from the last release only."""
    before = [publish(repository, write_model(tmp_path / str(n), scale=2 + n / 1_000)) for n in (1, 2)]
    made = publish(repository, write_model(tmp_path / "3", scale=2.003), deltas=3)
    bases = {each.base for each in made.deltas if each.name == "plate.onnx"}
    assert bases == {each.files[0].content.sha256 for each in before}


def test_publish_runtime_that_is_too_long_is_refused(repository: ReleaseRepository, tmp_path: Path) -> None:
    """It ended in a traceback, after the whole model had been put on the shelf."""
    with pytest.raises(ReleaseInvalid, match=r"'x{101}' has 101 characters, and 100 can travel"):
        publish(repository, write_model(tmp_path / "v1"), runtime="x" * 101)
    assert list((repository.folder / "chunks").glob("*/*")) == []
    assert publish(repository, write_model(tmp_path / "v1"), runtime="x" * 100).runtime == "x" * 100


def test_publish_delta_afterwards_from_any_earlier_release(repository: ReleaseRepository, tmp_path: Path) -> None:
    """Vehicles that were away have older releases."""
    for counter in (1, 2, 3):
        publish(repository, write_model(tmp_path / str(counter), scale=2 + counter / 1_000), deltas=0)
    made = with_deltas(repository, description_of(repository, "models/plate", 3), 1)
    assert [each.name for each in made.deltas if each.name.endswith(".onnx")] == ["plate.onnx"]
    assert with_deltas(repository, made, 1) == made
    with pytest.raises(ReleaseInvalid, match="there is no release 9 of models/plate: the metadata lists 1, 2, 3"):
        with_deltas(repository, made, 9)


def test_publish_counter_that_was_used_is_refused_even_if_revoked(
    repository: ReleaseRepository, tmp_path: Path
) -> None:
    """Nodes may have it: a number means one thing for ever."""
    model = write_model(tmp_path / "v1")
    publish(repository, model, counter=5)
    revoke(repository, "models/plate", 5)
    for counter in (4, 5):
        with pytest.raises(ReleaseInvalid, match="is not above 5"):
            publish(repository, model, counter=counter)
    assert publish(repository, model).counter == 6


@pytest.mark.parametrize(
    ("io", "match"),
    [
        ({"takes": "z", "golden": False}, "it lacks the input 'x'; it needs the input 'z'"),
        ({"gives": "z", "golden": False}, "it lacks the output 'y'"),
        ({"shape": [1, SIZE]}, r"input 'x' is f4\[1, 64\] and was f4\[\?, 64\]"),
    ],
)
def test_publish_other_signature_is_refused_unless_declared(
    repository: ReleaseRepository, tmp_path: Path, io: dict[str, Any], match: str
) -> None:
    """Applications ask by the name of the model, and would fail."""
    publish(repository, write_model(tmp_path / "v1"))
    other = write_model(tmp_path / "v2", **io)
    with pytest.raises(ReleaseInvalid, match=match) as refused:
        publish(repository, other)
    assert "--breaks-signature" in str(refused.value)
    assert publish(repository, other, breaks_signature=True).breaks_signature


def test_publish_wider_signature_is_taken(repository: ReleaseRepository, tmp_path: Path) -> None:
    """Whoever used the old one can use the new one; outputs may not become wider."""
    publish(repository, write_model(tmp_path / "v1", shape=[1, SIZE]))
    with pytest.raises(ReleaseInvalid, match=r"output 'y' is f4\[\?, 64\] and was f4\[1, 64\]"):
        publish(repository, write_model(tmp_path / "v2"))


def test_publish_model_that_computes_something_else_is_refused(repository: ReleaseRepository, tmp_path: Path) -> None:
    """The golden vectors of another training run."""
    model = write_model(tmp_path / "v1")
    np.save(tmp_path / "v1" / "out.npy", np.zeros((1, SIZE), "f4"))
    with pytest.raises(ReleaseInvalid, match=r"golden\[0\]: output 'y' is 128"):
        publish(repository, model)
    assert repository.paths() == []


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda folder: (folder / "plate.onnx").write_bytes(b"no model"), "is not an ONNX file"),
        (lambda folder: (folder / "plate.onnx").write_bytes(b""), "is empty"),
        (lambda folder: (folder / "plate.onnx").unlink(), "has 0 files"),
        (lambda folder: (folder / "b.onnx").write_bytes(b"x"), "has 2 files"),
        (lambda folder: (folder / "in.npy").unlink(), r"in\.npy is not beside"),
        (lambda folder: (folder / "plate.toml").write_text("licenze = 1"), "licenze"),
        (lambda folder: (folder / "plate.toml").write_text(ELSEWHERE), "a folder of its own"),
    ],
)  # fmt: skip
def test_publish_files_that_are_not_fit_are_named(
    repository: ReleaseRepository, tmp_path: Path, spoil: Any, match: str
) -> None:
    """Better here than at a thousand nodes."""
    folder = write_model(tmp_path / "v1").parent
    spoil(folder)
    with pytest.raises((ReleaseInvalid, ModelInvalid), match=match):
        publish(repository, folder)
    assert repository.paths() == []


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "ü", "a" * 101])
def test_publish_name_that_can_not_be_one_is_refused(repository: ReleaseRepository, tmp_path: Path, name: str) -> None:
    """It would be part of paths and file names."""
    with pytest.raises(ReleaseInvalid):
        publish(repository, write_model(tmp_path / "v1"), name=name)


def test_publish_without_the_key_of_the_publisher_changes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    """The key is on a stick that is not there."""
    before = publisher.bundle
    del publisher.signers["models"]
    with pytest.raises(ReleaseInvalid, match="key of models"), publisher.changing() as repository:
        publish(repository, write_model(tmp_path / "v1"))
    assert publisher.bundle == before


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        (1, 65_536),
        (65_536 * MAX_CHUNKS, 65_536),
        (65_536 * MAX_CHUNKS + 1, 131_072),
        (MAX_CONTENT_BYTES, MAX_CHUNK_BYTES),
    ],
)
def test_chunks_are_as_small_as_their_number_permits(size: int, chunk: int) -> None:
    """Small ones can be fetched from more neighbours."""
    assert chunking.chunk_bytes_of(size) == chunk


@pytest.mark.parametrize("size", [0, MAX_CONTENT_BYTES + 1])
def test_file_that_can_not_travel_is_refused(size: int) -> None:
    """An empty chunk means that there is none."""
    with pytest.raises(ReleaseInvalid, match=str(size)):
        chunking.chunk_bytes_of(size)


def test_shelf_without_room_says_so_and_lists_nothing(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: what is published stays."""
    before = publisher.bundle

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="make room"), publisher.changing() as repository:
        publish(repository, write_model(tmp_path / "v1"))
    assert publisher.bundle == before


def test_shelf_that_is_given_a_damaged_chunk_again_mends_it(repository: ReleaseRepository) -> None:
    """A file of the right size was taken for the chunk, so publishing again did not help."""
    digest = repository.shelf.keep(b"a chunk")
    (path,) = repository.folder.glob(f"chunks/*/{digest.hex()}")
    path.write_bytes(b"a chuck")
    assert repository.shelf.find(digest) is None
    assert repository.shelf.keep(b"a chunk") == digest
    assert repository.shelf.find(digest) == b"a chunk"


# --- commands --------------------------------------------------------------------------------------------------------
class Operator:
    """Somebody who types commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        place = [] if words[:2] == ("release", "key") and words[2] == "make" else ["--folder", str(self.folder)]
        result: Result = CliRunner().invoke(main, [*map(str, words), *place])
        assert result.exit_code == status, result.output + repr(result.exception)
        return result.output


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
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
    assert "at least two keys" in operator("release", "init", *once, *once, status=2)
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


def test_commands_without_a_repository_say_how_to_make_one(tmp_path: Path) -> None:
    """The first thing that an operator meets."""
    operator = Operator(tmp_path / "repository")
    assert "release init" in operator("release", "list", status=2)
    assert "release key make" in operator("release", "init", status=2)
    operator("release", "key", "make", tmp_path / "1.pem")
    once = ["--root-key", tmp_path / "1.pem"]
    assert "needs 2 keys" in operator("release", "init", *once, status=2)
    assert "at least two keys" in operator("release", "init", *once, *once, status=2)
    assert "exists already" in operator("release", "key", "make", tmp_path / "1.pem", status=2)


def test_description_of_the_largest_release_fits_into_a_chunk(repository: ReleaseRepository, tmp_path: Path) -> None:
    """A node must be able to read what is published."""
    description = publish(repository, write_model(tmp_path / "v1"), changelog="x" * 4_000)
    assert isinstance(description, Description)
    assert len(description.changelog) == 4_000


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


def test_root_signed_by_a_stranger_as_well_is_refused(publisher: Publisher) -> None:
    """Nodes would refuse it: a signature that counts for nothing could have been added by anybody."""
    with pytest.raises(ReleaseInvalid, match="is no key of root"), publisher.changing() as repository:
        repository.sign_root([*publisher.root_signers[:2], publisher.signers["models"]])
