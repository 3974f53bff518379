"""The contract of sensor drivers.

A driver is a class with ``from_options`` and ``samples``. The node calls ``samples`` once, on a thread of its own, and
takes one sample after the other: it waits until ``Sample.due_s`` and then publishes. So

- a *replay* knows its samples beforehand and never waits itself;
- a *live* driver blocks in its generator until it has measured, by :meth:`DriverContext.wait` or by a call that
  returns soon after :attr:`DriverContext.stopping` is set, and gives :meth:`DriverContext.elapsed_s` as due time.

The sensor ends with its generator; a node that stops earlier closes it. One bad row, frame or vehicle is left out and
reported by :meth:`DriverContext.skipped`. A driver that raises anything has failed: the node tells why, builds it again
after a while, and calls ``samples`` of the new one. Nothing else is disturbed.

A driver of a device also has ``check() -> str``, see :class:`CheckedDriver`: ``meshnode doctor`` calls it.

Another package offers a driver by an entry point of the group ``meshnode.sensors`` whose name is the driver's.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from protocols.base.errors import MeshError, SourceUnavailable
from protocols.base.ids import NodeId, Role
from protocols.base.limits import MS
from protocols.wire.readings import EventTime, Position
from protocols.wire.tensors import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

CHECK_S: Final = 5.0
"""A device that has given nothing for this long is told as silent."""
_TOLD_AT_ONCE: Final = 5
"""Reasons for skipping that are logged at once. A file may have a million bad rows, and come round in a loop."""
_TOLD_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class InferenceSample:
    """A request to compute a model on a sample."""

    model: str
    inputs: "Mapping[str, Tensor | NDArray[Any]] | Callable[[], Mapping[str, Tensor | NDArray[Any]]]"
    """What the model is given, or what makes it. The latter is called, on another thread, only if it is computed."""
    outputs: tuple[str, ...] = ()
    """The names of the outputs that are wanted. None named: all of them."""
    budget_ms: int = 1_000
    key: str | None = None
    """The key under which the result is published. None: the node only counts it."""
    interpret: "Callable[[Mapping[str, NDArray[Any]]], Any] | None" = None
    """Turns outputs into the value of the result's reading. None: the outputs travel as tensors."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value that a sensor gave."""

    due_s: float
    """When it is published, in seconds after the driver started. It never decreases from one sample to the next."""
    key: str
    value: Any
    """Anything that a reading can carry (``protocols.wire.readings.Reading.value``), or a NumPy array."""
    unit: str = "1"
    """The unit's UCUM symbol; ``1`` for values without a unit."""
    sensor: str = ""
    where: Position | None = None
    """The position of the value. It becomes that of the node. None: that of the node."""
    quality: float = 1.0
    priority: int = 3
    """0 to 7; 7 is the most urgent."""
    lifespan_ms: int = 0
    """The value is worthless after this time; 0: never."""
    hazard: bool = False
    """Whether somebody may have to brake for it."""
    infer: InferenceSample | None = None
    """One inference of a sensor is computed at a time. When the model is free again, it is given the newest sample
    that came meanwhile; those in between are counted as ``sensor_inferences_skipped``."""
    when: EventTime | None = None
    """When it was sensed, if that is known better than by the node's clock at ``due_s``, or was earlier."""
    clock_uncertainty_ns: int | None = None
    """How far the node's clock may be off, as this sensor has measured it. It becomes that of the node."""


