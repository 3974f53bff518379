"""A real node with all files of the field at once: what is bad is counted and told, and the rest works."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, meshnode, prepare

FIELD = Path(__file__).parent / "field"
pytestmark = pytest.mark.processes

GOOD = {
    "bare": ('driver = "fcd"\nfile = "field/fcd/attributes_x_y_only.xml"\nvehicle = "car.0"\nrate = 100', 0),
    "clock": ('driver = "fcd"\nfile = "field/fcd/human_readable_time.xml"\nrate = 100', 0),
    "named": ('driver = "fcd"\nfile = "field/fcd/other_vehicle_invalid.xml"\nvehicle = "a"\nrate = 100', 0),
    "chosen": ('driver = "fcd"\nfile = "field/fcd/other_vehicle_invalid.xml"\nrate = 100', 2),
    "cut": ('driver = "fcd"\nfile = "field/fcd/cut_off.xml"\nvehicle = "a"\nrate = 100', 1),
    "comma": ('driver = "csv"\nfile = "field/csv/semicolons_decimal_comma.csv"\ndelimiter = ";"\ndecimal = ","', 0),
    "quoted": ('driver = "csv"\nfile = "field/csv/quoted_decimal_comma.csv"\ndecimal = ","', 0),
    "letters": ('driver = "csv"\nfile = "field/csv/latin1.csv"\nencoding = "latin-1"', 0),
    "blank": ('driver = "csv"\nfile = "field/csv/blank_rows.csv"\nrate = 100', 1),
    "camera": ('driver = "images"\nfolder = "field/images"\nloop = false\nrate_hz = 50.0', 1),
}
"""By sensor: its options, and how many samples it skips."""

BAD = {
    "metres": ('driver = "fcd"\nfile = "field/fcd/metres_that_pass_for_degrees.xml"', "--fcd-output.geo"),
    "table": ('driver = "fcd"\nfile = "field/fcd/sumo_output.csv"', "this is SUMO's CSV, but XML is wanted"),
    "xml": ('driver = "csv"\nfile = "field/fcd/cut_off.xml"', "driver = 'fcd'"),
    "semicolons": ('driver = "csv"\nfile = "field/csv/semicolons_decimal_comma.csv"', "set delimiter = ';'"),
    "commas": ('driver = "csv"\nfile = "field/csv/quoted_decimal_comma.csv"', "set decimal = ','"),
    "bytes": ('driver = "csv"\nfile = "field/csv/latin1.csv"', "line 2: it is not UTF-8"),
    "back": ('driver = "csv"\nfile = "field/csv/back_in_time.csv"', "from 1700000001.5 to 1700000001.0"),
}
"""By sensor: its options, and what helps."""


def test_node_with_all_files_of_the_field_uses_what_is_good_and_tells_what_is_bad(tmp_path: Path) -> None:
    """The doctor, the health, the statistics and the metrics have to agree, and the node has to be ready."""
    tables = "".join(f"[sensors.{name}]\n{options}\n" for name, (options, _) in (GOOD | BAD).items())
    config = prepare(tmp_path, "veh-1", "vehicle", tables)
    shutil.copytree(FIELD, config.parent / "field")
    told = json.loads(meshnode("doctor", "--json", config).stdout)["findings"]
    findings = [entry for entry in told if entry["check"] == "sensor"]
    for name, (_, helps) in BAD.items():
        [failure] = [each for each in findings if f"[sensors.{name}]" in each["message"]]
        assert failure["status"] == "fail"
        assert helps in failure["message"]
    assert [each["message"].partition(":")[0] for each in findings if each["status"] == "warn"] == ["chosen"]
    assert len([each for each in findings if each["status"] == "ok"]) == len(GOOD) - 1

    with RunningNode(config) as node:
        assert node.get("/readyz")["ready"] is True

        def ended() -> bool:
            states = {each["name"]: each["state"] for each in node.get("/v1/node")["sensors"]}
            return all(states[name] == "ended" for name in GOOD)

        eventually(ended, "all good sensors give all their samples")
        there = node.get("/v1/node")
        assert {each["name"]: each["samples_skipped"] for each in there["sensors"] if each["name"] in GOOD} == {
            name: skipped for name, (_, skipped) in GOOD.items()
        }
        samples = {each["name"]: each["samples"] for each in there["sensors"]}
        assert {name: samples[name] for name in ("cut", "comma", "blank", "camera")} == {
            "cut": 10, "comma": 2, "blank": 3, "camera": 2,
        }  # fmt: skip
        assert all(samples[name] == 0 for name in BAD)
        troubles = {each["name"]: each["why"] for each in node.get("/readyz")["troubles"] if each["part"] == "sensor"}
        assert set(troubles) == set(BAD)
        total = sum(skipped for _, skipped in GOOD.values())
        assert there["statistics"]["sensor_samples_skipped"] == total
        metrics = node.ask("GET", "/metrics")[2].decode()
        assert re.search(rf"^meshnode_sensor_samples_skipped_total {total}\.0$", metrics, re.MULTILINE)
    log = node.log.read_text()
    assert "sensor cut: 1 samples skipped, the last: trace field/fcd/cut_off.xml, line 23" in log.replace(
        f"{config.parent}/", ""
    )
    assert "images/truncated.jpg can't be read" in log
