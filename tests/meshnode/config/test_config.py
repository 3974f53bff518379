"""A wrong configuration is refused with every mistake named; a right one means what it says."""

import pickle
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnode.config.kinds import parse_address
from meshnode.config.loading import own_tables
from meshnode.config.parsing import Section, hints_of
from meshnode.config.reference import reference_page
from meshnode.config.sections import IdentitySection, MembershipSection, NodeConfig, NodeSection
from meshnode.http.section import HttpSection
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.links.transport import Address
from meshnode.loading import load, parts_with, sections_of
from meshnode.records.section import CurationRulesSection, OutboxSection, RelaySection
from meshnode.sensors.section import SensorSection, SensorsSection
from protocols.access import AccessRule
from protocols.base import limits
from protocols.base.errors import ConfigError
from protocols.base.ids import Role
from protocols.wire.readings import Position

SECTIONS = sections_of(parts_with())
TABLES: dict[str, type[Section]] = {**own_tables(), **{section.table: section for section in SECTIONS}}
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"

WHOLE = """
[node]
id = "rsu-1"
state_dir = "var"
position = { latitude_deg = 48.76, longitude_deg = 11, accuracy_m = 1.5, heading_deg = 90 }
clock_uncertainty_ms = 2.5
[listen]
host = "127.0.0.1"
port = 7400
advertise = ["192.0.2.7", "2001:db8::7"]
[discovery]
interfaces = ["127.0.0.1"]
seeds = ["127.0.0.1:7401", "[::1]:7402", "rsu-2.example.org:7403"]
[http]
port = 0
[membership]
heartbeat_interval_ms = 100
suspect_after_silence_ms = 500
[access]
rules = [{ role = "vehicle", verb = "publish", keys = "veh/{id}/**" }]
[models.plate]
path = "plate.onnx"
threads = 2
serve = false
[inference]
local = false
emulate_slowdown = 3
[sensors.traffic]
driver = "fcd"
path = "a.xml.gz"
speed = 2
[[curation]]
name = "hazards"
keys = "**/hazard"
source = "any"
priority = 7
[outbox]
max_mib = 8
[relay]
address = "relay.example.org:7500"
id = "relay-1"
[log]
level = "debug"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("rsu-1.crt", "rsu-1.key", "authority.crt", "plate.onnx"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))
    return str(caught.value)


def refusal_of(folder: Path, lines: str) -> str:
    """The refusal of an otherwise right file."""
    return refusal(folder, f'[node]\nid = "rsu-1"\n{lines}\n')


# --- right files ---------------------------------------------------------------------------------------------------
def test_load_two_lines_gives_the_documented_defaults(folder: Path) -> None:
    """A tutorial starts with two lines; the rest must be usable as it stands."""
    config = load(write(folder, '[node]\nid = "rsu-1"\n'))
    assert config.node.state_dir == folder / "state"
    assert config.identity.credentials.certificate == folder / "rsu-1.crt"
    assert config.identity.key == folder / "rsu-1.key"
    assert config.identity.authority == folder / "authority.crt"
    assert config.membership.heartbeat_interval_ms * limits.MS == limits.HEARTBEAT_INTERVAL_NS
    assert config.given(RelaySection) is None
    assert config.access.rules is None
    assert config.of(HttpSection).host == "127.0.0.1"
    assert config.of(OutboxSection).max_bytes == 256 * 1024 * 1024


def test_load_whole_file_parses_each_value_into_its_type(folder: Path) -> None:
    """Later code never parses again: ids, addresses, rules and positions arrive as such."""
    config = load(write(folder, WHOLE))
    assert config.node.position == Position(48.76, 11.0, 1.5, None, 90.0)
    assert isinstance(config.node.position.longitude_deg, float)
    assert config.node.state_dir == folder / "var"
    assert config.listen.advertise == ("192.0.2.7", "2001:db8::7")
    assert config.discovery.seeds == (
        Address("127.0.0.1", 7401),
        Address("::1", 7402),
        Address("rsu-2.example.org", 7403),
    )
    assert config.access.rules == (AccessRule(Role.VEHICLE, "publish", "veh/{id}/**"),)
    assert config.of(ModelsSection).models["plate"].path == folder / "plate.onnx"
    assert config.of(SensorsSection).sensors["traffic"].options == {"path": "a.xml.gz", "speed": 2}
    (rule,) = config.of(CurationRulesSection).rules
    assert (rule.name, rule.source) == ("hazards", "any")
    relay = config.given(RelaySection)
    assert relay is not None
    assert relay.address == Address("relay.example.org", 7500)
    assert config.of(InferenceSection).emulate_slowdown == 3.0


def test_load_relative_path_survives_a_change_of_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon changes its working folder; its outbox must stay where the file says."""
    write(folder, '[node]\nid = "rsu-1"\n')
    monkeypatch.chdir(folder)
    config = load("node.toml")
    assert config.node.state_dir == folder / "state"


