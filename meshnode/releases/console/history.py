"""What happened to releases at nodes, out of their audit logs, and how that looks as lines of text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from meshnode.console.printing import printable
from meshnode.releases.audit import AUDIT_FILE, audit_lines
from protocols.base.errors import StorageError

ENDS: Final = ("failed", "rolled_back", "refused")
"""States of a release that is not gone on with."""
DROPPED: Final = "dropped"
"""The node keeps its files no longer."""
SERVED: Final = ("soaking", "healthy", "serving")
"""States in which a release answers requests."""


@dataclass(frozen=True, slots=True)
class ReleaseStep:
    """One change of a release at a node, or of what the node concludes about an order."""

    node: str
    utc_s: float
    """By the clock of the node. Where that was set back, the time of the step before."""
    path: str
    counter: int
    kind: Literal["release", "rollout", "swap"]
    """``swap``: from now on, this release answers requests; 0: the file that the configuration names."""
    state: str
    detail: str = ""
    serial: int = 0
    """Of the order; 0: it is about a release."""

    def __str__(self) -> str:
        at = datetime.fromtimestamp(self.utc_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
        release = f"{self.path} {self.counter}" if self.counter else f"{self.path}, own file"
        about = f"order {self.serial} for {release}" if self.serial else release
        state = "answers requests" if self.kind == "swap" else self.state
        why = f": {printable(self.detail, 200)}" if self.detail else ""
        return f"{at}  {printable(self.node, 40)}  {printable(about, 200)} {printable(state)}{why}"


@dataclass(frozen=True, slots=True)
class ReleaseHistory:
    """The steps of one node, in the order in which they happened."""

    node: str
    steps: tuple[ReleaseStep, ...]
    unread: int
    """Lines of the log that are none: they were cut off, or changed."""


def read_history(node: str, log: Path) -> ReleaseHistory:
    """Read the audit log of a node, and the older part beside it.

    :raises StorageError: it can't be read, or has no line of such a log.
    """
    steps: list[ReleaseStep] = []
    unread, is_log = 0, False
    try:
        for line in audit_lines(log):
            try:
                told = json.loads(line)
                step = _step(node, told, steps[-1].utc_s if steps else 0.0)
                is_log = True
            except (ValueError, KeyError, TypeError):
                unread += 1
                continue
            steps += [step] if step is not None else []
    except OSError as error:
        raise StorageError(f"{log} can't be read ({error.strerror}): see who owns it") from error
    if unread and not is_log:
        raise StorageError(f"{log} is no audit log of releases: it is {AUDIT_FILE} in the folder 'releases' of a node")
    return ReleaseHistory(node, tuple(steps), unread)


def _step(node: str, told: dict[str, object], before_s: float) -> ReleaseStep | None:
    """One line of the log; None: it is about something else."""
    what, utc_s = told["what"], max(float(str(told["utc_s"])), before_s)
    if what == "served" and not told["why"]:
        return ReleaseStep(node, utc_s, str(told["path"]), int(str(told["counter"])), "swap", "serving")
    if what == DROPPED:
        return ReleaseStep(node, utc_s, str(told["path"]), int(str(told["counter"])), "release", DROPPED)
    if what not in ("ReleaseState", "RolloutState"):
        return None
    return ReleaseStep(
        node, utc_s, str(told["path"]), int(str(told["counter"])), "rollout" if what == "RolloutState" else "release",
        str(told["state"]), str(told["detail"]), int(str(told.get("serial", 0))),
    )  # fmt: skip


def about(histories: Iterable[ReleaseHistory], model: str) -> list[ReleaseHistory]:
    """The part that is about one model, by its name or path; all of it when ``model`` is empty."""
    path = model if "/" in model or not model else f"models/{model}"
    return [
        ReleaseHistory(each.node, tuple(step for step in each.steps if path in ("", step.path)), each.unread)
        for each in histories
    ]


def together(histories: Sequence[ReleaseHistory]) -> Iterator[ReleaseStep]:
    """The steps of all nodes by time; those of one node stay in their order."""
    yield from sorted((step for each in histories for step in each.steps), key=lambda step: step.utc_s)
