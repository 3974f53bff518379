"""What retention keeps, whatever the store is made of: rules by age and key, and a size."""

import time
from dataclasses import dataclass
from typing import Final

from protocols.base.keys import matches
from protocols.base.limits import SECOND

BEYOND_AGE: Final = "older than their rule says"
BEYOND_SIZE: Final = "the store is larger than [store] max_mb says"
"""Why records are deleted, in logs and commands."""
MAX_RANGES_PER_ORIGIN: Final = 262_144
"""Ranges of sequences that a store may have of one node, so that no record is stored again that retention deleted: some
13 MB, which stay. An honest node adds one only where a loss lies between two deliveries. As many fates are kept."""
TOO_MANY_GAPS: Final = "too many gaps between records of this node"
"""Why a record is refused whose node has as many ranges, unless it touches one."""


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """How long records are kept whose keys an expression matches."""

    keys: str
    max_age_s: float | None
    """None: for ever."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What is kept. The first rule that matches a key decides; keys that none matches are kept for ever."""

    rules: tuple[RetentionRule, ...] = ()
    max_bytes: int | None = None
    """The size of the store beyond which the oldest records are deleted, whatever the rules say."""

    @property
    def deletes(self) -> bool:
        """Whether it deletes anything, ever."""
        return self.max_bytes is not None or bool(self.ages_ns)

    def max_age_ns(self, key: str) -> int | None:
        """How old records of a key become; None: as old as they like."""
        for rule in self.rules:
            if matches(rule.keys, key):
                return None if rule.max_age_s is None else int(rule.max_age_s * SECOND)
        return None

    @property
    def ages_ns(self) -> list[int]:
        """The ages that rules have, each once, in order."""
        return sorted({int(rule.max_age_s * SECOND) for rule in self.rules if rule.max_age_s is not None})

    @property
    def least_age_ns(self) -> int | None:
        """The age of which the youngest records are that a rule deletes; None: there is no such rule."""
        return min(self.ages_ns, default=None)


def shown_time(utc_ns: int) -> str:
    """A time as logs show it."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(utc_ns // SECOND))
    except (OverflowError, ValueError, OSError):
        return f"{utc_ns} ns"