def test_config_pickled_and_back_is_equal(folder: Path) -> None:
    """Processes are spawned, so their configuration crosses as bytes."""
    config = load(write(folder, WHOLE))
    assert pickle.loads(pickle.dumps(config)) == config


# --- wrong files ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("[http]\nport = 99999", "http.port = 99999: is out of range: use 0 to 65_535"),
        ('[http]\nport = "80"', "http.port = '80': is text: write a whole number"),
        ("[http]\nport = true", "http.port = true: is a truth value"),
        ("[http]\nport = 80.0", "http.port = 80.0: is a number: write a whole number"),
        ("[http]\nenabled = 1", "http.enabled = 1: is not true or false"),
        ('[http]\nhost = "0.0.0.0"', "http.host = '0.0.0.0': is reachable by others"),
        ('[http]\nhost = "example.org"', "http.host = 'example.org': is reachable by others"),
        ("[listen]\nhots = 1", "listen.hots = 1: is not a key of this table: did you mean 'host'?"),
        ("[listen]\nheartbeat_interval_ms = 1", "move it to [membership]"),
        ('[listen]\nadvertise = ["0.0.0.0"]', "listen.advertise[0] = '0.0.0.0': can't be dialled"),
        ('[listen]\nadvertise = "192.0.2.7"', "listen.advertise = '192.0.2.7': is text: write a list"),
        ('[listen]\nhost = "a b"', "listen.host = 'a b': is not a host"),
        ("[listne]\nport = 1", "listne = {…}: is not a key of this table: did you mean 'listen'?"),
        ("listen = 3", "node.listen = 3: is not a key of this table"),
        ("[membership]\nheartbeat_interval_ms = 700", "at least twice heartbeat_interval_ms (1400)"),
        ("[membership]\nsuspicion_min_ms = 9000", "is above suspicion_max_ms (2500)"),
        ('[discovery]\nseeds = ["rsu-2"]', "discovery.seeds[0] = 'rsu-2': has no port"),
        ('[discovery]\nseeds = ["::1:80"]', "discovery.seeds[0] = '::1:80': has a bare IPv6 address"),
        ('[discovery]\nmdns = false\ninterfaces = ["127.0.0.1"]', "discovery.interfaces: is given but mdns = false"),
        ('[models.plate]\npath = "plate.onnx"\noptimisation = "bassic"', "did you mean 'basic'?"),
        ('[models."a b"]\npath = "plate.onnx"', "models.'a b' = 'a b': is not a name"),
        ("[models]\nplate = 3", "models.plate = 3: is a whole number: write a table [models.plate]"),
        ("[sensors.gps]\nrate_hz = 3", "sensors.gps.driver: is missing"),
        ('[[curation]]\nname = "a"\nkeys = "a//b"', "curation[0].keys = 'a//b': key expression"),
        (
            '[[curation]]\nname = "a"\nkeys = "a"\n[[curation]]\nname = "a"\nkeys = "b"',
            "curation[1].name = 'a': is used",
        ),
        ('[curation]\nname = "a"', "curation = {…}: is a table: write a list"),
        ('[access]\nrules = [{ role = "car", verb = "publish", keys = "**" }]', "access.rules[0].role = 'car'"),
        ('[access]\nrules = [{ role = "rsu", verb = "publish", keys = "{ID}/a" }]', "only {id}, the node that asks"),
        ('[relay]\nid = "relay-1"', "relay.address: is missing"),
        ('[relay]\naddress = "r:1"\nid = "RELAY"', "relay.id = 'RELAY': node id"),
        ("[inference]\nemulate_slowdown = 0.5", "inference.emulate_slowdown = 0.5: is out of range: use 1 to 1_000"),
        ("[inference]\nemulate_slowdown = nan", "write a finite number"),
        ("position = { latitude_deg = 91, longitude_deg = 0, accuracy_m = 1 }", "node.position.latitude_deg = 91"),
        ("position = { latitude_deg = 9, accuracy_m = 1 }", "node.position.longitude_deg: is missing"),
        ("clock_uncertainty_ms = 2020-01-01", "is a date or time: write a finite number"),
        ("[log]\nlevel = 3", "log.level = 3: is not known: use one of 'debug'"),
        ('[identity]\nkey = "other.key"', "other.key does not exist: create it with 'meshnode mesh issue'"),
    ],
)
def test_load_one_mistake_names_file_key_value_and_way_out(folder: Path, lines: str, expected: str) -> None:
    """Whoever wrote the line must find and mend it without reading our source."""
    message = refusal_of(folder, lines)
    assert message.startswith(f"{folder / 'node.toml'}: ")
    assert expected in message
    assert "\n" not in message, "one mistake is reported as one"


