"""Rules that are exchanged while a node runs: what both sets say goes on, and what is lost is counted."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

import meshnode
from meshnode.cli.additions import check_rules
from meshnode.config.parsing import SectionInvalid
from meshnode.records.rules.predicting import Predictor
from meshnode.records.rules.recalling import Recaller
from meshnode.records.rules.section import RulesSection
from meshnode.records.running import RunningRecords
from meshnode.records.section import CurationRulesSection, CurationSection
from meshnode.records.using import NodeRules
from meshnode.releases.section import ReleasesSection
from meshnode.troubles import Troubles
from protocols.base.errors import ConfigError, InferenceError, LocalProtocolError
from protocols.base.limits import SECOND
from protocols.records.wanted import HistoryWanted, PredictionWanted
from tests.tools.mesh_fixture import House, until


def windows(name: str, keys: str = "veh/*/n", count: int = 3, source: str = "own") -> str:
    return f"""
[[rule]]
name = "{name}"
keys = "{keys}"
source = "{source}"
window = {{ count = {count} }}
compute = ["count"]
output = {{ key = "veh/{{node}}/{name}", unit = "1" }}
"""


class Exchanging:
    """A node whose rules are exchanged."""

    def __init__(self, folder: Path, node: meshnode.Node) -> None:
        self.folder, self.node = folder, node
        self.rules = node.part(RunningRecords).rules
        self.noted: list[tuple[str | None, bool]] = []

    async def use(self, text: str) -> None:
        (self.folder / "new.toml").write_text(text)
        found = self.rules.compiled([self.folder / "new.toml"])
        await asyncio.to_thread(self.rules.use, found, lambda: None, lambda *noted: self.noted.append(noted))

    def put(self, *values: float, key: str = "veh/veh-1/n") -> None:
        for value in values:
            self.node.publish(key, value, unit="1", sensor="s")

    def counters(self, name: str) -> dict[str, int]:
        counters = self.node.part(RunningRecords).node_view()["rules"].get(name, {})
        return {what: number for what, number in counters.items() if number}


@asynccontextmanager
async def exchanging(folder: Path, text: str, house: House | None = None) -> AsyncIterator[Exchanging]:
    (folder / "rules.toml").write_text(text)
    config = (house or House(folder)).config("veh-1").with_sections(
        RulesSection(files=(folder / "rules.toml",)),
        CurationRulesSection(rules=(CurationSection(name="all", keys="never"),)),
    )  # fmt: skip
    async with meshnode.open(config) as node:
        yield Exchanging(folder, node)


async def test_rule_that_both_say_keeps_its_window_and_one_that_changed_begins_anew(tmp_path: Path) -> None:
    """Two of three readings are in both windows: one reading more completes that of the rule that stayed."""
    async with exchanging(tmp_path, windows("same") + windows("other")) as here:
        here.put(1, 2)
        await here.use(windows("same") + windows("other", count=2))
        statistics = here.node.statistics()
        assert (statistics["rules_lost"], statistics["rules_taken"]) == (2, 4)
        here.put(3)
        assert here.counters("same") == {"taken": 3, "derived": 1}
        assert here.counters("other") == {"taken": 1}
        here.put(4)
        assert here.counters("other") == {"taken": 2, "derived": 1}
        assert here.node.statistics()["rules_taken"] == 8, "what was counted before still is"
        assert here.noted == [(None, False)] * 4, "two readings since, and two rules"
        await until(lambda: here.node.statistics()["outbox_issued"] == 2, "both are records")


async def test_recordings_of_a_rule_that_changed_are_counted_once(tmp_path: Path) -> None:
    """What the rule of before has recorded is not counted for the one of its name again, and its recording goes on."""
    text = """
[[rule]]
name = "brake"
keys = "veh/*/brake"
where = "value > 5.0"
output = { key = "veh/{node}/alert", unit = "1" }
recording = { keys = ["veh/*/n"], after_s = 60 }
"""
    async with exchanging(tmp_path, text) as here:
        here.put(9, key="veh/veh-1/brake")
        here.put(1)
        await here.use(text.replace("5.0", "6.0"))
        assert here.counters("brake") == {}
        here.put(2)
        assert here.counters("brake") == {"recorded": 1}
        statistics = here.node.statistics()
        assert (statistics["rules_recordings"], statistics["rules_recorded"]) == (1, 2)


async def test_trouble_with_the_model_of_a_rule_that_changed_is_over(tmp_path: Path) -> None:
    """The one of its name that has no model would never end it."""
    text = """
