"""Clients of an inference server, unchanged, over real HTTP and gRPC: each call works, or says clearly why it can't."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.__main__ import address_of, nodes_with_models, rows_of
from tests.clients.rows import CLEAR_ERROR, FAILED, WORKS
from tests.tools.node_fixture import RunningNode

pytestmark = pytest.mark.processes
PYTHON = sys.executable


@pytest.fixture(scope="module", name="nodes")
def given_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    folder = tmp_path_factory.mktemp("mesh")
    yield from nodes_with_models(folder)


@pytest.mark.parametrize("where", ["rsu", "vehicle"])
@pytest.mark.parametrize(
    ("client", "outcomes"), [("triton", {WORKS: 33, CLEAR_ERROR: 20}), ("tritongrpc", {WORKS: 26, CLEAR_ERROR: 19})]
)
def test_every_call_of_tritons_clients_works_or_says_why_not(
    nodes: tuple[RunningNode, RunningNode], where: str, client: str, outcomes: dict[str, int]
) -> None:
    """Programs written for an inference server are pointed at a node, not rewritten, whoever computes."""
    node = nodes[0] if where == "rsu" else nodes[1]
    rows = rows_of(client, PYTHON, address_of(client, node))
    if rows is None:
        pytest.skip(f"the client for {client} is not installed")
    assert [row for row in rows if row["outcome"] == FAILED] == []
    assert Counter(row["outcome"] for row in rows) == outcomes


def test_client_that_is_not_installed_is_told_apart_from_one_that_fails(tmp_path: Path) -> None:
    """A table of a client that was never run must not look like one without faults."""
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{PYTHON}" -S "$@"\n')
    (tmp_path / "python").chmod(0o755)
    assert rows_of("kserve", str(tmp_path / "python"), "127.0.0.1:1") is None
