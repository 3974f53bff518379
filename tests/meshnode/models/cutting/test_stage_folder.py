"""The folder of stages: what is kept and checked, what goes when there is too much, and what failures are told."""

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.models import ModelSpec, plate
from meshnode.models.cutting import StageFolder
from meshnode.models.cutting.stages import stage_digest
from protocols.base.errors import ModelInvalid, StorageError
from protocols.base.ids import ModelDigest
from tests.tools import onnx_graphs
from tests.tools.onnx_graphs import write_external, write_text

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(name="spec")
def given_spec(tmp_path: Path) -> ModelSpec:
    return ModelSpec("m", write_text(tmp_path / "m.onnx", onnx_graphs.CHAIN))


@pytest.fixture(name="large")
def given_large(tmp_path: Path) -> ModelSpec:
    """Its file and its first stage are larger than a megabyte."""
    return ModelSpec("plate", plate.find_detector(), warm_up={"image": (1, 3, 64, 64)})


def names(folder: Path, ending: str) -> set[str]:
    return {path.name for path in folder.glob(f"*{ending}")}


# --- kept and checked ------------------------------------------------------------------------------------------------
def test_folder_gives_a_stage_from_disk_until_its_file_changes(spec: ModelSpec, tmp_path: Path) -> None:
    """Making a stage takes a second of a process. A damaged file must never be run."""
    place = tmp_path / "stages"
    made = StageFolder(place).stage(spec, 0, 1)
    inode = Path(made.path).stat().st_ino
    folder = StageFolder(place)
    assert folder.stage(spec, 0, 1) == made
    assert folder.find(made.digest) == Path(made.path)
    assert Path(made.path).stat().st_ino == inode
    content = bytearray(Path(made.path).read_bytes())
    content[-1] ^= 1
    Path(made.path).write_bytes(content)
    assert folder.find(made.digest) is None
    assert not Path(made.path).exists()
    assert folder.stage(spec, 0, 1) == made
    assert folder.find(made.digest) == Path(made.path)


def test_fetched_file_is_kept_only_with_its_digest(tmp_path: Path) -> None:
    """A neighbour may give half a gigabyte: it is moved and not copied, and hashed without being in memory."""
    folder, content = StageFolder(tmp_path / "stages", max_bytes=1_000), b"a stage"
    digest = stage_digest(content)
    (tmp_path / "stages").mkdir()
    for wrong in (b"another", b""):
        fetched = tmp_path / f"{digest}.onnx"
        fetched.write_bytes(wrong)
        with pytest.raises(ModelInvalid, match="fetch it again"):
            folder.add_file(fetched, digest)
        assert folder.find(digest) is None
    fetched.write_bytes(content)
    assert folder.add_file(fetched, digest) == folder.find(digest) == tmp_path / "stages" / f"{digest}.onnx"
    assert not fetched.exists()
    with pytest.raises(StorageError, match="fetch it again"):
        folder.add_file(fetched, digest)
    fetched.write_bytes(bytes(1_001))
    with pytest.raises(StorageError, match="don't fit"):
        folder.add_file(fetched, stage_digest(bytes(1_001)))


def test_damaged_descriptions_and_graphs_are_made_again(spec: ModelSpec, tmp_path: Path) -> None:
    """A power cut in the wrong second must not cost anybody an evening."""
    place = tmp_path / "stages"
    folder = StageFolder(place)
    known = folder.describe(spec)
    (described,) = place.glob("*.json")
    graph_digest = json.loads(described.read_text())["graph_digest"]
    described.write_text("{")
    assert folder.describe(spec).cuts[0].tensors == known.cuts[0].tensors
    (place / f"{graph_digest}.onnx").write_bytes(b"")
    assert folder.describe(spec).cuts[0].tensors == known.cuts[0].tensors
    assert folder.stage(spec, None, 0).outputs[0].name == "a"