[[rule]]
name = "plates"
keys = "veh/*/n"
{}output = {{ key = "veh/{{node}}/plate", unit = "1" }}
"""
    async with exchanging(tmp_path, text.format('infer = { model = "nobody-has-it", input = "x" }\n')) as here:
        here.put(1)
        await until(here.node.troubles.current, "nobody has the model")
        await here.use(text.format(""))
        await until(lambda: not here.node.troubles.current(), lambda: str(here.node.troubles.current()))


async def test_answer_that_no_rule_waits_for_is_no_trouble() -> None:
    """A rule is gone while its model still computes: nobody would end the trouble."""
    troubles, taken, is_used = Troubles(), asyncio.Event(), False

    async def fails(*_: object, **__: object) -> None:
        raise InferenceError("it is broken")

    def take(*_: object) -> bool:
        taken.set()
        return is_used

    predictor = Predictor(fails, take, troubles)
    wanted = PredictionWanted("plates", 1, "plate", 1.0, "x", (), SECOND)
    for is_used in (False, True):
        taken.clear()
        predictor.begin(wanted)
        await taken.wait()
        assert bool(troubles.current()) == is_used
    await predictor.close()


async def test_closing_leaves_no_inference_and_no_question_behind() -> None:
    """A rule whose question is given up asks the next one that waits."""
    before, begun = asyncio.all_tasks(), asyncio.Event()
    wanted = PredictionWanted("plates", 1, "plate", 1.0, "x", (), SECOND)
    past = HistoryWanted("plates", 1, ("veh/**",), True, 0, 1, 5)

    async def never_ends(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    def ask_next(*_: object) -> bool:
        asyncio.get_running_loop().call_soon(predictor.begin, wanted)
        asyncio.get_running_loop().call_soon(recaller.begin, past)
        return True

    predictor = Predictor(never_ends, ask_next, Troubles())
    recaller = Recaller("veh-1", lambda _: Future(), lambda: 0, ask_next)
    predictor.begin(wanted)
    recaller.begin(past)
    await begun.wait()
    await predictor.close()
    await recaller.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_windows_of_rules_that_are_gone_are_not_restored_and_not_counted_twice(tmp_path: Path) -> None:
    """There and back again, within the second between two saves: what the file had of the first set is of no use."""
    house = House(tmp_path)
    async with exchanging(tmp_path, windows("same") + windows("other"), house) as here:
        state = here.node.config.node.state_dir / "rules.sqlite"
        here.put(1, 2)
        await until(lambda: len(_rows(state)) == 2, "windows are saved")
        await here.use(windows("same"))
        await here.use(windows("same") + windows("other"))
        here.put(3)
        assert here.node.statistics()["rules_lost"] == 2
    async with exchanging(tmp_path, windows("same") + windows("other"), house) as here:
        here.put(4, 5)
        assert here.counters("other") == {"taken": 2, "derived": 1}, "one and two are not in it"
        assert here.node.statistics().get("rules_lost", 0) == 0


def _rows(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT rule, row FROM windows").fetchall()


async def test_rules_listen_to_neighbours_from_the_exchange_on_and_take_each_reading_once(tmp_path: Path) -> None:
    """What only the rules of before wanted is asked of nobody any more."""
    house = House(tmp_path)
    async with exchanging(tmp_path, windows("own"), house) as here:  # noqa: SIM117 - the second needs the port
        async with meshnode.open(house.config("veh-2", here.node.port)) as other:
            await other.wait_for_peers(1)
            publisher = other.publisher("veh/veh-2/n", unit="1", sensor="s")
            assert publisher.put(1.0).queued == 0, "nobody has asked"
            both = windows("any", "veh/*/n", source="any") + windows("two", "veh/veh-2/**", source="any")
            await here.use(both)
            await until(lambda: publisher.put(2.0).queued, "the node asks")
            await until(lambda: here.counters("any").get("taken"), "it came")
            assert here.counters("any") == here.counters("two"), "once for each rule"
            assert {noted for noted in here.noted if noted[0]} == {("veh-2", False)}
            await here.use(windows("own"))
            await until(lambda: not publisher.put(3.0).queued, "it asks no more")


async def test_what_a_neighbour_makes_unpublishable_is_noted_as_its_own(tmp_path: Path) -> None:
    """One that invents keys could otherwise alone have every release of rules taken back."""
    house = House(tmp_path)
    text = """
