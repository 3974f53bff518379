"""``meshnode doctor``: what would keep a node from working, by name and with the way out, and no trace left."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.processes import free_port
from meshnode.cli.probes import multicast_returns
from tests.tools.node_fixture import RunningNode, meshnode, pair, prepare
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module", name="rsu")
def given_rsu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    for rsu, _ in pair(tmp_path_factory.mktemp("mesh")):
        yield rsu


def findings(config: Path) -> tuple[int, list[dict[str, str]]]:
    """Status and findings of the doctor."""
    ran = meshnode("doctor", "--json", config)
    assert "Traceback" not in ran.stderr
    report = json.loads(ran.stdout)
    assert report["healthy"] == (ran.returncode == 0)
    return ran.returncode, report["findings"]


def test_doctor_of_a_node_that_could_start_finds_no_failure(rsu: RunningNode, tmp_path: Path) -> None:
    """The last check before a node is driven away, and it tells a reachable seed by its certificate."""
    folder = rsu.config.parent.parent
    model = write_model(tmp_path / "m.onnx", [1], "Neg")
    tables = f'[models.neg]\npath = "{model}"\n[sensors.host]\ndriver = "host"\n'
    config = prepare(folder, "veh-6", "vehicle", tables, seeds=(rsu.port,))
    config.write_text(config.read_text().replace("mdns = false", 'interfaces = ["127.0.0.1"]'))
    status, found = findings(config)
    assert status == 0, found
    by_check = {entry["check"]: entry for entry in found}
    for check in ("config", "certificate", "state", "inbox", "http", "model", "sensor", "multicast", "seed"):
        assert by_check[check]["status"] == "ok", by_check[check]
    assert "rsu rsu-1" in by_check["seed"]["message"]
    assert not (config.parent / "state").exists(), "the doctor leaves no trace"
    text = meshnode("doctor", config)
    assert text.stdout.splitlines()[0].startswith("ok    config")
    assert text.stdout.splitlines()[-1].endswith("0 failures")


def test_doctor_tells_what_the_running_node_announces_and_when_it_has_no_network(tmp_path: Path) -> None:
    """It said that multicast works while the node had joined no interface, because it probed the host alone."""

    def beside(interfaces: str) -> tuple[int, dict[str, tuple[str, str]]]:
        tables = f"[http]\nport = {free_port()}\n"
        config = prepare(tmp_path, "veh-1", "vehicle", tables)
        config.write_text(config.read_text().replace("mdns = false", f"interfaces = [{interfaces}]"))
        with RunningNode(config) as node:
            status, found = findings(node.config)
        return status, {entry["check"]: (entry["status"], entry["message"]) for entry in found}

    status, found = beside('"127.0.0.1"')
    assert (status, found["discovery"][0]) == (0, "ok"), found
    assert found["discovery"][1].startswith("announces 127.0.0.1 on lo (127.0.0.1), last ")

    status, found = beside('"192.0.2.77"')
    assert (status, found["discovery"][0]) == (1, "fail"), found
    assert "no interface of this host that is up has the address 192.0.2.77" in found["discovery"][1]


def test_doctor_beside_the_running_node_takes_its_ports_and_folder_as_held(tmp_path: Path) -> None:
    """What a running node holds is not in its way."""
    with RunningNode(prepare(tmp_path, "veh-1", "vehicle", f"[http]\nport = {free_port()}\n")) as node:
        status, found = findings(node.config)
    assert status == 0, found
    held = {entry["check"] for entry in found if "in use by this node" in entry["message"]}
    assert held == {"state", "inbox", "http"}


def test_doctor_finds_what_would_keep_a_node_from_working(rsu: RunningNode, tmp_path: Path) -> None:
    """Each finding names the file or key and the way out; one broken thing must not hide another."""
    config = prepare(tmp_path, "veh-1", "vehicle", (
        f'[http]\nport = {rsu.http_port}\n[models.bad]\npath = "bad.onnx"\n[sensors.s]\ndriver = "hosst"\n'
        f'[relay]\naddress = "127.0.0.1:{rsu.port}"\n'
    ))  # fmt: skip
    (config.parent / "bad.onnx").write_text("no model")
    (config.parent / "state").write_text("not a folder")
    config.with_name("veh-1.key").chmod(0o644)
    status, found = findings(config)
    said = {entry["check"]: entry["message"] for entry in found if entry["status"] == "fail"}
    assert status == 1
    assert {"certificate", "state", "http", "model", "sensor"} <= set(said)
    assert "chmod 600" in said["certificate"]
    assert "[http]" in said["http"]
    assert "not an ONNX file" in said["model"]
    assert "did you mean 'host'?" in said["sensor"]


def test_doctor_tells_a_relay_that_is_away_from_one_that_is_wrong(rsu: RunningNode, tmp_path: Path) -> None:
    """A relay may be away, nothing is lost; a node at its address is a mistake."""
    folder = rsu.config.parent.parent

    def relay_finding(config: Path) -> dict[str, str]:
        return next(entry for entry in findings(config)[1] if entry["check"] == "relay")

    wrong = relay_finding(prepare(folder, "veh-7", "vehicle", f'[relay]\naddress = "127.0.0.1:{rsu.port}"\n'))
    assert (wrong["status"], "is rsu rsu-1" in wrong["message"]) == ("fail", True), wrong
    stranger = relay_finding(prepare(tmp_path, "veh-7", "vehicle", f'[relay]\naddress = "127.0.0.1:{rsu.port}"\n'))
    assert (stranger["status"], "does not trust" in stranger["message"]) == ("fail", True), stranger
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        away = relay_finding(prepare(folder, "veh-7", "vehicle", f'[relay]\naddress = "{address}"\n'))
    assert (away["status"], "outbox" in away["message"]) == ("warn", True), away


def test_doctor_of_a_broken_configuration_says_so_and_stops(tmp_path: Path) -> None:
    """Nothing else can be known then."""
    (tmp_path / "node.toml").write_text("[node]\nid = 7\n")
    status, found = findings(tmp_path / "node.toml")
    assert (status, [entry["check"] for entry in found]) == (1, ["config"])


def test_multicast_probe_on_an_address_of_another_host_fails() -> None:
    """A probe that always succeeds would send people looking elsewhere."""
    assert multicast_returns("192.0.2.1") is not None
    assert multicast_returns("127.0.0.1") is None