def test_description_is_read_from_disk_without_a_process(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that starts again must not cut all of its models again."""
    folder = StageFolder(tmp_path / "stages")
    known, made = folder.describe(spec), folder.stages(spec, [1])
    monkeypatch.setattr(subprocess, "Popen", None)
    assert StageFolder(tmp_path / "stages").describe(spec) == known
    assert StageFolder(tmp_path / "stages").stages(spec, [1]) == made


def test_what_is_on_disk_may_be_read_by_its_owner_alone(spec: ModelSpec, tmp_path: Path) -> None:
    """A model may be worth money, and a stage is a part of it."""
    place = tmp_path / "stages"
    before = os.umask(0)
    try:
        StageFolder(place).stages(spec, [0])
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}
    assert names(place, "") == names(place, ".json") | names(place, ".onnx")


def test_stage_of_another_node_is_kept_when_its_digest_is_right(tmp_path: Path) -> None:
    """A stage comes from a neighbour: its bytes decide, not its name."""
    folder, content = StageFolder(tmp_path / "stages"), b"a stage"
    digest = stage_digest(content)
    assert folder.find(digest) is None
    path = folder.add(content, digest)
    assert (path.read_bytes(), folder.find(digest)) == (content, path)
    with pytest.raises(ModelInvalid, match="a stage has the digest"):
        folder.add(b"another", digest)
    with pytest.raises(ModelInvalid, match="the manifest of a stage"):
        folder.add(content, digest, "[preprocessing")
    with pytest.raises(ModelInvalid, match="unheard = 1: is not a key of this table"):
        folder.add(content, digest, "unheard = 1")


# --- bounded ---------------------------------------------------------------------------------------------------------
def test_folder_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    """Stages of all models that ever were would fill the disk of a vehicle."""
    folder = StageFolder(tmp_path / "stages", max_bytes=3_000)
    digests = [ModelDigest(stage_digest(bytes([at]) * 1_000)) for at in range(4)]
    paths = [folder.add(bytes([at]) * 1_000, digest) for at, digest in enumerate(digests[:3])]
    for at, path in enumerate(paths):
        os.utime(path, (at, at))
    assert folder.find(digests[0]) == paths[0]
    folder.add(bytes([3]) * 1_000, digests[3])
    assert [folder.find(digest) is not None for digest in digests] == [True, False, True, True]


def test_folder_leaves_files_of_others_alone(tmp_path: Path) -> None:
    """Somebody may name the wrong folder."""
    place = tmp_path / "stages"
    place.mkdir()
    (place / "letters.json").write_bytes(b"x" * 5_000)
    os.utime(place / "letters.json", (1, 1))
    folder = StageFolder(place, max_bytes=3_000)
    for at in range(4):
        folder.add(bytes([at]) * 1_000, stage_digest(bytes([at]) * 1_000))
    assert (place / "letters.json").exists()
    assert len(names(place, ".onnx")) == 3


def test_stage_that_is_larger_than_the_folder_is_refused(large: ModelSpec, tmp_path: Path) -> None:
    """It would push out all others, and then itself."""
    folder = StageFolder(tmp_path / "stages", max_bytes=1_000_000)
    with pytest.raises(StorageError, match=r"don't fit into .*, which may hold 1000000: allow it more"):
        folder.add(bytes(1_000_001), stage_digest(bytes(1_000_001)))
    with pytest.raises(StorageError, match="don't fit into"):
        folder.describe(large)
    assert list((tmp_path / "stages").iterdir()) == []


# --- failures --------------------------------------------------------------------------------------------------------
@pytest.fixture(name="disk")
def given_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_told_and_leaves_nothing_behind(large: ModelSpec, disk: Path) -> None:
    """The node goes on without a pipeline, and with room again it gets one."""
    folder, other = StageFolder(disk / "stages"), disk / "other"
    other.write_bytes(bytes(5_000_000))
    with pytest.raises(StorageError, match=r"stages of model 'plate' can't be written: .*No space left on device"):
        folder.describe(large)
    with pytest.raises(StorageError, match=r"No space left on device.*: make room, or choose another folder"):
        folder.add(bytes(1_500_000), stage_digest(bytes(1_500_000)))
    assert list((disk / "stages").iterdir()) == []
    other.unlink()
    assert len(folder.describe(large).cuts) == 67
    other.write_bytes(bytes(3_500_000))
    with pytest.raises(StorageError, match="No space left on device"):
        folder.stage(large, 1, None)
    assert names(disk / "stages", ".onnx") == {f"{json_of(disk)['graph_digest']}.onnx"}


def json_of(disk: Path) -> dict[str, str]:
    (described,) = (disk / "stages").glob("*.json")
    return json.loads(described.read_text())


def test_folder_that_can_not_be_made_is_told(spec: ModelSpec, tmp_path: Path) -> None:
    """A path with a typing error ends in a file, say."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"a folder can't be written in .*file/stages"):
        StageFolder(tmp_path / "file" / "stages").describe(spec)


def test_child_that_takes_too_long_is_ended(spec: ModelSpec, tmp_path: Path) -> None:
    """A model that is loaded for an hour must not hold up whoever wants to plan."""
    folder = StageFolder(tmp_path / "stages", limit_s=0.05)
    began_s = time.monotonic()
    with pytest.raises(ModelInvalid, match=r"model 'm' was not cut within 0\.05 s: allow more time, or run it whole"):
        folder.describe(spec)
    assert time.monotonic() - began_s < 60
    assert list((tmp_path / "stages").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="it reads the processes of Linux")
def test_child_that_crashes_hurts_nothing_else(large: ModelSpec, tmp_path: Path) -> None:
    """A model file may make a library crash; the node that looks at it goes on."""
    failed: list[Exception] = []

    def describe(place: Path) -> None:
        try:
            StageFolder(place).describe(large)
        except ModelInvalid as error:
            failed.append(error)

    for attempt in range(4):  # a stall of this process may last until the child has ended
        thread = threading.Thread(target=describe, args=(tmp_path / f"stages-{attempt}",))
        thread.start()
        while thread.is_alive() and not (children := _children(os.getpid())):
            time.sleep(0.01)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, 11)
        thread.join()
        if failed:
            break
    assert "can't be cut: the process that tried crashed (SIGSEGV)" in str(failed[0])


