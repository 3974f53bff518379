"""What the curator wants from others, and is told later."""

from typing import Any

from protocols.base.effects import Effect


class HistoryWanted(Effect, frozen=True):
    """Look up what was read before a recording began. → ``recalled``, in any number of parts."""

    rule: str
    number: int
    """Of the recording."""
    keys: tuple[str, ...]
    own_only: bool
    since_ns: int
    """The earliest time of sensing, in UTC."""
    until_ns: int
    """The time of sensing before which it was sensed."""
    most: int
    """The newest so many."""


class PredictionWanted(Effect, frozen=True):
    """Have a model compute something of a reading. → ``predicted``, exactly once."""

    rule: str
    number: int
    """Of the question; no other one of this rule has it."""
    model: str
    inputs: Any
    """By name, or the value of the only input."""
    input_name: str
    """The name of the only input; empty: ``inputs`` has names."""
    outputs: tuple[str, ...]
    """Those that are wanted; none: all."""
    budget_ns: int