def test_load_many_mistakes_are_reported_at_once_one_line_each(folder: Path) -> None:
    """Mending one mistake per start of a node in the field would take a day."""
    message = refusal(
        folder,
        'relais = 1\n[node]\nid = "RSU"\n[http]\nport = -1\nhost = 3\n[identity]\nkey = "q"\n[outbox]\nmax_mib = 0\n',
    )
    first, *lines = message.splitlines()
    assert first.endswith("node.toml: 6 problems")
    named = {line.split()[0] for line in lines}
    assert named == {"relais", "node.id", "http.port", "http.host", "identity.key", "outbox.max_mib"}


def test_load_without_node_asks_for_the_node_alone(folder: Path) -> None:
    """Defaults that hang on a missing id must not bury the one thing to do."""
    assert refusal(folder, "").endswith("node.toml: node: is missing: add a table [node]")
    assert "node.id: is missing: add it" in refusal(folder, "[node]\n")
    assert refusal(folder, "node = 3").endswith("node = 3: is a whole number: write a table [node]")


def test_load_missing_identity_files_are_named_with_their_defaults(tmp_path: Path) -> None:
    """The commonest first mistake: a file written before the certificates were issued."""
    message = refusal(tmp_path, '[node]\nid = "rsu-1"\n')
    for name in ("rsu-1.crt", "rsu-1.key", "authority.crt"):
        assert f"{tmp_path / name} does not exist: create it with 'meshnode mesh issue'" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"x = ", "is not valid TOML"),
        (b"[node]\nid = 'a'\nid = 'b'", "is not valid TOML"),
        (b"[node]\nid = '\xff'", "line 2 is not UTF-8 text"),
        (b"a = " + b"[" * 100_000, "is not valid TOML"),
        (b"# " + b"x" * 1024 * 1024, "is larger than 1,048,576 bytes"),
        (b"a = " + b"9" * 100_000, "is not valid TOML"),
        (b"\x00\x01\x02", "is not valid TOML"),
    ],
)
def test_load_not_toml_is_refused_in_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    """A wrong path or a broken download ends in a sentence, not in a traceback or a full journal."""
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert expected in message
    assert len(message) < 400 + len(str(path))


def test_load_no_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    """Both come from a mistyped command line."""
    with pytest.raises(ConfigError, match="does not exist: correct the path"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="is not a file"):
        load(tmp_path)


def test_load_thousands_of_mistakes_gives_a_bounded_error(folder: Path) -> None:
    """A data file renamed to .toml must not fill the journal."""
    message = refusal_of(folder, "\n".join(f'x{i} = "{"y" * 500}"' for i in range(2_000)))
    assert "and 1960 more" in message
    assert len(message) < 20_000


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_load_any_value_at_any_key_is_taken_or_refused(folder: Path, data: st.DataObject) -> None:
    """No value of a file, however odd, may end in anything but a configuration or a ``ConfigError``."""
    table = data.draw(st.sampled_from(sorted(TABLES)))
    keys = ["driver", "name", "keys", "path", "x"]
    keys += [key for table in TABLES.values() for section in (table, *rows_in(table)) for key in hints_of(section)]
    shape = data.draw(st.sampled_from(["[{}]", "[[{}]]", "[{}.a]"])).format(table)
    lines = "".join(
        f"{key} = {toml(data.draw(values))}\n"
        for key in data.draw(st.lists(st.sampled_from(sorted(set(keys))), unique=True, max_size=3))
    )
    text = f'{shape}\n{lines}\n[node]\nid = "rsu-1"\n' if table != "node" else f"{shape}\n{lines}"
    try:
        outcome: object = load(write(folder, text))
    except ConfigError as error:
        outcome = str(error)
    assert isinstance(outcome, NodeConfig) or "node.toml" in str(outcome)


