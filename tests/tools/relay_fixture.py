"""A relay without a network, and what tests send to it. Import ``given_relay`` where the fixture ``relay`` is used."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import pytest
from msgspec import Raw

from cloud_relay.aggregates.definition import AggregateDefinition
from cloud_relay.ingest.batches import Ingest
from cloud_relay.ingest.receipts import ReceiptCheck
from cloud_relay.query.audit import OriginAccount
from cloud_relay.query.readers.opening import open_reader
from cloud_relay.query.searching import parsed_fields, records_of_pages
from cloud_relay.query.selection import Query
from cloud_relay.store.packs.keeper import StoreKeeper
from cloud_relay.store.packs.packing import Packer, PackingPolicy
from cloud_relay.store.places import PostgresPlace, StorePlace
from cloud_relay.store.retaining import RetentionPolicy
from cloud_relay.store.schema import open_for_reading
from cloud_relay.store.sqlite import Store
from meshnode.identity import create_mesh, issue
from meshnode.links.nng.library import open_requester
from meshnode.links.transport import Address, Requester
from protocols.access import LINK_ROLES, AccessRule, AccessTable
from protocols.base.ids import MeshName, NodeId, PeerIdentity, Role
from protocols.base.limits import SECOND
from protocols.wire.codec import decode_untrusted_relay_frame, encode_frame
from protocols.wire.membership import MAJOR, MINOR
from protocols.wire.parcels import encode_reading
from protocols.wire.readings import EventTime, Position, Provenance, Reading
from protocols.wire.records import Batch, Fate, Record, RelayFrame
from tests.tools.pki_fixture import Authority, authority

EVERYTHING = AccessTable(tuple(AccessRule(role, "publish", "**") for role in LINK_ROLES))
"""Lets everybody publish on every key."""
BASE_NS = 1_700_000_000 * SECOND


def reading(number: int, key: str = "veh/v-1/speed", value: Any = None, **where: float) -> Reading:
    position = {"latitude_deg": 48.7, "longitude_deg": 11.4, "accuracy_m": 2.0} | where
    return Reading(
        key,
        "v-1",
        number,
        {"number": number} if value is None else value,
        Position(**position),
        EventTime(BASE_NS + number * SECOND, 1_000_000),
        Provenance("wheel", "m/s", 0.9, "cal-7", ("raw", "filtered")),
        priority=4,
    )


def batch(
    *numbers: int, fates: tuple[Fate, ...] = (), node: str = "v-1", following: int | None = None, **of: Any
) -> Batch:
    # The readings are encoded one by one, as the outbox keeps them.
    records = tuple(Record(number, "r", Raw(encode_reading(reading(number, **of)))) for number in numbers)
    if following is None:
        following = max((*numbers, *(fate.last for fate in fates)), default=0) + 1
    return Batch(MAJOR, MINOR, node, 1, following, records, fates)


_MADE: WeakSet[Any] = WeakSet()


def close_stores() -> None:
    """Close what tests left open that failed: threads of a store would keep the process from ending."""
    for store in list(_MADE):
        store.close()


class RelayProcess:
    """A real relay with a mesh of its own in ``folder``. ``with RelayProcess(folder) as relay:``"""

    def __init__(self, folder: Path, mesh: str = "demo") -> None:
        self.folder = folder
        self.http_url: str | None = None
        """Where it answers over HTTP, if its configuration says so."""
        if not (folder / "authority").exists():
            create_mesh(folder / "authority", mesh)
        issue(folder / "authority", Role.RELAY, "relay-1", folder)

    def __enter__(self) -> Self:
        config = self.folder / "relay.toml"
        if not config.exists():
            config.write_text('[relay]\nid = "relay-1"\nhost = "127.0.0.1"\nport = 0\n')
        command = [sys.executable, "-m", "cloud_relay", "run", "--config", str(config), "--log-level", "error"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        with self.process.stdout:
            line = self.process.stdout.readline()
            if " answers on " in line:
                self.http_url = line.split()[-1]
                line = self.process.stdout.readline()
        self.address = Address("127.0.0.1", int(line.rsplit(":", 1)[1]))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def requester(self, node: str = "v-1", role: Role = Role.VEHICLE) -> "closing[Requester]":
        """A connection of a node of the relay's mesh."""
        credentials = issue(self.folder / "authority", role, node, self.folder / "nodes").credentials
        return closing(open_requester(credentials, self.address, MeshName("demo")))

    def memory_bytes(self) -> int:
        """The largest resident memory that the process ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


class RelayInProcess:
    """The store and the ingest of a relay, without a network."""

    def __init__(
        self, path: StorePlace, access: AccessTable = EVERYTHING, trusted: Authority | None = None, *,
        required: bool = False, aggregates: tuple[AggregateDefinition, ...] | None = None,
    ) -> None:  # fmt: skip
        self.path: Any = path
        opened = Store if isinstance(path, Path) else _postgres
        self.store: Any = opened(path, clock=lambda: BASE_NS, aggregates=aggregates)
        _MADE.add(self.store)
        anchor = (authority() if trusted is None else trusted).certificate
        self.ingest = Ingest(self.store, access, ReceiptCheck(anchor, required=required))

    def send(self, frame: RelayFrame | bytes, node: str = "v-1", role: Role = Role.VEHICLE) -> RelayFrame:
        data = frame if isinstance(frame, bytes) else encode_frame(frame)
        peer = PeerIdentity(MeshName("demo"), role, NodeId(node))
        return decode_untrusted_relay_frame(self.ingest.answer(peer, data))

    def pack(self, pack_records: int = 32_768, most: int = 1_000, beyond_rows: int = 0) -> int:
        """Pack all records that are older than the newest ``beyond_rows``, into at most so many packs. Returns into how
        many."""
        policy = PackingPolicy(0.0 if not beyond_rows else 1e6, beyond_rows, pack_records=pack_records,
                               clock=lambda: BASE_NS + SECOND)  # fmt: skip
        packer = Packer(lambda: open_for_reading(self.path), self.store.maintain, policy)
        made = 0
        while made < most and packer.pack_once():
            made += 1
        return made

    def retain(self, policy: RetentionPolicy, after_s: float) -> int:
        """Delete what retention does not keep so long after all records were received. Returns how many records."""
        if isinstance(self.path, PostgresPlace):
            from cloud_relay.store.postgres.keeper import PostgresKeeper

            with closing(PostgresKeeper(self.path, policy, lambda: BASE_NS + int(after_s * SECOND))) as ours:
                return ours.retain_once()
        packing = PackingPolicy(clock=lambda: BASE_NS + int(after_s * SECOND))
        keeper = StoreKeeper(lambda: open_for_reading(self.path), self.store.maintain, packing, policy)
        return keeper.retain_once()

    def accounts(self) -> list[OriginAccount]:
        with open_reader(self.path) as reader:
            return reader.audit()

    def account(self) -> OriginAccount:
        (account,) = self.accounts()
        return account

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        with open_reader(self.path) as reader:
            return list(map(parsed_fields, records_of_pages(reader.page, Query(**wanted))))


def copied_after_each_slice(relay: RelayInProcess, folder: Path, changes: list[int] | None = None) -> list[Path]:
    """Have the store copied after each slice of packing and retention, as a kill at that moment would leave it.

    The copies come into the list, in order. ``changes`` gets how many rows each slice changed.
    """
    maintain, images = relay.store.maintain, list[Path]()

    def counted(job: Any, db: Any) -> Any:
        before = db.total_changes
        result = job(db)
        if changes is not None:
            changes.append(db.total_changes - before)
        return result

    def copied(job: Any) -> Any:
        done = maintain(partial(counted, job))
        done.result()
        images.append(folder / f"after-{len(images)}" / relay.path.name)
        images[-1].parent.mkdir()
        for ending in ("", "-wal"):
            shutil.copy(f"{relay.path}{ending}", f"{images[-1]}{ending}")
        return done

    relay.store.maintain = copied  # type: ignore[method-assign]
    return images


def _postgres(place: PostgresPlace, **of: Any) -> Any:
    from cloud_relay.store.postgres.writing import PostgresStore

    return PostgresStore(place, **of)


@pytest.fixture(name="relay")
def given_relay(tmp_path: Path) -> Iterator[RelayInProcess]:
    relay = RelayInProcess(tmp_path / "relay.sqlite")
    yield relay
    relay.store.close()
