"""Machines author and hear entries of gossip without knowing of it."""

from collections.abc import Sequence

from msgspec.structs import replace

from protocols.base.ids import Role
from protocols.base.limits import SECOND
from protocols.machine import EntryWish, HeardEntry, Machine
from protocols.settings import NodeSettings
from sims.virtual.capability import Capability
from sims.virtual.driver import SimDriver
from sims.world.authors import Authors


class _Town(Machine):
    """Says one thing, and hears what others say of it."""

    name = "town"
    entry_kinds = frozenset({"town"})

    def __init__(self, body: bytes) -> None:
        self._wishes = [EntryWish("town", body, 60), EntryWish("other", b"of no interest", 60)]
        self.told: list[HeardEntry] = []

    def has_news(self) -> bool:
        return bool(self._wishes)

    def wishes(self) -> Sequence[EntryWish]:
        wishes, self._wishes = self._wishes, []
        return wishes

    def heard(self, entry: HeardEntry, now: int) -> None:
        self.told.append(entry)


def _mesh(body: bytes) -> tuple[SimDriver, Authors]:
    authors: list[Authors] = []

    def adjust(settings: NodeSettings) -> NodeSettings:
        return replace(settings, seal=authors[0].seal(settings.node))

    driver = SimDriver(1, adjust=adjust, capabilities=(Capability(lambda settings: _Town(body)),))
    authors.append(Authors(driver, driver.random))
    return driver, authors[0]


def test_entry_that_a_machine_wishes_reaches_the_machines_of_other_nodes() -> None:
    """A capability spreads small signed news without a line in the engine."""
    driver, _ = _mesh(b"Ingolstadt")
    for name in ("a", "b", "c"):
        driver.add(name, Role.VEHICLE)
    driver.meet()
    for node in driver.numbered:
        driver.act(node, lambda engine, now: None)
    driver.run_for(5 * SECOND)
    for node in driver.numbered:
        told = node.engine.machine(_Town).told
        assert {entry.author for entry in told} == {"a", "b", "c"}
        assert {(entry.kind, entry.body) for entry in told} == {("town", b"Ingolstadt")}
        assert next(entry for entry in told if entry.author == node.name).source == node.name


def test_entry_that_can_not_be_signed_is_counted() -> None:
    """A body that does not fit beside the certificate must not end the engine."""
    driver, _ = _mesh(bytes(2_000))
    node = driver.add("a", Role.VEHICLE)
    driver.act(node, lambda engine, now: None)
    assert node.engine.statistics()["gossip_own_entries_failed"] == 1
    assert node.engine.machine(_Town).told == []


def test_entry_that_can_not_be_signed_now_is_signed_later() -> None:
    """A machine wishes for an entry once, so a verdict on a release that had no place at that moment was never told."""
    driver, authors = _mesh(b"Ingolstadt")
    for name in ("a", "b"):
        driver.add(name, Role.VEHICLE)
    driver.meet()
    one, other = driver.numbered
    seal = authors.seal(one.name)
    one.engine.gossip._seal = replace(seal, sign=lambda statement: (bytes(2_000), b"s"))
    driver.act(one, lambda engine, now: None)
    driver.run_for(SECOND)
    assert one.engine.statistics()["gossip_own_entries_failed"] == 2
    one.engine.gossip._seal = seal
    driver.run_for(90 * SECOND)
    assert {entry.author for entry in other.engine.machine(_Town).told} == {"a", "b"}
    assert one.engine.statistics()["gossip_own_entries_failed"] == 2
