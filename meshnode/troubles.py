"""What does not work in a running node, by part: for ``readyz``, the doctor, the metrics and the log.

One part that fails does not end the node: it reports its trouble here, goes on trying where that makes sense, and ends
the trouble once it works. A trouble is *essential* when the node can't take part in the mesh because of it; then
``readyz`` answers 503. Every other one leaves the node ready, and is named.

Invariant: at most ``MAX_TROUBLES`` are kept; further ones are logged and counted.
"""

import logging
import threading
import time
from typing import Final

from msgspec import Struct

_log = logging.getLogger(__name__)
MAX_TROUBLES: Final = 128
"""A node has some dozens of models, sensors, interfaces and files; each has one trouble at most."""
MAX_WHY_CHARACTERS: Final = 500


class Trouble(Struct, frozen=True):
    """One thing that does not work."""

    part: str
    """The word that the doctor prints first: ``model``, ``sensor``, ``outbox``, ``inbox``, ``clock``, …"""
    name: str
    """Which one, such as the name of the model; empty when there is only one."""
    why: str
    """What happened, with which value, and what to do."""
    essential: bool
    """Whether the node can't take part in the mesh because of it."""
    since_ns: int
    """When it began, in nanoseconds of the monotonic clock: the other clock may be what does not work."""


class Troubles:
    """The troubles of one node. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: dict[tuple[str, str], Trouble] = {}
        self.reported = 0
        """How many troubles have begun so far."""
        self.unlisted = 0
        """How many of them were only logged, because the list was full."""

    def begin(self, part: str, name: str, why: str, *, essential: bool = False) -> None:
        """Something does not work. Reporting it again replaces the reason, and logs it only if it is another one."""
        why = why[:MAX_WHY_CHARACTERS]
        with self._lock:
            known = self._current.get((part, name))
            if known is None:
                self.reported += 1
                if len(self._current) >= MAX_TROUBLES:
                    self.unlisted += 1
                else:
                    self._current[part, name] = Trouble(part, name, why, essential, time.monotonic_ns())
            else:
                self._current[part, name] = Trouble(part, name, why, essential, known.since_ns)
        if known is None or known.why != why:
            _log.error("%s does not work: %s", f"{part} {name}".strip(), why)

    def end(self, part: str, name: str = "") -> None:
        """It works, or is no longer wanted. Nothing happens when it had no trouble."""
        with self._lock:
            known = self._current.pop((part, name), None)
        if known is not None:
            _log.info("%s works again", f"{part} {name}".strip())

    def current(self) -> list[Trouble]:
        """All that does not work now, the essential first, each kind in the order in which they began."""
        with self._lock:
            return sorted(self._current.values(), key=lambda trouble: not trouble.essential)
