"""The relay's OpenAPI document promises nothing that the relay does not keep: schemathesis asks for all of it."""

from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.relay_contract import KEPT, findings
from cloud_relay.http.tokens import FILE, TokenFile, TokenRole
from tests.tools.relay_fixture import batch
from tests.tools.relay_http_fixture import RelayWeb

pytestmark = pytest.mark.processes
CASES = 8
"""Examples for each operation beside those at the bounds; ``python -m benchmarks.relay_contract`` asks for more."""


def test_all_that_the_document_allows_is_accepted_and_nothing_else(tmp_path: Path) -> None:
    """Clients are made from it, and a value that it allows and the relay refuses fails in somebody's car."""
    with closing(RelayWeb(tmp_path, tokens_required=True, aggregates=(KEPT,))) as web:
        web.relay.send(batch(*range(1, 60)))
        web.relay.send(batch(*range(60, 80), key="veh/v-1/hazard"))
        token = TokenFile(tmp_path / FILE).create("contract", TokenRole.OPERATOR, 0, None)
        found = findings(f"http://127.0.0.1:{web.server.port}", CASES, seed=1, token=token)
    assert found == "", found
