"""The section of the history: which readings are kept, for how long, and how much space they take."""

from typing import Annotated, ClassVar

from msgspec import Meta

from meshnode.config.kinds import Expression
from meshnode.config.sections import PartSection
from protocols.base import limits


class HistorySection(PartSection, frozen=True, kw_only=True):
    """Which readings the node keeps on its disk for a while, so that they can be asked for. Without this table it keeps
    none."""

    table: ClassVar[str] = "history"

    keys: Annotated[
        tuple[Expression, ...],
        Meta(
            min_length=1,
            max_length=32,
            description="Key expressions of the readings, those of this node and of neighbours: `['**']` for all.",
        ),
    ]
    keep_s: Annotated[
        int, Meta(ge=60, le=30 * 86_400, description="A reading goes this long after it came, or up to 1/16 earlier.")
    ] = 6 * 3_600
    max_mib: Annotated[
        int, Meta(ge=16, le=1_024, description="The most space on the disk; the oldest readings give way to new ones.")
    ] = 256
    min_interval_ms: Annotated[
        int, Meta(ge=0, le=86_400_000, description="At most one reading of a key in this time; 0: every reading.")
    ] = 0

    @property
    def max_bytes(self) -> int:
        """``max_mib`` in bytes."""
        return self.max_mib * 1024 * 1024

    @property
    def keep_ns(self) -> int:
        """``keep_s`` in nanoseconds."""
        return self.keep_s * limits.SECOND

    @property
    def min_interval_ns(self) -> int:
        """``min_interval_ms`` in nanoseconds."""
        return self.min_interval_ms * limits.MS
