"""Mistakes in a policy are told before anything leaves, and so is a policy that nobody can have meant."""

from pathlib import Path

import pytest

from meshnode.cli.additions import check_egress
from meshnode.config.parsing import SectionInvalid
from meshnode.loading import load
from meshnode.records.egress.section import AreaSection, EgressRulesSection, EgressSection, policy_of
from protocols.base.errors import ConfigError
from protocols.records.egress.area import Area
from protocols.records.egress.rules import EgressRule
from tests.tools.mesh_fixture import House

RULE = '[[egress]]\nname = "a"\nkeys = "veh/*/x"\n'
BOX = "{ south_deg = 48, west_deg = 11, north_deg = 49, east_deg = 12 }"


@pytest.fixture(scope="module", name="house")
def given_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ('[egress]\nname = "a"', "egress = {…}: is a table: write a list"),
        ('[[egress]]\nname = "my rule"\nkeys = "a"', "egress[0].name = 'my rule': is no name of an egress rule"),
        ('[[egress]]\nname = "a"\nkeys = "a//b"', "egress[0].keys = 'a//b': key expression"),
        (RULE + "cell_m = 5", "egress[0].cell_m = 5: is out of range: use 10 to"),
        (RULE + "time_s = 0", "egress[0].time_s = 0: is out of range"),
        (RULE + "min_count = 1", "egress[0].min_count = 1: is out of range"),
        (RULE + "fields = []", "egress[0].fields = []: is empty"),
        (RULE + 'pseudonym = "daily"', "egress[0].pseudonym = 'daily': is not known: did you mean 'day'?"),
        (RULE + "cover = [[0, 0, 1]]", "egress[0].cover[0] = [0.0, 0.0, 1.0]: is no box"),
        (RULE + "cover = [[0, 0.5, 1, 0.5]]", "[0, 0.5, 1, 0.5] is no box: use [left, top, right, bottom] from 0 to 1"),
        (RULE + "cover_field = ''", "egress[0].cover_field = '': is empty"),
        (RULE + "fields = ['a..b']", "'a..b' in fields names no field: write 'a', or 'a.b'"),
        (RULE + "drop = true\ncell_m = 500", "so the rule must have no cell_m"),
        (RULE + "drop_inside = { south_deg = 48 }", "egress[0].drop_inside.west_deg: is missing"),
        (RULE + f"drop_inside = {BOX.replace('49', '47')}", "egress[0].drop_inside: south 48.0, west 11.0, north 47.0"),
        (RULE + "cells_m = 5", "egress[0].cells_m = 5: is not a key of this table: did you mean 'cell_m'?"),
        (RULE + "relays = ['city']", "egress[0].relays = ['city']: can't be told"),
        (RULE + "relays = ['City!']", "egress[0].relays[0] = 'City!'"),
        (RULE + RULE, "egress[1].name = 'a': is used twice"),
        (
            '[[egress]]\nname = "all"\nkeys = "veh/**"\n' + RULE,
            "egress[1].keys = 'veh/*/x': never decides, because rule 'all' before it",
        ),
    ],
)
def test_mistake_is_named_with_its_value_and_the_way_out(house: House, tables: str, told: str) -> None:
    """A policy that is silently not what its author meant lets out what it should not."""
    with pytest.raises(ConfigError) as caught:
        load(house.file("veh-1", tables))
    assert told in str(caught.value)


TWO_RELAYS = """[[egress]]
name = "city"
keys = "veh/*/x"
relays = ["city", "county"]
cell_m = 500
[[egress]]
name = "maker"
keys = "veh/*/x"
relays = ["maker"]
"""


@pytest.mark.parametrize(
    ("relay", "names"), [("city", ["city"]), ("maker", ["maker"]), ("stranger", ["no_rule_is_for_this_relay"])]
)
def test_rules_for_other_relays_are_as_if_they_were_not_there(house: House, relay: str, names: list[str]) -> None:
    """One file for a fleet whose vehicles send to different ones. For a relay that nobody has thought of, nothing
    leaves."""
    config = load(house.file("veh-1", f'{TWO_RELAYS}[relay]\naddress = "127.0.0.1:7500"\nid = "{relay}"\n'))
    policy = policy_of(config)
    assert policy is not None
    assert [rule.name for rule in policy.rules] == names
    rule = policy.rule_for("veh/veh-1/x")
    assert rule is not None
    assert rule.drop == (relay == "stranger")


def test_rule_from_a_file_is_the_rule_of_the_gate(house: House) -> None:
    """Each key means what the reference says."""
    config = load(
        house.file(
            "veh-1",
            RULE + 'fields = ["b", "a"]\ncell_m = 500\ntime_s = 60\npseudonym = "hour"\nmin_count = 5\n'
            f"drop_inside = {BOX}\ndrop_outside = {BOX}\nstrip_pictures = true\ncover = [[0, 0, 1, 0.5]]\n"
            '[[egress]]\nname = "rest"\nkeys = "**"\ndrop = true\n',
        )
    )
    policy = policy_of(config)
    assert policy is not None
    area = Area(48.0, 11.0, 49.0, 12.0)
    assert policy.rules == (
        EgressRule("a", "veh/*/x", fields=frozenset({"a", "b"}), cell_m=500, time_s=60, pseudonym_s=3_600,
                   drop_inside=area, drop_outside=area, min_count=5, strip_pictures=True, cover=((0, 0, 1, 0.5),)),
        EgressRule("rest", "**", drop=True),
    )  # fmt: skip
    assert policy_of(load(house.file("veh-1"))) is None


def test_rules_made_in_python_are_checked_too() -> None:
    """And the message names the field."""
    with pytest.raises(SectionInvalid, match="use a west and an east that differ"):
        AreaSection(south_deg=0, west_deg=1, north_deg=1, east_deg=1)
    with pytest.raises(SectionInvalid, match="never decides"):
        EgressRulesSection(rules=(EgressSection(name="a", keys="**"), EgressSection(name="b", keys="x")))


RELAY = '[relay]\naddress = "127.0.0.1:7500"\n'
CHOSEN = '[[curation]]\nname = "speeds"\nkeys = "veh/*/speed"\n'


@pytest.mark.parametrize(
    ("tables", "status", "told"),
    [
        (RELAY, "warn", "records leave whole for the relay, with exact places, times and names"),
        (RELAY + CHOSEN + '[[egress]]\nname = "all"\nkeys = "**"\n', "ok", "is said by a policy with rules: 1"),
        (RELAY + CHOSEN + RULE, "warn", "records of the curation rule 'speeds' never leave"),
        (RELAY + CHOSEN + '[[egress]]\nname = "all"\nkeys = "**"\ndrop = true\n', "warn", "never leave"),
        (RELAY + 'infer = ["plate"]\n' + '[[egress]]\nname = "all"\nkeys = "**"\n', "warn", "past [[egress]]"),
        (CHOSEN, "", ""),
        ("", "", ""),
    ],
)
def test_doctor_tells_what_leaves_whole_and_what_never_leaves(
    house: House, tmp_path: Path, tables: str, status: str, told: str
) -> None:
    """Neither shows before somebody looks into the store of the relay."""
    findings = list(check_egress(load(house.file("veh-1", tables))))
    assert [finding.status for finding in findings] == ([status] if status else [])
    assert told in "".join(finding.message for finding in findings)
