"""Scenario files: what ships loads, what is saved loads again equal, and what is wrong is named with its place."""

import contextlib
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sims.errors import ScenarioError, TraceError
from sims.scenario.file import (
    FAULT_KINDS,
    Backbone,
    Cellular,
    Checks,
    Curation,
    Cut,
    ExpectedRecords,
    Fault,
    Fixed,
    Group,
    Inference,
    Mobility,
    Part,
    Radio,
    RandomFaults,
    Scenario,
    Spread,
    Trace,
    Traffic,
    check,
    dumps,
    load,
    loads,
    shipped,
    trace_path,
)
from sims.scenario.schema import struct_from
from sims.world.faults import plan

MINIMAL = """
name = "small"
description = "Two cars and a unit"
duration_s = 60

[[groups]]
name = "car"
count = 2
mobility = { kind = "fixed", points = [[0, 0], [20, 0]] }

[[groups]]
name = "rsu"
count = 1
role = "rsu"
mobility = { kind = "fixed", points = [[10, 5]] }
"""

TWO_OF_A_TRACE = "[[groups]]\nname = 'x'\ncount = 2\nmobility = { kind = 'trace', file = 'ingolstadt.fcd.xml.gz'"


def expect(text: str, *words: str) -> None:
    """The text is refused, and the message has all words."""
    with pytest.raises(ScenarioError) as caught:
        loads(MINIMAL + text)
    for word in words:
        assert word in str(caught.value)


# --- what ships ------------------------------------------------------------------------------------------------------
def test_shipped_scenarios_are_the_promised_ones() -> None:
    """The names stand in the documentation and in other people's scripts."""
    promised = {
        "intersection", "highway", "platoon", "grid-1000", "rsu-backbone", "tunnel", "partition-heal", "byzantine",
    }  # fmt: skip
    assert promised <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenario_loads_saves_and_loads_again_equal(name: str) -> None:
    """A saved run that is not the run it was saved from can't be repeated."""
    scenario = load(name)
    assert scenario.name == name
    assert scenario.folder == ""  # nothing of this computer goes into a saved run
    assert loads(dumps(scenario)) == scenario
    assert dumps(loads(dumps(scenario))) == dumps(scenario)


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenario_opens_with_what_it_shows(name: str) -> None:
    """Whoever opens the file has to learn from it what to look at."""
    text = (Path(loads.__code__.co_filename).parent / "shipped" / f"{name}.toml").read_text("utf-8")
    comment = text[: text.index("name = ")]
    assert comment.startswith("# ")
    assert "# Look at: " in comment


@pytest.mark.parametrize("seed", range(20))
def test_tape_of_random_faults_is_a_scenario_again(seed: int) -> None:
    """A failing seed is saved with its faults written out; the rules must not refuse what was drawn."""
    scenario = load("partition-heal")
    taped = replace(scenario, faults=plan(scenario, seed), random_faults=None)
    assert loads(dumps(taped)) == taped


def test_scenario_saved_to_json_is_loaded_by_its_path(tmp_path: Path) -> None:
    """Run bundles are files."""
    file = tmp_path / "run.json"
    scenario = load("pair")
    file.write_text(dumps(scenario))
    assert load(file) == replace(scenario, folder=str(tmp_path))


def test_members_of_a_group_and_of_a_node_are_names() -> None:
    """Faults name either."""
    scenario = loads(MINIMAL)
    assert scenario.names == ["car-0", "car-1", "rsu-0"]
    assert scenario.members("car") == ["car-0", "car-1"]
    assert scenario.members("car-1") == ["car-1"]
    with pytest.raises(ScenarioError, match="did you mean 'car-1'"):
        scenario.members("carr-1")


