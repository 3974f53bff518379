"""Releases of rules at the installer: what is refused, what is used after each change, each restart and each fault."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.failing_disk import LOSSES_OF_POWER, FailingDisk, Fault, PowerLost
from meshnode.records.rules.compiling import check_needs, rules_in
from meshnode.records.rules.noting import Note
from meshnode.releases.install.installer import Installer
from meshnode.releases.install.refusals import InstallRefused
from meshnode.releases.install.rules import RuleKind, WatchedRules
from meshnode.releases.store.disk import Disk
from protocols.base.errors import MeshError
from protocols.base.ids import NodeId
from protocols.releases.events import Measures
from tests.tools.released_fixture import MIB, Published, Site, publish, release

PATH = "rules/traffic"


def rules(name: str, window: str = "size_s = 10", more: str = "") -> str:
    """A file with one rule."""
    return f"""
[[rule]]
name = "{name}"
keys = "veh/*/speed"
{more}
window = {{ {window} }}
compute = ["mean"]
output = {{ key = "veh/{{node}}/{name}", unit = "m/s" }}
"""


def traffic(counter: int, text: str | None = None) -> Published:
    return publish(counter, {"traffic.toml": (rules(f"rule{counter}") if text is None else text).encode()}, PATH)


class Used:
    """What uses rules, without a node: it remembers their names."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.note: Note | None = None

    def compiled(self, files: Sequence[Path]) -> Sequence[Any]:
        found = rules_in(files, NodeId("veh-1"))
        check_needs(found, 16 * MIB)
        return found

    def use(self, rules: Sequence[Any] | None, about_to: Callable[[], object], note: Note | None) -> None:
        about_to()
        self.names = ["own"] if rules is None else [rule.name for rule in rules]
        self.note = note


