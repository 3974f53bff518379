"""Key expressions, taken apart once so that matching a key has a small and known cost.

An expression is split at its ``**``, of which there are at most two. What is before the first must be the beginning of
the key, what is behind the last must be its end, and what is between two is searched for. Chunks are compared one by
one. Costs are counted in steps; one step takes about 0.16 µs on a 2-core computer.
"""

from typing import Final

from protocols.base import limits

_SIMPLE_STEPS: Final = 4
_SEARCHED: Final = 3
"""The parts of an expression with two ``**``."""


class KeyPattern:
    """A valid key expression."""

    __slots__ = ("_expression", "_parts", "_size", "steps")

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._parts: tuple[tuple[str, ...], ...] = ()
        """What is between the ``**`` of the expression; empty for an expression without wildcard."""
        self.steps = _SIMPLE_STEPS
        """What matching costs at most."""
        if "*" in expression:
            parts: list[list[str]] = [[]]
            for chunk in expression.split("/"):
                if chunk == "**":
                    parts.append([])
                else:
                    parts[-1].append(chunk)
            self._parts = tuple(tuple(part) for part in parts)
            if len(parts) == _SEARCHED:
                between = len(parts[1])
                self.steps += _SIMPLE_STEPS + between * (limits.MAX_KEY_CHUNKS + 1 - between) // 3
        self._size = sum(len(part) for part in self._parts)

    def matches(self, key: str, chunks: list[str]) -> bool:
        """Whether it matches a valid key. ``chunks``: those of the key."""
        parts = self._parts
        if not parts:
            return key == self._expression
        count, first = len(chunks), parts[0]
        if count < self._size or (first and not _fits(first, chunks, 0)):
            return False
        if len(parts) == 1:
            return count == self._size
        last = parts[-1]
        if last and not _fits(last, chunks, count - len(last)):
            return False
        if len(parts) < _SEARCHED:
            return True
        between = parts[1]
        return any(_fits(between, chunks, at) for at in range(len(first), count - len(last) - len(between) + 1))


def _fits(part: tuple[str, ...], chunks: list[str], at: int) -> bool:
    for chunk in part:
        if chunk != "*" and chunk != chunks[at]:
            return False
        at += 1
    return True