# --- the reference ---------------------------------------------------------------------------------------------------
REFERENCE = (Path(__file__).resolve().parents[3] / "docs/reference/scenarios.md").read_text("utf-8")
SECTIONS: list[tuple[str, type[Part]]] = [
    ("## Top level", Scenario), ("## `[[groups]]`", Group), ("## `[radio]`", Radio), ("## `[cellular]`", Cellular),
    ("## `[[backbone]]`", Backbone), ("## `[curation]`", Curation),
    ("### `[[curation.expected]]`", ExpectedRecords), ("## `[[traffic]]`", Traffic), ("## `[[inference]]`", Inference),
    ("### `cuts`", Cut), ("## `[[gossip]]`", Spread), ("## `[[faults]]`", Fault),
    ("## `[random_faults]`", RandomFaults), ("## `[checks]`", Checks),
    *((f"**`{kind.__struct_config__.tag}`**", kind) for kind in get_args(Mobility)),
]  # fmt: skip


@pytest.mark.parametrize(("heading", "part"), SECTIONS, ids=[part.__name__ for _, part in SECTIONS])
def test_reference_has_every_key_with_its_default(heading: str, part: type[Part]) -> None:
    """People write scenarios by that page; a key that it lacks is as good as missing."""
    table = REFERENCE[REFERENCE.index(heading) :].partition("|---|---|---|\n")[2].partition("\n\n")[0]
    rows = {row.split("`")[1]: row.split(" | ")[1] for row in table.splitlines()}
    assert list(rows) == list(part.__struct_fields__)
    for field in msgspec.structs.fields(part):
        if field.required:
            assert rows[field.name] == "required"
        elif field.default not in ((), None, "") and not isinstance(field.default, Part):
            stated = msgspec.json.decode(rows[field.name].strip("`"))
            assert stated == msgspec.json.decode(msgspec.json.encode(field.default)), field.name


def test_reference_lists_every_fault_and_every_scenario_that_ships() -> None:
    """As for the keys."""
    for name in (*FAULT_KINDS, *shipped()):
        assert f"\n| `{name}` | " in REFERENCE
    for name in shipped():
        scenario = load(name)
        row = f"| `{name}` | {len(scenario.names)} | {scenario.duration_s:g} | {scenario.description} |"
        assert row in REFERENCE


# --- files -----------------------------------------------------------------------------------------------------------
def test_load_of_a_misspelt_shipped_name_names_the_nearest() -> None:
    """The first slip of a newcomer."""
    with pytest.raises(ScenarioError, match=r"'intersecton' is neither .* did you mean 'intersection'\?"):
        load("intersecton")


def test_load_of_a_missing_file_says_so(tmp_path: Path) -> None:
    """A path is not a name."""
    with pytest.raises(ScenarioError, match=r"none\.toml can't be read: No such file"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = 3\nx y\n", "it is not TOML: .*line 2"),
        (b"a = " + b"[" * 100_000, "it is nested too deeply"),
        (b'{"a": ' + b"[" * 100_000, "it is nested too deeply"),
        (b'{"name": ', "it is not JSON"),
        (b"[1, 2]\n", "TOML"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"#" * (4 * 1024 * 1024 + 1), "more than 4194304 bytes"),
        (b'name = "a"\n', ": missing required field `description`"),
    ],
)
def test_load_of_something_else_names_the_file(content: bytes, says: str, tmp_path: Path) -> None:
    """What is dropped in by mistake must not show a traceback, nor take all memory."""
    file = tmp_path / "odd.toml"
    file.write_bytes(content)
    with pytest.raises(ScenarioError, match=rf"odd\.toml.*{says}"):
        load(file)


def test_trace_is_looked_for_beside_the_scenario_first(tmp_path: Path) -> None:
    """An own trace wins over one of the same name that ships."""
    text = (
        MINIMAL + '[[groups]]\nname = "t"\ncount = 1\nmobility = { kind = "trace", file = "ingolstadt.fcd.xml.gz" }\n'
    )
    (tmp_path / "s.toml").write_text(text)
    scenario = load(tmp_path / "s.toml")
    trace = scenario.groups[-1].mobility
    assert isinstance(trace, Trace)
    assert trace_path(scenario, trace).parent != tmp_path
    (tmp_path / "ingolstadt.fcd.xml.gz").touch()
    assert trace_path(scenario, trace).parent == tmp_path


