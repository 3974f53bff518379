"""The node of a trial: a real one, whose models may take given times, and which can be told to misbehave.

A *timed model* answers after the time that its plan gives, with the first 32 bytes of its input over and over, so that
the caller can tell whether the answer belongs to its request. It stands for a model that would take another time on
this computer; queue, budgets, offers and wire are those of any model.

Commands (see ``meshnode.trial.control``) make it misbehave as the faults of an emulation demand. Neighbours can't give
them, and no other command than ``meshnode trial --hold`` takes them.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from meshnode.config.sections import NodeConfig
from meshnode.driver import Driver
from meshnode.inference.compute import ComputeService
from meshnode.inference.part import INFERENCE
from meshnode.inference.running import RunningInference
from meshnode.inference.section import InferenceSection, ModelSection, ModelsSection
from meshnode.links.transport import Address
from meshnode.loading import parts_of
from meshnode.models import Cancellation, LoadedModel, ModelSpec, TensorSignature
from meshnode.opening import ConfiguredNode
from meshnode.running import Host
from meshnode.troubles import Troubles
from protocols.base import limits
from protocols.base.errors import InferenceError
from protocols.base.ids import ModelDigest
from protocols.gossip.entries import Stored
from protocols.inference.placement import LocalModel
from protocols.wire.inference import InferAnswer

if TYPE_CHECKING:
    from numpy.typing import NDArray

ECHOED_BYTES: Final = 32
"""The bytes of its input that a timed model answers with; callers make them unique to the request."""
MAX_TIMED_BYTES: Final = 8_000_000
INPUT, OUTPUT = "x", "y"


class TrialModel(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that this node computes, for itself and for neighbours, in a given time."""

    name: Annotated[str, Meta(min_length=1, max_length=limits.MAX_TEXT_CHARS)]
    compute_ms: Annotated[float, Meta(gt=0, le=600_000)]
    output_bytes: Annotated[int, Meta(ge=1, le=MAX_TIMED_BYTES)] = 1_000


