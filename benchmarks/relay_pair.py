"""``python -m benchmarks.relay_pair``: two relays on one PostgreSQL, one of them killed every ten seconds under load,
and PostgreSQL once. Each acknowledged record must be there exactly once.

Nodes upload over mutual TLS as fast as they are answered, to either relay, as one name with two addresses has it. A
node that is refused or gets no answer sends the same batch again, to the other relay. Every ``--every`` seconds one
relay is killed with SIGKILL and started again a second later; in the middle PostgreSQL is, too. At the end the database
is asked: each sequence that was acknowledged is a row, its reading is the one that was sent, no reading is in two rows,
and the accounts of all nodes add up. Every tenth record is for debugging, which retention deletes after a second, while
relays die; it has to count as deleted. And an aggregate has to have each record once, deleted or not. Both relays have
the same sink, which sends on the records of one node: all that are kept have to arrive, whichever relay delivers.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from msgspec import Raw

from benchmarks.postgresql import PostgresServer, programs
from cloud_relay.query.kept import KeptQuery, every_kept_page
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.selection import Query
from cloud_relay.store.places import PostgresPlace, store_place
from cloud_relay.store.postgres.writing import PostgresStore
from demo.processes import free_port
from meshnode.identity import create_mesh, issue
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address, CredentialFiles, Requester
from protocols.base.errors import TransportError
from protocols.base.ids import MeshName, Role
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Acknowledgement, Batch, Record
from tests.tools.sink_servers import HttpReceiver

MESH: Final = MeshName("pair")
_AWAY_S: Final = 1.0
"""For which a relay is away, and PostgreSQL."""
_ROOT: Final = Path(__file__).parents[1]
_BEGIN_NS: Final = 1_690_000_000_000_000_000
_RELAY: Final = """
[relay]
id = "{id}"
host = "127.0.0.1"
port = {port}
[store]
url = "{url}"
[[retention]]
keys = "veh/*/debug"
max_age_s = 1
[[aggregate]]
name = "all"
key = "veh/**"
by = ["origin"]
[[sink]]
name = "out"
kind = "http"
url = "{receiver}"
select = {{ origin = "veh-0" }}
"""
_DEBUG: Final = 10
"""One record in so many is for debugging."""
_FILL_S: Final = 120.0
"""How long the aggregates are waited for at the end."""
_DELIVER_S: Final = 120.0
"""How long the sink is waited for at the end."""
_UNFILLED: Final = "SELECT count(*) FROM meshnode.records WHERE number > (SELECT filled_to FROM meshnode.aggregates)"


@dataclass(slots=True)
class Uploads:
    """What one node sent, and what became of it."""

    node: str
    credentials: CredentialFiles
    acknowledged: set[int] = field(default_factory=set)
    issued: int = 0
    again: int = 0
    """Batches that were sent again, without an answer or after a refusal."""
    longest_s: float = 0.0
    """The longest time between two acknowledgements."""
    faults: list[str] = field(default_factory=list)


class Pair:
    """Two relays, their PostgreSQL, and the nodes that upload."""

    def __init__(
        self, folder: Path, server: PostgresServer, receiver: HttpReceiver, nodes: int, records: int, answer_s: float
    ) -> None:
        self._folder, self._server, self._records, self._answer_s = folder, server, records, answer_s
        self._arrived: Counter[int] = Counter()
        """How often each sequence came to the receiver of the sink."""
        receiver.status, receiver.keeps = self._arrives, False
        self._url = server.create("records")
        place = store_place(self._url)
        assert isinstance(place, PostgresPlace)
        self.place = place
        create_mesh(folder / "authority", MESH)
        self._ports = [free_port(), free_port()]
        self._relays: list[subprocess.Popen[bytes] | None] = [None, None]
        for number, port in enumerate(self._ports):
            home = folder / f"relay-{number}"
            issue(folder / "authority", Role.RELAY, f"relay-{number}", home)
            (home / "relay.toml").write_text(
                _RELAY.format(id=f"relay-{number}", port=port, url=self._url, receiver=receiver.url)
            )
        self.uploads = [self._node(f"veh-{number}") for number in range(nodes)]
        self._stop = threading.Event()
        self.kills = {"relay": 0, "postgresql": 0}
        self.away_s = 0.0
        """For how long PostgreSQL did not answer: it recovers from its log first."""

    def run(self, seconds: float, every_s: float, seed: int) -> None:
        """Upload for so long, with kills, and then until each node has an answer to its last batch."""
        random = Random(seed)
        for number in (0, 1):
            self._start(number)
        threads = [threading.Thread(target=self._upload, args=(node, number % 2)) for number, node in
                   enumerate(self.uploads)]  # fmt: skip
        for thread in threads:
            thread.start()
        try:
            begin_s, number = time.monotonic(), 0
            while time.monotonic() - begin_s < seconds:
                time.sleep(every_s - _AWAY_S + random.uniform(0, 0.2))
                self._kill(number % 2)
                if not self.kills["postgresql"] and time.monotonic() - begin_s > seconds / 2:
                    away_s = time.monotonic()
                    self._server.kill()
                    self.kills["postgresql"] += 1
                    time.sleep(_AWAY_S)
                    self._server.start()
                    self.away_s = time.monotonic() - away_s
                time.sleep(_AWAY_S)
                self._start(number % 2)
                number += 1
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self._wait_for_sink()
            for relay in self._relays:
                if relay is not None:
                    relay.send_signal(signal.SIGTERM)
                    relay.wait(30)

    def _arrives(self, body: dict[str, Any]) -> int:
        """Note what comes to the receiver of the sink, and take it."""
        self._arrived.update(int(record["id"].partition("/")[2]) for record in body["records"])
        return 200

    def _not_delivered(self) -> int:
        """How many records that are kept have not come to the receiver of the sink."""
        return sum(one not in self._arrived for one in self.uploads[0].acknowledged if one % _DEBUG)

    def _wait_for_sink(self) -> None:
        ends_s = time.monotonic() + _DELIVER_S
        while self._not_delivered() and time.monotonic() < ends_s:
            time.sleep(0.1)

    def account(self) -> dict[str, Any]:
        """What is in the database, and what is wrong with it."""
        wrong = [f"{node.node}: {fault}" for node in self.uploads for fault in node.faults[:5]]
        acknowledged = sum(len(node.acknowledged) for node in self.uploads)
        rows = 0
        for node in self.uploads:
            told = self._server.sql(
                f"SELECT sequence, reading_sequence, value FROM meshnode.records WHERE origin = '{node.node}'",
                "records",
            ).splitlines()
            held = [tuple(line.split("|")) for line in told]
            rows += len(held)
            sequences = {int(sequence) for sequence, _, _ in held}
            if missing := {one for one in node.acknowledged - sequences if one % _DEBUG}:
                wrong.append(f"{node.node}: {len(missing)} acknowledged records are missing, {min(missing)} the first")
            if len(sequences) < len(held) or len({reading for _, reading, _ in held}) < len(held):
                wrong.append(f"{node.node}: a record is there twice")
            if odd := [one for one in held if not one[0] == one[1] == one[2]]:
                wrong.append(f"{node.node}: {len(odd)} rows are not what was sent: {odd[0]}")
        with open_reader(self.place) as reader:
            accounts = reader.audit()
        odd_ones = [one for one in accounts if not one.adds_up or one.outstanding]
        wrong += [f"the account of {one.origin} does not add up: {one}" for one in odd_ones]
        wrong += self._wrong_groups()
        if left := self._not_delivered():
            wrong.append(f"{left} records did not arrive at the receiver of the sink within {_DELIVER_S:g} s")
        if strange := set(self._arrived) - set(range(1, self.uploads[0].issued + 1)):
            wrong.append(f"{len(strange)} records arrived at the receiver of the sink that nobody sent: {min(strange)}")
        return {
            "kills": self.kills, "issued": sum(node.issued for node in self.uploads), "acknowledged": acknowledged,
            "rows": rows, "deleted": sum(one.deleted for one in accounts),
            "sink_arrived": len(self._arrived), "sink_twice": self._arrived.total() - len(self._arrived),
            "sent_again": sum(node.again for node in self.uploads),
            "postgresql_away_s": round(self.away_s, 2),
            "longest_gap_s": round(max(node.longest_s for node in self.uploads), 2), "wrong": wrong,
        }  # fmt: skip

    def _wrong_groups(self) -> list[str]:
        """What is wrong with the aggregate, once a relay has filled it."""
        store, ends_s = PostgresStore(self.place), time.monotonic() + _FILL_S
        try:
            while self._server.sql(_UNFILLED, "records") != "0":
                if time.monotonic() > ends_s:
                    return [f"aggregates are not filled after {_FILL_S:g} s"]
                time.sleep(0.1)
        finally:
            store.close()
        records: Counter[str] = Counter()
        sums: Counter[str] = Counter()
        with open_reader(self.place) as reader:
            for page in every_kept_page(reader.kept(), KeptQuery("all", Query(limit=1_000_000))):
                for group in page.groups:
                    told = group.summary.told([])
                    records[group.name.origin] += told["records"]
                    sums[group.name.origin] += int(told["sum"])
        wrong = [node for node in self.uploads if records[node.node] != node.issued]
        wrong += [node for node in self.uploads if sums[node.node] != node.issued * (node.issued + 1) // 2]
        return [f"{node.node}: of {node.issued} records {records[node.node]} are in the aggregate" for node in wrong]

    # --- nodes -----------------------------------------------------------------------------------------------------
    def _node(self, name: str) -> Uploads:
        return Uploads(name, issue(self._folder / "authority", Role.VEHICLE, name, self._folder / name).credentials)

    def _upload(self, node: Uploads, relay: int) -> None:
        """Send batch after batch, each until it is acknowledged."""
        requester: Requester | None = None
        last_s = time.monotonic()
        while not self._stop.is_set():
            first = node.issued + 1
            node.issued += self._records
            sent = encode_frame(_batch(node.node, first, node.issued))
            while True:
                answer, requester = self._sent(node, requester, relay, sent)
                if isinstance(answer, Acknowledgement):
                    break
                if requester is not None:
                    requester.close()
                requester, relay = None, 1 - relay
                node.again += 1
                time.sleep(0.05)
            if answer.stored != tuple(range(first, node.issued + 1)):
                node.faults.append(f"{first} to {node.issued} was answered with {answer}"[:300])
            node.acknowledged.update(answer.stored)
            node.longest_s, last_s = max(node.longest_s, time.monotonic() - last_s), time.monotonic()
        if requester is not None:
            requester.close()

    def _sent(
        self, node: Uploads, requester: Requester | None, relay: int, sent: bytes
    ) -> tuple[object, Requester | None]:
        """The answer of a relay, or None, and the connection to it."""
        try:
            if requester is None:
                requester = open_requester(node.credentials, Address("127.0.0.1", self._ports[relay]), MESH)
            return decode_untrusted_relay_frame(requester.request(sent, self._answer_s)), requester
        except TransportError:
            return None, requester

    # --- relays ----------------------------------------------------------------------------------------------------
    def _start(self, number: int) -> None:
        command = [sys.executable, "-m", "cloud_relay", "run", "--log-level", "error", "--config",
                   str(self._folder / f"relay-{number}" / "relay.toml")]  # fmt: skip
        with (self._folder / "log").open("ab") as log:
            self._relays[number] = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log)

    def _kill(self, number: int) -> None:
        relay = self._relays[number]
        assert relay is not None
        os.kill(relay.pid, signal.SIGKILL)
        if relay.wait(30) == -signal.SIGKILL:
            self.kills["relay"] += 1


def _batch(node: str, first: int, last: int) -> Batch:
    records = []
    for number in range(first, last + 1):
        reading = Reading(
            f"veh/{node}/{'speed' if number % _DEBUG else 'debug'}", node, number, number, Position(48.7, 11.4, 2.0),
            EventTime(_BEGIN_NS + number * 1_000_000, 1_000_000), Provenance("wheel", "m/s"),
        )  # fmt: skip
        records.append(Record(number, "r", Raw(encode_reading(reading))))
    return Batch(MAJOR, MINOR, node, 1, last + 1, tuple(records))


def main() -> int:
    """Run the campaign. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay_pair", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="how long (default: 120)")
    parser.add_argument("--every", type=float, default=10.0, metavar="S", help="between two kills (default: 10)")
    parser.add_argument("--nodes", type=int, default=8, metavar="N", help="that upload (default: 8)")
    parser.add_argument("--records", type=int, default=50, metavar="N", help="in a batch (default: 50)")
    parser.add_argument("--answer", type=float, default=10.0, metavar="S", help="a node waits so long (default: 10)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the moments (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    if programs() is None:
        print("PostgreSQL is not installed: .ci/servers installs it", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="mesh-pair-") as name, PostgresServer() as server,
        closing(HttpReceiver()) as receiver,
    ):  # fmt: skip
        pair = Pair(Path(name), server, receiver, options.nodes, options.records, options.answer)
        pair.run(options.seconds, options.every, options.seed)
        account = pair.account()
    if options.json:
        print(json.dumps(account))
    else:
        kills = account["kills"]
        print(f"{kills['relay']} kills of a relay, {kills['postgresql']} of PostgreSQL")
        print(f"{account['issued']:,} records sent, {account['acknowledged']:,} acknowledged, {account['rows']:,} rows")
        print(f"{account['deleted']:,} records were deleted by retention")
        print(f"{account['sink_arrived']:,} records of one node arrived at the receiver of the sink, "
              f"{account['sink_twice']:,} of them again")  # fmt: skip
        print(f"{account['sent_again']:,} batches were sent again")
        print(f"PostgreSQL was away for {account['postgresql_away_s']:.1f} s; the longest time of a node without an "
              f"acknowledgement: {account['longest_gap_s']:.1f} s")  # fmt: skip
        for line in account["wrong"]:
            print(f"WRONG: {line}")
    return 1 if account["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