def test_missing_trace_is_named_with_those_that_ship(tmp_path: Path) -> None:
    """It must be found out before a run of an hour starts."""
    text = MINIMAL + '[[groups]]\nname = "t"\ncount = 1\nmobility = { kind = "trace", file = "munich.xml" }\n'
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(TraceError, match=rf"no trace 'munich.xml' in {re.escape(str(tmp_path))}.*ingolstadt"):
        load(tmp_path / "s.toml")


# --- names and values ------------------------------------------------------------------------------------------------
def test_key_with_a_typo_is_refused_with_the_nearest() -> None:
    """It would silently be the default."""
    expect("[radio]\nenviroment = 'highway'\n", "radio.enviroment is unknown: did you mean 'environment'?")


def test_key_of_another_mobility_is_refused() -> None:
    """A union knows more keys than its member."""
    expect(
        '[[groups]]\nname = "x"\ncount = 1\nmobility = { kind = "platoon", spacing_m = 3 }\n',
        "groups[2].mobility.spacing_m is unknown",
        "gap_m",
    )


def test_mobility_without_or_with_unknown_kind_is_refused() -> None:
    """Both are the same slip."""
    expect('[[groups]]\nname = "x"\ncount = 1\nmobility = { gap_m = 3 }\n', "groups[2].mobility has no 'kind'", "trace")
    expect(
        '[[groups]]\nname = "x"\ncount = 1\nmobility = { kind = "street" }\n',
        "groups[2].mobility.kind is 'street': did you mean 'streets'?",
    )


def test_kind_that_is_no_text_is_refused() -> None:
    """Found by the test below: a list can't be looked up among names."""
    expect('[[groups]]\nname = "x"\ncount = 1\nmobility = { kind = [] }\n', "groups[2].mobility.kind is []: known are")


def test_unknown_fault_is_refused_with_the_nearest() -> None:
    """A misspelt fault that never happens would be a false proof."""
    expect('[[faults]]\nkind = "crush"\nat_s = 3\n', "faults[0].kind is 'crush': did you mean 'crash'?")


def test_section_of_an_older_version_is_refused_with_its_new_name() -> None:
    """The list of all sections does not say which of them the old one became."""
    expect("[swarm]\nuntil_s = 20\n", "swarm is unknown: it is called random_faults now")


def test_unknown_kind_among_random_faults_is_refused() -> None:
    """As for a fault."""
    text = '[random_faults]\nuntil_s = 20\nkinds = ["crash", "cloc-jump"]\n'
    expect(text, "random_faults.kinds[1]", "did you mean 'clock-jump'?")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[radio]\nd50_m = -3\n", "radio.d50_m is -3: "),
        ("[radio]\nrange_m = 0\n", "radio.range_m is 0: "),
        ("[radio]\nloss = 1.5\n", "radio.loss is 1.5: expected `float` <= 1.0"),
        ("[radio]\nlatency_ms = nan\n", "radio.latency_ms is nan: expected a finite number"),
        (f"[radio]\nlatency_ms = 1{'0' * 400}\n", "radio.latency_ms is 1000"),
        ("[radio]\nlatency_ms = inf\n", "radio.latency_ms is inf: expected a finite number"),
        ("[cellular]\nholes = [{ x_m = 0, y_m = 0, radius_m = -1 }]\n", "cellular.holes[0].radius_m is -1: "),
        ("[[backbone]]\ngroups = ['rsu', 'car']\nlatency_ms = -1\n", "backbone[0].latency_ms is -1: "),
        ("[[traffic]]\ngroup = 'car'\nrate_hz = 0\n", "traffic[0].rate_hz is 0: "),
        ("[[traffic]]\ngroup = 'car'\ntopic = 'a/b'\n", "traffic[0].topic is 'a/b': "),
        ("[[traffic]]\ngroup = 'car'\nhops = 9\n", "traffic[0].hops is 9: "),
        ("[[faults]]\nkind = 'crash'\nat_s = -1\nnodes = ['car']\n", "faults[0].at_s is -1: expected `float` >= 0.0"),
        ("[[faults]]\nkind = 'crash'\nat_s = 'soon'\n", "faults[0].at_s is 'soon': expected `float`, got `str`"),
        ("[[faults]]\nkind = 'crash'\n", "faults[0]: missing required field `at_s`"),
        ("[[groups]]\nname = 'x'\ncount = 0\nmobility = { kind = 'platoon' }\n", "groups[2].count is 0: "),
        ("[[groups]]\nname = 'X y'\ncount = 1\nmobility = { kind = 'platoon' }\n", "groups[2].name is 'X y': "),
        (
            "[[groups]]\nname = 'x'\ncount = 1\nmobility = { kind = 'lattice', spacing_m = -5 }\n",
            "groups[2].mobility.spacing_m is -5: ",
        ),
        (
            "[[groups]]\nname = 'x'\ncount = 1\nmobility = { kind = 'fixed', points = [[0, inf]] }\n",
            "groups[2].mobility.points[0][1] is inf: expected a finite number",
        ),
        (
            "[[groups]]\nname = 'x'\ncount = 1\nmobility = { kind = 'highway', spread = 1.0 }\n",
            "groups[2].mobility.spread is 1.0: ",
        ),
    ],
)
def test_value_out_of_bounds_is_refused_with_its_place(text: str, place: str) -> None:
    """Negative distances, shares above one, numbers that are none: none of them may reach a formula."""
    expect(text, place)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("crash"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "at_s", "x"]), inner),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.data())