def _children(parent: int) -> list[int]:
    """The processes of ours that cut a model."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            for child in (task / "children").read_text().split():
                if b"meshnode.models.cutting.inside" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))  # noqa: PERF401 - one that has ended leaves those before it
    return found


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    """They are an extra, because a node that never cuts needs neither of them."""
    write_external(tmp_path / "m.onnx", "m.weights")
    program = (
        "import importlib.util as u; found = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'onnx_ir' else found(name, *more)\n"
        "from pathlib import Path; from meshnode.models import ModelSpec\n"
        "from meshnode.models.cutting import StageFolder\n"
        f"StageFolder(Path({str(tmp_path / 'stages')!r})).describe(ModelSpec('m', Path({str(tmp_path / 'm.onnx')!r})))"
    )  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "install them with: pip install 'meshnode[split]'" in ran.stderr


def test_cutting_imports_nothing_heavy_into_the_process_that_asks(spec: ModelSpec, tmp_path: Path) -> None:
    """An idle node stays small; ONNX Runtime alone takes 26 MB, and what it took it keeps."""
    program = (
        "import sys; from pathlib import Path; from meshnode.models import ModelSpec\n"
        "from meshnode.models.cutting import StageFolder\n"
        f"StageFolder(Path({str(tmp_path / 'stages')!r})).stages(ModelSpec('m', Path({str(spec.path)!r})), [0])\n"
        "print(*({'numpy', 'onnxruntime', 'onnx', 'onnx_ir', 'sympy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_what_a_killed_process_left_is_cleaned_up(spec: ModelSpec, tmp_path: Path) -> None:
    """Otherwise each loss of power would leave a copy of a model for good."""
    place = tmp_path / "stages"
    for name, age_s in (("work-old", 2 * 86_400), ("work-new", 60)):
        (place / name).mkdir(parents=True)
        (place / name / "graph.onnx").write_bytes(b"x")
        os.utime(place / name, (time.time() - age_s, time.time() - age_s))
    StageFolder(place).describe(spec)
    assert not (place / "work-old").exists()
    assert (place / "work-new").exists()
