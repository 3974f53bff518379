"""Which egress policy the records of a ledger passed.

Records pass the policy before they are put, and may be sent under another one, in a later life of the node. So the
policy of a record is that of the life in which it was put. It is kept as marks: from which sequence on which policy.
"""

from collections.abc import Iterable
from typing import NamedTuple

from protocols.base.time import NEVER


class PolicyMark(NamedTuple):
    """From ``first`` on, records passed the policy with this digest; empty: none is known."""

    first: int
    digest: bytes


class PassedPolicies:
    """The marks of one ledger, in order. Below the first one, no policy is known."""

    def __init__(self, marks: Iterable[PolicyMark] = ()) -> None:
        self._marks = list(marks)
        self._is_changed = False

    def begin(self, digest: bytes, next_sequence: int, oldest: int) -> None:
        """From ``next_sequence`` on, records pass this policy. ``oldest``: the oldest record that waits."""
        marks = [mark for mark in self._marks if mark.first < next_sequence]
        while len(marks) > 1 and marks[1].first <= oldest:
            del marks[0]
        if digest != (marks[-1].digest if marks else b""):
            marks.append(PolicyMark(next_sequence, digest))
        self._is_changed |= marks != self._marks
        self._marks = marks

    def of(self, sequence: int) -> bytes:
        """The digest of the policy that a record passed."""
        return next((mark.digest for mark in reversed(self._marks) if mark.first <= sequence), b"")

    def end_of(self, sequence: int) -> int:
        """The first sequence above this one whose record passed another policy."""
        return next((mark.first for mark in self._marks if mark.first > sequence), NEVER)

    def shift(self, shift: int) -> None:
        """Every sequence becomes another one. Storage does the same to the marks that it has."""
        self._marks = [PolicyMark(mark.first + shift, mark.digest) for mark in self._marks]

    def changes(self) -> tuple[PolicyMark, ...] | None:
        """All marks, when storage has others."""
        return tuple(self._marks) if self._is_changed else None

    def changes_saved(self) -> None:
        """Storage has these marks."""
        self._is_changed = False