def test_scenario_with_anything_anywhere_is_judged_and_never_crashes(data: st.DataObject) -> None:
    """Files are written by hand and by other people's programs; each gets a message, none a traceback."""
    table = msgspec.json.decode(dumps(data.draw(st.sampled_from(LOADED))))
    at: Any = table
    while True:
        step = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if not at[step] or not isinstance(at[step], dict | list) or data.draw(st.booleans()):
            break
        at = at[step]
    at[step] = data.draw(JUNK)
    with contextlib.suppress(ScenarioError, TraceError):
        check(struct_from(table, Scenario))


LOADED = [load(name) for name in ("partition-heal", "byzantine", "intersection", "tunnel", "split")]


HOSTS = "[[groups]]\nname = 'host'\ncount = 1\naccept_stages = true\nmobility = { kind = 'platoon' }\n"


@pytest.mark.parametrize(
    ("work", "says"),
    [
        ("cuts = [{ share = 1.0, size_bytes = 9 }]", "inference[0].cuts[0].share is 1.0: expected `float` < 1.0"),
        ("cuts = [{ share = 0.5, size_bytes = 0 }]", "inference[0].cuts[0].size_bytes is 0: "),
        ("cuts = [{ share = 0.5 }]", "inference[0].cuts[0]: missing required field `size_bytes`"),
        (
            "cuts = [{ share = 0.5, size_bytes = 9 }, { share = 0.5, size_bytes = 9 }]",
            "inference[0].cuts[1].share is 0.5, not above 0.5",
        ),
        (
            "cuts = [{ share = 0.1, size_bytes = 9, weight_bytes = 5 }, { share = 0.5, size_bytes = 9 }]",
            "inference[0].cuts[1].weight_bytes is 0, less than 5",
        ),
        ("cuts = [{ share = 0.5, size_bytes = 9, weight_bytes = 5 }]", "inference[0].weight_bytes is 0, less than 5"),
        ("cuts = [{ share = 0.5, size_bytes = 9 }]\nsplit = 'lateny'", "split is 'lateny': did you mean 'latency'?"),
        ("cuts = [{ share = 0.5, size_bytes = 9 }]\noffered_by = ['rsu']", "inference[0].offered_by lacks 'car'"),
        ("split = 'throughput'", "inference[0].split means nothing to a model without cuts"),
        ("weight_bytes = 3", "inference[0].weight_bytes means nothing to a model without cuts"),
        ("rows = 2\ncuts = [{ share = 0.5, size_bytes = 9 }]", "rows is 2, but a model with cuts takes one"),
        ("rows = 1024\ninput_bytes = 1_000_000", "inference[0].rows is 1024: a batch has 64000000 bytes at most"),
        ("", "groups[2].accept_stages is true, but no [[inference]] has cuts"),
    ],
)
def test_model_that_can_not_be_cut_as_described_is_refused(work: str, says: str) -> None:
    """A model that is never split would look like splitting that gains nothing."""
    expect(f"{HOSTS}[[inference]]\ngroup = 'car'\n{work}\n", says)


