"""What a rule publishes: the key and the context of derived readings."""

import re
from dataclasses import dataclass
from typing import Final

from protocols.base.errors import BoundExceeded, LocalProtocolError
from protocols.base.ids import NodeId
from protocols.base.keys import checked_key
from protocols.base.limits import MAX_LIFESPAN_MS, MAX_TEXT_CHARS
from protocols.records.rules import MAX_RECORD_LIFESPAN_MS

_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_PLACES: Final = frozenset({"node", "partition"})
_NOT_IN_KEYS: Final = re.compile(r"[^A-Za-z0-9_.:/-]")


@dataclass(frozen=True, slots=True)
class Output:
    """How a rule publishes what it derives.

    :raises InvalidKey: when ``key`` can't become one.
    :raises LocalProtocolError: when another field is out of range.
    """

    key: str
    """The key of derived readings. ``{node}`` stands for this node, ``{partition}`` for the partition."""
    unit: str
    priority: int = 3
    lifespan_ms: int = 0
    record_lifespan_ms: int | None = 86_400_000
    """They become records, which expire when they are not delivered this long after (0: never); None: no records."""

    def __post_init__(self) -> None:
        for place in _PLACE.findall(self.key):
            if place not in _PLACES:
                raise LocalProtocolError(
                    f"key {self.key!r}: {{{place}}} stands for nothing: use {{node}} or {{partition}}"
                )
        checked_key(self.filled(NodeId("n"), "p"))
        if len(self.unit) > MAX_TEXT_CHARS:
            raise BoundExceeded(
                f"unit {self.unit[:80]!r} has {len(self.unit)} characters: use at most {MAX_TEXT_CHARS}"
            )
        if not 0 <= self.priority <= 7:
            raise LocalProtocolError(f"priority is {self.priority}: use 0 to 7")
        if not 0 <= self.lifespan_ms <= MAX_LIFESPAN_MS:
            raise BoundExceeded(f"lifespan_ms is {self.lifespan_ms}: use 0 to {MAX_LIFESPAN_MS}")
        if self.record_lifespan_ms is not None and not 0 <= self.record_lifespan_ms <= MAX_RECORD_LIFESPAN_MS:
            raise BoundExceeded(f"record_lifespan_ms is {self.record_lifespan_ms}: use 0 to {MAX_RECORD_LIFESPAN_MS}")

    def filled(self, node: NodeId, partition: str) -> str:
        """The key for a partition. What may not stand in a key becomes ``_``."""
        chunks = [chunk for chunk in _NOT_IN_KEYS.sub("_", partition).split("/") if chunk]
        return self.key.replace("{node}", node).replace("{partition}", "/".join(chunks) or "_")
