"""Instants: monotonic nanoseconds as whole numbers."""

from typing import Final

NEVER: Final = (1 << 62) - 1
"""An instant after all others. It is the largest number that compiled code compares without a function call."""