def test_split_that_no_neighbour_could_take_part_in_is_refused_unless_it_is_switched_off() -> None:
    """As above; off, so that a sweep can compare."""
    work = "[[inference]]\ngroup = 'car'\ncuts = [{ share = 0.5, size_bytes = 9 }]\n"
    expect(work, "inference[0].split is 'latency', but no neighbour runs stages")
    loads(f"{MINIMAL}{work}split = 'off'\n")
    loads(f"{MINIMAL}{HOSTS}{work}")


# --- what belongs together -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[[groups]]\nname = 'car'\ncount = 1\nmobility = { kind = 'platoon' }\n",
            "groups[2].name is 'car', which another group has",
        ),
        (
            "[[groups]]\nname = 'car-1'\ncount = 1\nmobility = { kind = 'platoon' }\n",
            "groups[2].name is 'car-1', which a node of group 'car' has",
        ),
        (
            "[[groups]]\nname = 'x'\ncount = 3\nmobility = { kind = 'fixed', points = [[0, 0]] }\n",
            "groups[2].mobility.points are 1, but the group has count = 3",
        ),
        (
            "[[groups]]\nname = 'x'\ncount = 10\nstagger_s = 10\nmobility = { kind = 'platoon' }\n",
            "groups[2]: its last node starts at 90 s, beyond duration_s = 60",
        ),
        (
            "[[groups]]\nname = 'x'\ncount = 20000\nmobility = { kind = 'platoon' }\n",
            "groups have 20003 nodes together: 20000 are the most",
        ),
        (
            "[[groups]]\nname = 'x'\ncount = 1\nmobility = { kind = 'waypoints', points = [[0, 0, 0], [0, 5, 0]] }\n",
            "groups[2].mobility.points[1] is at 0 s, not after the one before",
        ),
        (
            "[[groups]]\nname = 'x'\ncount = 1\nmobility = { kind = 'waypoints', points = [[0, 0, 0], [1, 500, 0]] }\n",
            "groups[2].mobility.points[1] is 500 m away, 1 s later",
        ),
        (
            f"{TWO_OF_A_TRACE}, vehicles = ['a'] }}\n",
            "groups[2].mobility.vehicles are 1, but the group has count = 2",
        ),
        (
            f"{TWO_OF_A_TRACE}, vehicles = ['a', 'a'] }}\n",
            "groups[2].mobility.vehicles has 'a' more than once",
        ),
        ("[radio]\nmodel = 'ideal'\nd50_m = 100\n", "radio.model is 'ideal', which has no d50_m"),
        ("[[backbone]]\ngroups = ['rsus', 'car']\n", "backbone[0].groups is 'rsus', no group: did you mean 'rsu'?"),
        ("[[backbone]]\ngroups = ['rsu']\n", "backbone[0].groups have 1 node: a wire needs two"),
        ("[[traffic]]\ngroup = 'cars'\n", "traffic[0].group is 'cars', no group: did you mean 'car'?"),
        ("[[traffic]]\ngroup = 'car'\nto = ['car-0']\n", "traffic[0].to is 'car-0', no group"),
        ("[[inference]]\ngroup = 'bus'\n", "inference[0].group is 'bus', no group: "),
        ("[[inference]]\ngroup = 'car'\noffered_by = ['r']\n", "inference[0].offered_by is 'r', no group: "),
        ("[[gossip]]\nat_s = 3\nauthor = 'car'\n", "gossip[0].author is 'car', no node: did you mean 'car-"),
        ("[[gossip]]\nat_s = 61\nauthor = 'car-0'\n", "gossip[0].at_s is 61, beyond duration_s = 60"),
        (
            "[[gossip]]\nat_s = 3\nauthor = 'car-0'\nsize_bytes = 432\n",
            "gossip[0].size_bytes is 432: beside the certificate of 'car-0' an entry has room for 431",
        ),
        ("[[faults]]\nkind = 'crash'\nat_s = 3\n", "faults[0].nodes is (): a 'crash' needs some"),
        (
            "[[faults]]\nkind = 'crash'\nat_s = 3\nnodes = ['cra-0']\n",
            "faults[0].nodes: nobody is called 'cra-0': did you mean 'car-0'?",
        ),
        (
            "[[faults]]\nkind = 'clog'\nat_s = 3\nnodes = ['car-0']\nothers = ['buss']\n",
            "faults[0].others: nobody is called 'buss'",
        ),
        (
            "[[faults]]\nkind = 'partition'\nat_s = 3\nnodes = ['car-0']\nothers = ['car']\n",
            "faults[0].others: 'car-0' is on both sides",
        ),
        (
            "[[faults]]\nkind = 'partition'\nat_s = 3\nnodes = ['car', 'rsu']\n",
            "faults[0].nodes are all there are",
        ),
        (
            "[[faults]]\nkind = 'crash'\nat_s = 3\nnodes = ['car']\ndelay_ms = 20\n",
            "faults[0].delay_ms means nothing to a 'crash': leave it out (it is for clog)",
        ),
        (
            "[[faults]]\nkind = 'crash'\nat_s = 60\nnodes = ['car']\n",
            "faults[0] is from 60 to 60 s, beyond duration_s = 60",
        ),
        (
            "[[faults]]\nkind = 'crash'\nat_s = 30\nfor_s = 31\nnodes = ['car']\n",
            "faults[0] is from 30 to 61 s, beyond duration_s = 60",
        ),
        (
            "[[faults]]\nkind = 'crash'\nat_s = 30\nfor_s = 20\nnodes = ['car']\n",
            "faults[0] ends at 50 s; with checks.settle_s = 15 nothing is judged until 65 s",
        ),
        ("[[faults]]\nkind = 'relay-outage'\nat_s = 3\n", "faults[0] is a 'relay-outage', but no group has relay"),
        (
            "[[faults]]\nkind = 'false-load'\nat_s = 3\nnodes = ['car']\n",
            "faults[0] is a 'false-load', but nobody asks for work",
        ),
        ("[random_faults]\nkinds = ['relay-outage']\nuntil_s = 20\n", "kinds[0] is a 'relay-outage', but no group"),
        ("[random_faults]\nkinds = ['crash']\nuntil_s = 4\n", "random_faults.until_s is 4, not after from_s = 5"),
        ("[random_faults]\nkinds = ['crash']\nuntil_s = 50\n", "until_s is at 50 s; with checks.settle_s = 15"),
        ("[random_faults]\nkinds = []\nuntil_s = 20\n", "random_faults.kinds is []"),
    ],
)
def test_things_that_do_not_belong_together_are_refused(text: str, says: str) -> None:
    """What never happens, or can't be judged, would pass for a proof."""
    expect(text, says)


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_fault_of_each_kind_can_be_written(kind: str) -> None:
    """The rules must leave room for all of them."""
    nodes = "" if kind == "relay-outage" else "nodes = ['car-0']\n"
    text = MINIMAL.replace("count = 2", "count = 2\nrelay = true")
    text += f"[[inference]]\ngroup = 'car'\n[[faults]]\nkind = '{kind}'\nat_s = 3\nfor_s = 5\n{nodes}"
    assert loads(text).faults[0].kind == kind


def test_scenario_made_by_a_program_is_judged_by_the_same_rules() -> None:
    """Sweeps and the shrinker change scenarios without a file."""
    car = Group("car", 1, Fixed(((0.0, 0.0),)))
    scenario = Scenario("made", "by a program", 30.0, (car,))
    check(scenario)
    with pytest.raises(ScenarioError, match="nobody is called 'bus'"):
        check(replace(scenario, faults=(Fault("crash", 3.0, nodes=("bus",)),)))


def test_scenario_can_not_be_changed() -> None:
    """Two harnesses and a report read the same object."""
    scenario = load("pair")
    with pytest.raises(AttributeError):
        scenario.duration_s = 3.0  # type: ignore[misc]
    assert msgspec.structs.replace(scenario, duration_s=3.0) != scenario