class Place:
    """An installer of rules over a folder, as a node has it after a start."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self.used = Used()
        self.site = Site(folder, disk=disk)
        self.kind = RuleKind(PATH, self.used)
        self.installer = Installer(folder, self.site.store, self.site.stand, 1, disk, self.kind)
        self.site.store.open()
        begun = self.installer.installed_files(PATH)
        self.fell_back = self.installer.serve_installed()
        if self.used.names and begun and not self.fell_back:
            assert [rule.name for rule in self.used.compiled(begun[:1])] == self.used.names, (
                "it begins with what serves"
            )

    def install(self, published: Published) -> None:
        published.put_into(self.site.store)
        self.installer.stage(published.description)
        self.installer.serve(PATH, published.description.counter)

    @property
    def current(self) -> int:
        return self.installer.journal.of(PATH).current


def test_release_of_rules_is_used_in_place_of_the_files_and_after_a_restart(tmp_path: Path) -> None:
    here = Place(tmp_path)
    assert (here.used.names, here.current) == ([], 0)
    here.install(traffic(1))
    here.install(traffic(2))
    assert (here.used.names, here.current) == (["rule2"], 2)
    again = Place(tmp_path)
    assert (again.used.names, again.fell_back) == (["rule2"], {})
    again.installer.serve(PATH, 1)
    assert again.used.names == ["rule1"]
    again.installer.serve(PATH, 0)
    assert (again.used.names, Place(tmp_path).used.names) == (["own"], [])


@pytest.mark.parametrize(
    ("text", "code", "why"),
    [
        ("[[rule]]\nname = 1", "load", "rule\\[0\\].name"),
        (rules("x", "size_s = 10", 'where = "value >"'), "load", r"traffic\.toml: rule\[0\]"),
        (
            rules("x", "size_s = 10, every_s = 1", 'by = "key"\nmax_partitions = 9_000'),
            "memory",
            "MiB of memory together",
        ),
    ],
)
def test_rules_that_do_not_compile_or_need_too_much_are_refused_and_nothing_changes(
    tmp_path: Path, text: str, code: str, why: str
) -> None:
    """It is found out before they take the place of anything."""
    here = Place(tmp_path)
    here.install(traffic(1))
    with pytest.raises(InstallRefused, match=why) as refused:
        here.install(traffic(2, text))
    assert (refused.value.code, here.used.names, here.current) == (code, ["rule1"], 1)
    assert not (tmp_path / PATH / "2").exists()


def test_rules_that_the_configuration_does_not_name_are_refused(tmp_path: Path) -> None:
    """By default a node takes none, whoever has signed them."""
    other = publish(1, {"traffic.toml": rules("x").encode()}, "rules/other")
    here = Place(tmp_path)
    other.put_into(here.site.store)
    with pytest.raises(InstallRefused, match=r"does not take rules/other: add release = 'other' to its \[rules\]"):
        here.installer.stage(other.description)


def test_rules_that_the_configuration_names_no_more_serve_no_more(tmp_path: Path) -> None:
    """The operator of the node has the last word."""
    here = Place(tmp_path)
    here.install(traffic(1))
    bare = Installer(tmp_path, here.site.store, here.site.stand, 1)
    assert bare.serve_installed() == {}
    assert bare.journal.of(PATH).current == 0


def test_damaged_rules_give_way_to_those_before_them_at_the_start(tmp_path: Path) -> None:
    here = Place(tmp_path)
    here.install(traffic(1))
    here.install(traffic(2))
    (tmp_path / PATH / "2" / "traffic.toml").write_bytes(b"[[rule]]")
    again = Place(tmp_path)
    assert (again.used.names, again.current) == (["rule1"], 1)
    assert "traffic.toml is damaged or gone" in again.fell_back[PATH]
    (tmp_path / PATH / "1" / "traffic.toml").unlink()
    last = Place(tmp_path)
    assert (last.used.names, last.current) == (["own"], 0)


def test_damaged_journal_is_told_though_the_node_reads_it_before_it_serves(tmp_path: Path) -> None:
    """The rules of a release are looked for before releases begin."""
    Place(tmp_path).install(traffic(1))
    (tmp_path / "journal.json").write_bytes(b"{")
    here = Place(tmp_path)
    assert "journal.json is damaged" in here.installer.journal.why_lost
    assert here.current == 0


@pytest.mark.parametrize("fault", ["full", "power", "reordered"])
def test_fault_at_any_step_leaves_rules_that_are_used(tmp_path: Path, fault: Fault) -> None:
    """A vehicle is switched off in every instant that there is: what is used after it is what the journal says."""
    first, second = traffic(1), traffic(2)
    Place(tmp_path / "first").install(first)
    shutil.copytree(tmp_path / "first", tmp_path / "count")
    disk = FailingDisk()
    counting = Place(tmp_path / "count", disk)
    before = len(disk.steps)
    counting.install(second)
    steps = disk.steps[before:]
    assert len(steps) > 8
    for number in range(1, len(steps) + 1):
        folder = tmp_path / f"{fault}-{number}"
        shutil.copytree(tmp_path / "first", folder)
        disk = FailingDisk(0, fault)
        here = Place(folder, disk)
        disk.fails_at = len(disk.steps) + number
        failed = True
        with suppress(PowerLost, MeshError):
            here.install(second)
            failed = False
        assert here.used.names == (["rule1"] if failed else ["rule2"]), steps[number - 1]
        if fault not in LOSSES_OF_POWER:
            assert here.current == (1 if failed else 2)
        again = Place(folder)
        assert again.used.names == [f"rule{again.current}"], steps[number - 1]
        again.install(second)
        assert again.used.names == ["rule2"]


def test_measures_of_rules_are_those_since_they_serve_and_one_neighbour_alone_does_not_decide(tmp_path: Path) -> None:
    """A neighbour could send readings for which no rule has a value, and have a good release taken back."""
    here = Place(tmp_path)
    here.install(traffic(1))
    watched = WatchedRules(1, here.kind)
    watched.begin_shadow(2)
    assert watched.counters() == {1, 2}
    assert watched.measures(2) == Measures(0, 0, 0, 0, 0, 0)
    note = here.used.note
    assert note is not None
    for _ in range(30):
        note(None, False)
        note("liar", True)
    note("veh-2", True)
    assert watched.measures(1) == Measures(31, 1, 0, 0, 0, 0)
    here.install(traffic(2))
    watched.serves(2)
    assert (watched.counters(), watched.measures(2), watched.measures(1)) == ({2}, Measures(0, 0, 0, 0, 0, 0), None)


def test_rules_beside_models_are_swept_and_dropped_by_themselves(tmp_path: Path) -> None:
    here = Place(tmp_path)
    here.install(traffic(1))
    here.install(traffic(2))
    (tmp_path / "rules" / "left" / "1").mkdir(parents=True)
    again = Place(tmp_path)
    assert not (tmp_path / "rules" / "left" / "1").exists()
    again.installer.drop(PATH, 1)
    assert not (tmp_path / PATH / "1").exists()
    with pytest.raises(InstallRefused, match="release 1 of rules/traffic is not installed"):
        again.installer.serve(PATH, 1)
    assert release(1).description.path == "models/adder"
