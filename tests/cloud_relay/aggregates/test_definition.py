"""What a configuration says of aggregates, and which group a record belongs to."""

from pathlib import Path
from typing import Any

import pytest

from cloud_relay.aggregates.definition import (
    MAX_AGGREGATES,
    AggregateDefinition,
    stored_definition,
    untrusted_definitions,
)
from cloud_relay.aggregates.grouping import AggregateRecord, cell_of, group_of
from cloud_relay.config import load_config
from protocols.base.errors import ConfigError, LocalProtocolError
from protocols.base.limits import SECOND


def test_table_of_the_configuration_says_what_is_kept(tmp_path: Path) -> None:
    """All that a person can write, and what they need not write."""
    (tmp_path / "relay.toml").write_text(
        '[relay]\nid = "relay-1"\n[[aggregate]]\nname = "map"\nkey = "veh/*/speed"\nfield = "a.0"\nrule = "moving"\n'
        'by = ["origin", "key"]\ncell_deg = 0.01\nbucket = "10m"\npercentiles = [99.9, 50]\ngroups = 5\n'
        '[[aggregate]]\nname = "all"\nkey = "**"\n'
    )
    first, second = load_config(tmp_path / "relay.toml").aggregates
    assert first == AggregateDefinition(
        "map", "veh/*/speed", 600 * SECOND, ("a", "0"), "moving", ("key", "origin"), 100_000, (50, 99.9), 5
    )
    assert second == AggregateDefinition("all", "**", 3_600 * SECOND)
    assert stored_definition("map", first.identity, first.shown, 5) == first


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "A b"}, "aggregate.name is 'A b'"),
        ({"key": "a//b"}, "empty chunk"),
        ({"key": 7}, "key is '7'"),
        ({"bucket": "1y"}, "bucket is '1y'"),
        ({"bucket": "0s"}, "as in 10m"),
        ({"field": "a..b"}, "field is 'a..b'"),
        ({"field": "9" * 5_000}, "field is"),
        ({"by": ["cell"]}, "use some of key, rule, origin"),
        ({"by": ["key", "key"]}, "each once"),
        ({"cell_deg": 0.07}, "part of 180"),
        ({"cell_deg": 0.00001}, "at least 0.0001"),
        ({"cell_deg": float("nan")}, "cell_deg is 'nan'"),
        ({"cell_deg": True}, "cell_deg is 'True'"),
        ({"percentiles": [101]}, "from 0 to 100"),
        ({"percentiles": [float("nan")]}, "from 0 to 100"),
        ({"percentiles": list(range(17))}, "at most 16"),
        ({"groups": 0}, "groups is '0'"),
        ({"rule": ""}, "rule is ''"),
        ({"buckets": "1h"}, "did you mean 'bucket'"),
    ],
)
def test_wrong_value_is_named_with_the_way_out(changed: dict[str, Any], said: str) -> None:
    """Who mistypes one must find it without the source."""
    with pytest.raises(LocalProtocolError, match=said.replace("[", r"\[").replace("(", r"\(")):
        untrusted_definitions([{"name": "a", "key": "**"} | changed])


def test_aggregates_are_few_and_have_names_of_their_own(tmp_path: Path) -> None:
    """Each costs every record."""
    tables = [{"name": f"a{number}", "key": "**"} for number in range(MAX_AGGREGATES + 1)]
    with pytest.raises(LocalProtocolError, match="at most 32"):
        untrusted_definitions(tables)
    with pytest.raises(LocalProtocolError, match="two aggregates have the name 'a0'"):
        untrusted_definitions([tables[0], tables[0]])
    (tmp_path / "relay.toml").write_text('[relay]\nid = "relay-1"\n[aggregate]\nname = "a"\n')
    with pytest.raises(ConfigError, match=r"write \[\[aggregate\]\]"):
        load_config(tmp_path / "relay.toml")


@pytest.mark.parametrize(
    ("place", "corner"),
    [
        ((0.29, 0.57), (2_900_000, 5_700_000)),
        ((-0.29, -0.5700001), (-2_900_000, -5_800_000)),
        ((48.7, 11.4), (487_000_000, 114_000_000)),
        ((0.0, 180.0), (0, -1_800_000_000)),
        ((0.0, -180.0), (0, -1_800_000_000)),
        ((90.0, 77.0), (900_000_000, -1_800_000_000)),
        ((-90.0, 77.0), (-900_000_000, -1_800_000_000)),
    ],
)
def test_place_is_in_the_cell_that_begins_there(place: tuple[float, float], corner: tuple[int, int]) -> None:
    """Places of stations have few digits; the date line and the poles are places like others."""
    assert cell_of(*place, 100_000) == corner


def test_group_has_what_the_aggregate_is_by_and_the_unit_always() -> None:
    """A mean of metres and seconds means nothing."""
    record = AggregateRecord("v-1", "r", "veh/v-1/speed", "m/s", 48.7, 11.4, 7_205 * SECOND, 0, "1.5", b"")
    by_key = group_of(AggregateDefinition("a", "**", 3_600 * SECOND), record)
    assert by_key == (7_200 * SECOND, "veh/v-1/speed", "", "r", "m/s", 0, 0)
    by_cell = group_of(AggregateDefinition("a", "**", 60 * SECOND, by=("origin",), cell_e7=10_000_000), record)
    assert by_cell == (7_200 * SECOND, "", "v-1", "", "m/s", 480_000_000, 110_000_000)