def toml(value: object) -> str:
    """A drawn value in TOML's notation."""
    if isinstance(value, bool) or value is None:
        return str(bool(value)).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{toml(key)} = {toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value) + '"'
    return str(value)


@pytest.mark.parametrize(
    "text", ["", ":", "a:", ":1", "a:0", "a:65536", "a:٣", "[::1]", "a b:1", "::1:7400", "[a:1", "-:1"]
)
def test_parse_address_wrong_form_says_how_to_write_it(text: str) -> None:
    """Seeds and relays are typed by hand."""
    with pytest.raises(ValueError, match=r"write 'host:port'|put brackets"):
        parse_address(text)


# --- from Python ---------------------------------------------------------------------------------------------------
def test_sections_constructed_in_python_are_checked_alike(tmp_path: Path) -> None:
    """Embedders get the same guarantee as authors of files: what exists is valid."""
    config = NodeConfig(
        node=NodeSection(id="vehicle-1", state_dir=tmp_path),
        identity=IdentitySection.in_folder(tmp_path, "vehicle-1"),
        sections=(
            HttpSection(port=0),
            SensorsSection(sensors={"gps": SensorSection(driver="csv", options={"path": tmp_path})}),
        ),
    )
    assert config.identity.certificate == tmp_path / "vehicle-1.crt"
    with pytest.raises(ConfigError, match=r"HttpSection: 2 problems\n  host = .*\n  port = 70000"):
        HttpSection(host="::", port=70_000)
    with pytest.raises(ConfigError, match="use at least twice"):
        MembershipSection(heartbeat_interval_ms=1_000)
    with pytest.raises(ConfigError, match=r"position\.latitude_deg = 100"):
        NodeSection(id="a", position=Position(100.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="id = 'A B': node id"):
        NodeSection(id="A B")
    with pytest.raises(ConfigError, match="is text: give an instance of Path"):
        NodeSection(id="a", state_dir="state")
    with pytest.raises(AttributeError):
        OutboxSection().max_mib = 3


def test_section_error_survives_pickling() -> None:
    """A spawned process reports its failure to the parent as bytes."""
    with pytest.raises(ConfigError) as caught:
        HttpSection(port=-1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --- the reference page --------------------------------------------------------------------------------------------
def test_reference_page_is_what_the_declarations_make() -> None:
    """A page that differs from what is checked sends its readers wrong."""
    assert PAGE.read_text(encoding="utf-8") == reference_page(SECTIONS), (
        "run: python -m meshnode.cli.reference > docs/reference/configuration.md"
    )


def test_reference_page_names_every_key_of_every_table() -> None:
    """Each key can be found by searching the page for it."""
    page = reference_page(SECTIONS)
    for table, section in TABLES.items():
        assert f"[{table}]" in page or f"[{table}.<name>]" in page
        for rows in (section, *rows_in(section)):
            for key in rows.__struct_fields__:
                assert f"| `{key}` |" in page or key in (rows.free_keys, rows.listed), f"{table}.{key}"
    for key in (*Position.__struct_fields__, *AccessRule.__struct_fields__):
        assert f"| `{key}` |" in page, key


def rows_in(table: type[Section]) -> Iterator[type[Section]]:
    """The sections that stand in a table of tables."""
    for hint in hints_of(table).values():
        yield from sections_in(hint)


def sections_in(hint: Any) -> Iterator[type[Section]]:
    """The sections that an annotation speaks of."""
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
    for inner in get_args(hint):
        yield from sections_in(inner)


def test_reference_page_examples_are_right(folder: Path) -> None:
    """The first thing a reader does is to copy the example."""
    blocks = PAGE.read_text(encoding="utf-8").split("```")
    examples = [block.removeprefix("toml\n") for block in blocks if block.startswith("toml\n")]
    assert examples
    for example in examples:
        node = tomllib.loads(example)["node"]["id"]
        for name in (f"{node}.crt", f"{node}.key"):
            (folder / name).touch()
        assert load(write(folder, example)).node.id == node
    python = [block.removeprefix("python\n") for block in blocks if block.startswith("python\n")]
    assert python
    for example in python:
        exec(compile(example, "configuration.md", "exec"), {})
