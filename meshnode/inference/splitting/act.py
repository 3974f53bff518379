"""The way from a thread of split inference to the engine."""

from collections.abc import Callable

from protocols.engine import Engine

Act = Callable[[Callable[[Engine, int], object]], object]
"""Calls a function with the engine and the time, under the engine's lock, and performs what was decided."""
