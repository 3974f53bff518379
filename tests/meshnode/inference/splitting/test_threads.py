"""The threads that cut models and hold stages for neighbours: whatever goes wrong there, the engine is told."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.inference.compute import ComputeService
from meshnode.inference.section import InferenceSection, ModelSection
from meshnode.inference.splitting.host import StageHost
from meshnode.inference.splitting.owner import TROUBLE, SplitOwner
from meshnode.models import ModelSpec
from meshnode.models.cutting import StageFolder
from meshnode.troubles import Troubles
from protocols.base.errors import ModelInvalid
from protocols.base.ids import Role
from protocols.inference.split.events import FindStage, LoadStage, MakePlans, MakeStages, StageRange, StoreChunk
from protocols.inference.split.plan import Home, StageCandidate
from protocols.wire.inference import StageAsked, StageState
from tests.tools.eventually import eventually
from tests.tools.inference_fixture import ME, A, Bench
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes
CONTENT = b"no model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Threads:
    """The parts of split inference of a node, without the node: effects are handed to them one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bench = Bench(A)
        self.machine = self.bench.machine
        self.machine.neighbour_met(A, Role.RSU, 0)
        self.machine.hosting.accepts = True
        self.troubles = Troubles()
        self.model = write_model(folder / "work.onnx", [4, 4], "MatMul", repeat=3)
        how, models = InferenceSection(), {"work": ModelSection(path=self.model, split="latency")}
        self.compute = ComputeService({}, how, lambda *_: None, lambda _: None, self.troubles)
        self.stages = StageFolder(folder / "stages")
        self._lock = threading.Lock()
        self.owner = SplitOwner(models, how, self.stages, self.compute, self._act, self.troubles)
        self.host = StageHost(folder / "stages", self.stages, how, self.compute, self._act)
        self._performers: dict[type, Callable[[Any], object]] = {**self.owner.performers(), **self.host.performers()}
        self.told: list[StageState] = []

    def _act(self, do: Callable[[Any, int], object]) -> object:
        with self._lock:
            done = do(SimpleNamespace(inference=self.machine), 0)
            self.told += [frame for _, frame in self.machine.messages() if isinstance(frame, StageState)]
            return done

    def perform(self, *effects: Any) -> None:
        for effect in effects:
            self._performers[type(effect)](effect)

    def close(self) -> None:
        self.compute.close()
        self.owner.close()
        self.host.close()


@pytest.fixture(name="threads")
def given_threads(tmp_path: Path) -> Iterator[Threads]:
    threads = Threads(tmp_path)
    yield threads
    threads.close()


# --- the models of this node -----------------------------------------------------------------------------------------
def test_model_that_changed_after_it_was_cut_is_not_cut_in_the_same_places(threads: Threads) -> None:
    """Cuts of another file would give stages that compute something else, and nobody would notice."""
    threads.owner.files.load_all()
    assert threads.owner.cut == {"work"}
    write_model(threads.model, [4, 4], "Add", repeat=3)
    threads.perform(MakeStages("work", (StageRange(-1, 0), StageRange(0, 2)), ()))
    eventually(lambda: bool(threads.troubles.current()), "the trouble")
    (trouble,) = threads.troubles.current()
    assert (trouble.part, trouble.name) == (TROUBLE, "work")
    assert "has the digest" in trouble.why


def test_model_that_can_be_cut_later_is_cut_then(threads: Threads) -> None:
    """A file that is still being copied when the node starts costs nobody a restart."""
    content = threads.model.read_bytes()
    threads.model.write_bytes(content[:20])
    threads.owner.files.load_all()
    assert [trouble.part for trouble in threads.troubles.current()] == [TROUBLE]
    assert threads.owner.files.why_not("work")
    threads.model.write_bytes(content)
    threads.owner.files.load_all()
    assert not threads.troubles.current()
    assert threads.owner.cut == {"work"}
    assert threads.machine.split.describe(0)[0].cuts == 2


def test_engine_is_told_of_plans_and_stages_that_cannot_be_made(threads: Threads) -> None:
    """It waits for one answer before it asks for plans again: without one it would never split the model."""
    threads.owner.files.load_all()
    neighbour = StageCandidate(A, 1, 1, 1.0, 1.0)
    threads.machine.split.handle_timer(0)
    (effect,) = (effect for effect in threads.machine.outgoing() if isinstance(effect, MakePlans))
    split = threads.machine.split._splits["work"]
    assert split.planning
    threads.perform(MakePlans("work", effect.profile, Home(ME, 1), (neighbour, None), "latency", False))  # type: ignore[arg-type]
    eventually(lambda: not split.planning, "the answer")


def test_node_that_closes_ends_what_cuts(threads: Threads) -> None:
    """A large model is cut for minutes, and systemd kills what does not end."""
    threads.stages.close()
    started_s = time.monotonic()
    with pytest.raises(ModelInvalid, match="shutting down"):
        threads.stages.describe(ModelSpec("work", threads.model))
    assert time.monotonic() - started_s < 30


# --- the stages of neighbours ----------------------------------------------------------------------------------------
def asked(threads: Threads) -> None:
    threads.machine.receive(StageAsked(DIGEST, "plate", "1" * 64, len(CONTENT)), A, Role.RSU, 0)
    threads.perform(*threads.machine.outgoing())


def test_neighbour_is_told_that_its_stage_cannot_be_stored(threads: Threads) -> None:
    """A full disk must not look like a node that is slow, and paths of this computer are nobody else's business."""
    (threads.folder / "stages").mkdir()
    (threads.folder / "stages" / "incoming").write_text("in the way")
    asked(threads)
    threads.perform(StoreChunk(DIGEST, 0, CONTENT))
    eventually(lambda: bool(threads.told), "the refusal")
    assert [(frame.state, str(threads.folder) in frame.detail) for frame in threads.told] == [("failed", False)]


def test_neighbour_is_told_that_its_stage_is_no_model(threads: Threads) -> None:
    """The digest is right, and the bytes are none that can be loaded."""
    asked(threads)
    eventually(lambda: threads.machine.hosting.hosted[DIGEST].state == "fetching", "the look at the disk")
    threads.perform(StoreChunk(DIGEST, 0, CONTENT), LoadStage(DIGEST, "plate"))
    eventually(lambda: bool(threads.told), "the refusal")
    assert [frame.state for frame in threads.told] == ["failed"]
    assert not threads.compute.stages(hosted=True)


def test_bytes_of_a_fetch_that_was_cut_off_by_the_power_are_removed(tmp_path: Path) -> None:
    """A vehicle is switched off while it fetches, again and again: the disk must not fill."""
    incoming = tmp_path / "stages" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / DIGEST).write_bytes(bytes(1_000))
    threads = Threads(tmp_path)
    threads.close()
    assert not incoming.exists()


def test_effects_after_the_close_do_nothing(threads: Threads) -> None:
    """The engine decides until the end, and nobody is left to do it."""
    threads.close()
    threads.perform(FindStage(DIGEST, "plate", "1" * 64, 1), MakeStages("work", (), ()))
