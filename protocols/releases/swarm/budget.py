"""The bytes of an hour that a node may fetch, of neighbours and of the relay."""

from protocols.base import limits
from protocols.base.allowance import Allowance


class HourlyBudget:
    """So many bytes in an hour, of which a tenth may be used at once."""

    def __init__(self, bytes_per_hour: int) -> None:
        """0: as many as one likes."""
        self._allowance = (
            Allowance(max(bytes_per_hour // 3_600, 1), max(bytes_per_hour // 10, limits.MAX_CHUNK_BYTES), 0)
            if bytes_per_hour else None
        )  # fmt: skip

    def is_left(self, now: int) -> bool:
        """Whether anything may be asked for."""
        return self._allowance is None or self._allowance.left(now) >= 1

    def charge(self, size_bytes: int) -> None:
        """Take what was asked for."""
        if self._allowance is not None:
            self._allowance.fine(size_bytes)