def echoed(data: bytes, size_bytes: int) -> bytes:
    """What a timed model computes from its input."""
    seed = data[:ECHOED_BYTES] or b"\0"
    return (seed * (size_bytes // len(seed) + 1))[:size_bytes]


class Condition:
    """What a trial's node has been told."""

    def __init__(self) -> None:
        self.slowed = 1.0
        """How many times as long timed models take."""
        self.stalled_share = 0.0
        """The share of the runs of timed models, at random, that take ``stalled_factor`` times as long."""
        self.stalled_factor = 10.0
        self.random = Random()
        self.understated = 1.0
        """How many times faster than they are it says timed models are; above 1 it also says that nothing waits."""


class _TimedModel(LoadedModel):
    """A model that takes a given time. Neighbours hold models of the same name and size of answer for the same file,
    because they compute the same."""

    def __init__(self, model: TrialModel, condition: Condition) -> None:
        self.compute_s = model.compute_ms / 1_000
        self._output_bytes, self._condition = model.output_bytes, condition
        digest = ModelDigest(hashlib.sha256(f"{model.name} {model.output_bytes}".encode()).hexdigest())
        takes, gives = TensorSignature(INPUT, "u1", (None,)), TensorSignature(OUTPUT, "u1", (None,))
        super().__init__(ModelSpec(model.name, Path()), digest, None, (takes,), (gives,))

    @property
    def run_ns(self) -> int:
        """How long one run takes now."""
        return int(self.compute_s * self._condition.slowed * limits.SECOND)

    def _compute(self, feeds: "dict[str, Any]", wanted: tuple[str, ...], cancel: Cancellation) -> list[Any]:
        import numpy as np

        condition = self._condition
        stalled = condition.random.random() < condition.stalled_share
        if cancel.wait(self.run_ns / limits.SECOND * (condition.stalled_factor if stalled else 1.0)):
            raise InferenceError(f"the run of model {self.name!r} was cancelled")
        given: NDArray[Any] = feeds[INPUT]
        answer = np.frombuffer(echoed(given[:ECHOED_BYTES].tobytes(), self._output_bytes), dtype=np.uint8)
        return [answer for _ in wanted]


class TrialCompute(ComputeService):
    """Runs timed models beside those of the configuration, and can lie about all of them."""

    def __init__(
        self, models: Mapping[str, ModelSection], how: InferenceSection, computed: Callable[[int, InferAnswer], None],
        changed: Callable[[tuple[LocalModel, ...]], None], troubles: Troubles, timed: Sequence[TrialModel],
        condition: Condition,
    ) -> None:  # fmt: skip
        super().__init__(models, how, computed, changed, troubles)
        self._timed = {model.name: _TimedModel(model, condition) for model in timed}
        self._condition = condition

    def load_models(self) -> None:
        """See :class:`ComputeService`. Timed models need not be measured."""
        super().load_models()
        self.models = {**self.models, **self._timed}

    def _local_models(self) -> tuple[LocalModel, ...]:
        return tuple(self._as_told(model) for model in super()._local_models())

    def _as_told(self, model: LocalModel) -> LocalModel:
        factor, timed = self._condition.understated, self._timed.get(model.name)
        compute_ns = model.compute_ns or (timed.run_ns if timed is not None else 0)
        if factor <= 1:
            return replace(model, compute_ns=compute_ns)
        return replace(model, compute_ns=int(compute_ns / factor), queue_ns=0, own_queue_ns=0)


class _TrialDriver(Driver):
    """A driver that can send frames of which the engine knows nothing."""

    def send_raw(self, frame: bytes) -> int:
        """Put a frame on one open lane to each neighbour; returns how many took it."""
        told: dict[Address, None] = {}
        for link in self._outbound.links():
            lane = link.lane
            if lane is not None and link.opened and lane.address not in told and lane.try_send(frame):
                told[lane.address] = None
        return len(told)


class TrialNode(ConfiguredNode):
    """The node of a trial. It can be told things before it opens."""

    def __init__(self, config: NodeConfig, folder: Path, timed: Sequence[TrialModel] = ()) -> None:
        timed_inference = dataclasses.replace(INFERENCE, start=partial(_TimedInference, self, timed))
        parts = tuple(timed_inference if part is INFERENCE else part for part in parts_of(config))
        super().__init__(config, folder, parts, self._make_driver)
        self.condition = Condition()
        self.compute: TrialCompute | None = None
        self._trial_driver: _TrialDriver | None = None

    def _make_driver(self, *arguments: Any) -> Driver:
        self._trial_driver = _TrialDriver(*arguments)
        return self._trial_driver

    # --- what it can be told; any thread ---------------------------------------------------------------------------
    def slow_models(self, factor: float) -> None:
        """Make timed models take so many times as long from now on; 1: as long as the plan says."""
        self.condition.slowed = factor

    def understate_load(self, factor: float) -> None:
        """Tell neighbours that models take ``1/factor`` of their time and that nothing waits; 1: the truth."""
        self.condition.understated = factor
        if self.compute is not None:
            self.compute.announce()

    def send_raw(self, frame: bytes) -> int:
        """Send a frame to all neighbours as it is; returns how many links took it."""
        return 0 if self._trial_driver is None else self._trial_driver.send_raw(frame)

    def stored_entries(self) -> list[Stored]:
        """Every gossip entry held, with its bytes."""
        return (
            [] if self._trial_driver is None else self._trial_driver.look(lambda engine, now: engine.gossip.stored(now))
        )


class _TimedInference(RunningInference):
    """Inference with timed models."""

    def __init__(self, trial: TrialNode, timed: Sequence[TrialModel], host: Host) -> None:
        self._trial, self._timed = trial, timed
        super().__init__(host)

    def _make_compute(self) -> ComputeService:
        models = self.host.config.of(ModelsSection).models
        trial = self._trial
        trial.compute = TrialCompute(
            models, self.defaults, self._computed, self._set_models, self.host.troubles, self._timed, trial.condition
        )
        return trial.compute
