"""Records of a vehicle without coverage, carried by another one: three real processes, real TLS, a real relay."""

import json
import re
from contextlib import closing
from pathlib import Path

import pytest

from cloud_relay.query.audit import OriginAccount, audit
from cloud_relay.query.searching import parsed_fields
from cloud_relay.query.selection import Query
from cloud_relay.store.schema import open_for_reading
from demo.processes import free_port
from tests.tools.eventually import eventually
from tests.tools.mesh_fixture import House, Member
from tests.tools.relay_fixture import RelayProcess
from tests.tools.stored_fixture import every_record

pytestmark = pytest.mark.processes

SECRET = "IN-XY-1234"
"""In every record: nobody but its node and the relay may have it."""
RULES = """
[access]
rules = [
    { role = "vehicle", verb = "publish", keys = "**" }, { role = "rsu", verb = "publish", keys = "**" },
    { role = "vehicle", verb = "subscribe", keys = "none" },
]
"""
"""Readings reach no neighbour, so what a carrier knows of them it has from sealed records."""
ORIGIN = """
[discovery]
mdns = false
seeds = [{seeds}]
[relay]
address = "127.0.0.1:1"
[carrying]
after_s = 0
carry = false
[[curation]]
name = "plates"
keys = "veh/**"
"""
CARRIER = """
[discovery]
mdns = false
[relay]
address = "127.0.0.1:{relay}"
[carrying]
hand_over = false
"""


class Coast:
    """A relay, a carrier that reaches it, and the account of the vehicle that does not."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder)
        self.relay, self.port = RelayProcess(folder), free_port()
        (folder / "relay.toml").write_text(
            f'[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = {self.port}\n[ingest]\nreceipts = "required"\n'
        )
        self.store = folder / "state" / "relay.sqlite"

    def carrier(self, name: str = "veh-2", tables: str = CARRIER) -> Member:
        return Member(self.house.file(name, (tables + RULES).replace("{relay}", str(self.port)), mdns=False))

    def vehicle(self, *carriers: Member, tables: str = ORIGIN) -> Member:
        """The one without coverage."""
        seeds = ", ".join(f'"127.0.0.1:{carrier.port}"' for carrier in carriers)
        return Member(self.house.file("veh-1", (tables + RULES).replace("{seeds}", seeds)))

    def account(self, node: str = "veh-1") -> OriginAccount | None:
        if not self.store.exists():
            return None
        with closing(open_for_reading(self.store)) as db:
            return next((account for account in audit(db) if account.origin == node), None)

    def values(self) -> list[object]:
        with closing(open_for_reading(self.store)) as db:
            return sorted(record["value"]["number"] for record in map(parsed_fields, every_record(db, Query())))


def publish(member: Member, *numbers: int) -> None:
    for number in numbers:
        member.ask("publish", f"veh/{member.name}/plate", {"number": number, "plate": SECRET})


def counters(member: Member) -> dict[str, int]:
    statistics: dict[str, int] = member.ask("statistics")
    return statistics


def delivered(member: Member, count: int) -> None:
    def all_of_them() -> bool:
        now = counters(member)
        return now["outbox_delivered"] == count and now["outbox_pending"] == 0

    eventually(all_of_them, lambda: json.dumps(counters(member)))


def memory_of(member: Member) -> bytes:
    """What its process has in memory that can be written."""
    parts = []
    pid = member.process.pid
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found is not None:
                begin, end = (int(number, 16) for number in found.groups())
                try:
                    memory.seek(begin)
                    parts.append(memory.read(end - begin))
                except (OSError, ValueError, OverflowError):  # the kernel's own pages
                    continue
    return b"".join(parts)


def test_records_of_a_vehicle_without_coverage_are_carried_once_and_unread(tmp_path: Path) -> None:
    """The relay is away while the carrier holds them, so the whole way is by its disk."""
    coast = Coast(tmp_path)
    with coast.relay, coast.carrier() as carrier, coast.vehicle(carrier) as vehicle:
        publish(vehicle, 1)
        delivered(vehicle, 1)
        coast.relay.process.kill()
        coast.relay.process.wait()
        publish(vehicle, *range(2, 41))
        eventually(lambda: counters(vehicle)["carrying_handed_over_records"] >= 40)
        held = counters(carrier)
        assert held["carrying_held"] >= 1
        assert SECRET.encode() in memory_of(vehicle), "it is found where it is"
        assert SECRET.encode() not in memory_of(carrier)
        files = [file for file in coast.house.home("veh-2").rglob("*") if file.is_file()]
        assert [file for file in files if file.parent.name == "carried"]
        assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
        assert counters(vehicle)["outbox_pending"] == 39, "until the relay has said so"
        with coast.relay:
            delivered(vehicle, 40)
            eventually(lambda: counters(carrier)["carrying_held"] == 0)
            told = counters(vehicle)
    account = coast.account()
    assert account is not None
    assert (account.stored, account.with_receipt, account.missing, account.conflicts) == (40, 40, 0, 0)
    assert account.adds_up
    assert coast.values() == list(range(1, 41))
    assert told["outbox_issued"] == told["outbox_delivered"] == 40
    assert told["carrying_on_their_way"] == 0