[[rule]]
name = "copied"
keys = "veh/**"
source = "any"
by = "key"
output = {{ key = "{}/{{node}}/{{partition}}", unit = "1" }}
"""
    async with exchanging(tmp_path, windows("own"), house) as here:  # noqa: SIM117 - the second needs the port
        async with meshnode.open(house.config("veh-2", here.node.port)) as other:
            await other.wait_for_peers(1)
            await here.use(text.format("veh/" + "/".join(["x" * 20] * 4)))
            publisher = other.publisher("veh/veh-2/" + "/".join(["n" * 20] * 8), unit="1", sensor="s")
            await until(lambda: publisher.put(1.0).queued, "the node asks")
            await until(here.node.troubles.current, "its key is too long")
            assert set(here.noted) == {("veh-2", False), ("veh-2", True)}


async def test_exchange_that_fails_changes_nothing(tmp_path: Path) -> None:
    """The journal of releases may not be writable, and a name may be that of a rule of the configuration."""
    async with exchanging(tmp_path, windows("own")) as here:
        (tmp_path / "new.toml").write_text(windows("all"))
        with pytest.raises(LocalProtocolError, match="two curation rules are named 'all'"):
            here.rules.compiled([tmp_path / "new.toml"])
        (tmp_path / "new.toml").write_text(windows("new", source="any"))
        found = here.rules.compiled([tmp_path / "new.toml"])

        def full() -> None:
            raise LocalProtocolError("the disk is full")

        with pytest.raises(LocalProtocolError, match="the disk is full"):
            await asyncio.to_thread(here.rules.use, found, full, None)
        here.put(1, 2, 3)
        assert here.counters("own") == {"taken": 3, "derived": 1}
        assert here.counters("new") == {}


async def test_node_begins_with_its_own_rules_when_released_ones_have_the_name_of_another(tmp_path: Path) -> None:
    """Somebody gave a curation rule that name after the release was installed: the node must start all the same."""
    (tmp_path / "rules.toml").write_text(windows("own"))
    (tmp_path / "released.toml").write_text(windows("all"))
    config = House(tmp_path).config("veh-1").with_sections(
        RulesSection(files=(tmp_path / "rules.toml",)),
        CurationRulesSection(rules=(CurationSection(name="all", keys="never"),)),
    )  # fmt: skip
    assert [rule.name for rule in NodeRules(config).first(lambda: [tmp_path / "released.toml"])] == ["own"]


def test_doctor_finds_a_rule_with_the_name_of_a_curation_rule(tmp_path: Path) -> None:
    """A node does not start with it."""
    (tmp_path / "rules.toml").write_text(windows("all"))
    config = House(tmp_path).config("veh-1").with_sections(
        RulesSection(files=(tmp_path / "rules.toml",)),
        CurationRulesSection(rules=(CurationSection(name="all", keys="never"),)),
    )  # fmt: skip
    (finding,) = check_rules(config)
    assert (finding.status, "two curation rules are named 'all'" in str(finding)) == ("fail", True)


async def test_rules_that_may_need_more_than_the_node_allows_keep_it_from_starting(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(windows("large", count=60).replace("window", 'by = "key"\nwindow', 1))
    section = RulesSection(files=(tmp_path / "rules.toml",), max_mib=1)
    with pytest.raises(
        ConfigError, match=r"need [\d.]+ MiB of memory together, 'large' alone .* max_mib allows 1: allow"
    ):
        async with meshnode.open(House(tmp_path).config("veh-1").with_sections(section)):
            pass


def test_rules_of_a_release_need_the_table_of_releases(tmp_path: Path) -> None:
    """Nothing would ever come, and nobody would be told."""
    config = House(tmp_path).config("veh-1")
    with pytest.raises(SectionInvalid, match=r"rules\.release = 'traffic': needs \[releases\]: add the table, or use"):
        config.with_sections(RulesSection(release="traffic"))
    releases = ReleasesSection(root=tmp_path / "1.root.json", follow=("models/x",))
    config = config.with_sections(RulesSection(release="traffic"), releases)
    assert releases.followed(config) == ("models/x", "rules/traffic")