@dataclass(slots=True)
class DriverContext:
    """What a driver knows about its node. Each sensor has one of its own, and only :meth:`begin` changes it."""

    node_id: NodeId
    folder: Path
    """The folder of the configuration file. Relative paths in options start here."""
    random: Random
    """The only source of randomness that a driver may use."""
    role: Role = Role.VEHICLE
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the node stops."""
    started_s: float = field(default_factory=time.monotonic)
    """An instant of ``time.monotonic``."""
    sensor: str = ""
    """The sensor's name in the configuration."""
    logs_skipped: bool = True
    """Whether :meth:`skipped` writes to the log."""
    clock_uncertainty_ns: int = 10 * MS
    """What the configuration says of the node's clock."""
    uncertainty_now_ns: Callable[[], int] = lambda: 10 * MS
    """How far the node's clock may be off now, as its sensors have measured it: for times that are of that clock."""
    trouble: Callable[[str], None] = lambda _: None
    """Say why a source gives nothing now, while its driver goes on trying; an empty text: it works again."""
    samples_skipped: int = 0
    """What :meth:`skipped` was told of. The node's statistics sum it as ``sensor_samples_skipped``."""
    last_skipped: str = ""
    """Why the newest of them was left out."""
    _told: list[str] = field(default_factory=list)
    _told_s: float = 0.0

    def begin(self) -> None:
        """Let due times count from now. The node calls this before it takes the first sample."""
        self.started_s = time.monotonic()

    @property
    def prefix(self) -> str:
        """The first chunks of this node's keys: ``veh/<id>`` for a vehicle, ``rsu/<id>`` for a roadside unit."""
        return f"{'veh' if self.role is Role.VEHICLE else self.role.value}/{self.node_id}"

    def elapsed_s(self) -> float:
        """Seconds since the driver started."""
        return time.monotonic() - self.started_s

    def wait(self, until_s: float) -> bool:
        """Sleep until ``until_s`` seconds after the start. False: the node stops, so end the generator."""
        return not self.stopping.wait(max(0.0, until_s - self.elapsed_s()))

    def skipped(self, why: str, count: int = 1) -> None:
        """Report that ``count`` samples are left out: ``why`` names the file, the place in it, the value and the fault.

        Each is counted. The first five reasons that differ are logged at once, then one a minute.
        """
        self.samples_skipped += count
        self.last_skipped = why
        now_s = time.monotonic()
        is_news = len(self._told) < _TOLD_AT_ONCE and why not in self._told
        if self.logs_skipped and (is_news or now_s - self._told_s >= _TOLD_EVERY_S):
            self._told_s = now_s
            if is_news:
                self._told.append(why)
            _log.warning("sensor %s: %d samples skipped, the last: %s", self.sensor, self.samples_skipped, why)


def checked(driver: "SensorDriver") -> str:
    """What ``check`` of a driver says of its source; empty if it has none, or has nothing to say.

    :raises SourceUnavailable: the source can't be used now.
    """
    check = getattr(driver, "check", None)
    if check is None:
        return ""
    try:
        return str(check())
    except MeshError:
        raise
    except Exception as error:  # a foreign driver may raise anything, such as the error of a device
        raise SourceUnavailable(f"it could not be looked at: {error!r}") from error


class CheckedDriver(Protocol):
    """A driver whose source can be looked at without a node."""

    def check(self) -> str:
        """Open the source, look at it for ``CHECK_S`` at most, close it, and say in half a line what is there
        (``gpsd 3.22, 3D fix, accuracy 2.1 m``). Called on a driver whose ``samples`` is not called.

        :raises SourceUnavailable: it is absent, busy, not permitted, or gives nothing; names it and the way out.
        """


class SensorDriver(Protocol):
    """A source of samples."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any], context: DriverContext) -> Self:
        """Build it from the options in the node's configuration, without opening anything yet.

        :raises ConfigError: an option is unknown, missing or wrong; the message says which, and what to do. It keeps
            the node from starting.
        :raises SourceUnavailable: what an option names can't be used now, such as a file or a device. The node tries
            again. Every other error counts as this one.
        """

    def samples(self) -> Generator[Sample, None, None]:
        """The samples in order of ``due_s``. It is called once, and closing the generator closes everything it opened.

        :raises ConfigError: while iterating, when the data turn out to be malformed; names file and line.
        """
