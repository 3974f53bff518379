"""Leaf rooms of a node: what others import of it brings nothing else along.

import-linter judges the sources; this judges what is loaded, which an ``__init__`` could change.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("imported", "rooms"),
    [
        ("meshnode.models", {"models", "config", "links"}),
        ("meshnode.sumo.floating_car", {"sumo"}),
        ("meshnode.identity", {"identity", "links"}),
        ("meshnode.links.express.engine", {"links"}),
        ("meshnode.links.nng.library", {"links"}),
        ("sims.roads.traces", {"sumo"}),
    ],
)
def test_leaf_room_imported_alone_loads_no_other_room_of_a_node(imported: str, rooms: set[str]) -> None:
    """The relay and the simulator run without the threads and libraries of a node."""
    listing = f"import {imported}, sys; print(*(name for name in sys.modules if name.startswith('meshnode.')))"
    loaded = subprocess.run(
        [sys.executable, "-c", listing], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert {name.split(".")[1] for name in loaded.split()} == rooms
