"""The UTC clock of a trial's process, which can be made wrong and made to drift.

``time.time`` and ``time.time_ns`` are replaced in the whole process, before anything of the node is imported: default
arguments hold on to what they find then. The monotonic clock stays as it is. All that the node does by the wall clock
follows: instants of readings, incarnations, the validity of authors' certificates, ages of what was stored.

Left out: what does not ask Python's ``time``, above all OpenSSL, which judges certificates in a handshake by the clock
of the host.
"""

import time
from typing import Final

_BILLION: Final = 1_000_000_000
_true_ns = time.time_ns


class WallClock:
    """The clock of this process, made once. It is right until it is told otherwise."""

    def __init__(self) -> None:
        self._offset_ns = 0
        self._drift_ppb = 0
        self._since_ns = 0

    def install(self) -> None:
        """Make the process use this clock from now on."""
        time.time_ns = self.now_ns
        time.time = lambda: self.now_ns() / _BILLION

    def set(self, offset_ns: int, drift_ppb: int, since_ns: int) -> None:
        """Make it wrong by ``offset_ns`` at the monotonic instant ``since_ns``, and by ``drift_ppb`` nanoseconds more
        for each second since then."""
        self._offset_ns, self._drift_ppb, self._since_ns = offset_ns, drift_ppb, since_ns

    def now_ns(self) -> int:
        """The time that it shows, in nanoseconds since 1970."""
        now_ns = _true_ns() + self._offset_ns
        if self._drift_ppb:
            now_ns += (time.monotonic_ns() - self._since_ns) * self._drift_ppb // _BILLION
        return now_ns
