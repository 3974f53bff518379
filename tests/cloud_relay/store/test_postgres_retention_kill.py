"""Relays that delete from one PostgreSQL, killed at some moment, and its server restarted under them."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.postgresql import PostgresServer, programs
from cloud_relay.store.places import store_place
from cloud_relay.store.postgres.group import ORIGIN_LOCKS, origin_lock
from cloud_relay.store.postgres.session import PostgresSession
from protocols.wire.records import Acknowledgement
from tests.tools.eventually import eventually
from tests.tools.relay_fixture import RelayInProcess, RelayProcess, batch

pytestmark = pytest.mark.processes
pytest.importorskip("asyncpg", reason="asyncpg is not installed: pip install 'meshnode[postgresql]'")

NODES = ("v-1", "v-2", "v-3")
RECORDS, DEBUG = 2_000, 1_500
_CONFIG = """
[relay]
id = "relay-1"
host = "127.0.0.1"
port = 0
[store]
url = "{url}"
[[retention]]
keys = "veh/*/debug"
max_age_s = 86400
"""


@pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed: .ci/servers installs it")
def test_relay_that_is_killed_while_it_deletes_leaves_the_rest_to_the_other_one(tmp_path: Path) -> None:
    """A slice was deleted or not, whatever died in the middle: a relay, and then the server under both."""
    with PostgresServer() as server, ExitStack() as closing:
        url = server.url("postgres")
        relay = RelayInProcess(store_place(url, tmp_path))  # what it stores is years old by the clock of the others
        closing.callback(relay.store.close)
        sent = {
            (node, begin): batch(
                *range(begin, begin + 250), node=node, key=f"veh/{node}/{'speed' if begin % 1_000 == 1 else 'debug'}",
                following=RECORDS + 1,
            )
            for node in NODES for begin in range(1, RECORDS, 250)
        }  # fmt: skip
        for (node, begin), part in sent.items():
            assert relay.send(part, node) == Acknowledgement(tuple(range(begin, begin + 250)))

        def deleted() -> int:
            return sum(one.deleted for one in relay.accounts())

        def started(name: str) -> RelayProcess:
            (tmp_path / name).mkdir()
            (tmp_path / name / "relay.toml").write_text(_CONFIG.format(url=url))
            return closing.enter_context(RelayProcess(tmp_path / name))

        # Each of the two finds something to delete, however fast they are: retention leaves out an origin that is busy.
        person = PostgresSession(store_place(url, tmp_path), 60, {})
        closing.callback(person.close)
        person.connect()
        for node in NODES[1:]:
            person.rows("SELECT pg_advisory_lock($1, $2)", ORIGIN_LOCKS, origin_lock(node))
        killed = started("a").process
        eventually(lambda: deleted() > 0, "the first relay begins to delete")
        killed.kill()
        killed.wait()
        before = deleted()
        for account in relay.accounts():
            assert (account.stored + account.deleted, account.missing) == (RECORDS, 0)
        person.rows("SELECT pg_advisory_unlock($1, $2)", ORIGIN_LOCKS, origin_lock(NODES[1]))
        with ThreadPoolExecutor(1) as threads:
            starting = threads.submit(started, "b")
            eventually(lambda: deleted() > before, "the second relay goes on with it")
            server.stop()  # and the last origin is free
            server.start()
            starting.result()
        wanted = len(NODES) * DEBUG
        eventually(lambda: deleted() == wanted, lambda: f"{deleted()} of {wanted} are deleted")
        for (node, begin), part in sent.items():
            assert relay.send(part, node) == Acknowledgement(tuple(range(begin, begin + 250)))
        for account in relay.accounts():
            assert (account.stored, account.deleted, account.adds_up) == (RECORDS - DEBUG, DEBUG, True)
