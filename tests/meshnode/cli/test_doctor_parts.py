"""The doctor names each part that does not work: by its own checks before a node runs, and then by the node's words."""

import json
from pathlib import Path

import pytest

from demo.processes import free_port
from meshnode.cli import additions, checks
from meshnode.loading import load
from meshnode.models import cutting
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, meshnode, prepare
from tests.tools.tiny_onnx import write_model

pytestmark = pytest.mark.processes


def found(config: Path) -> set[tuple[str, str]]:
    """Check and status of each finding that is not ok."""
    ran = meshnode("doctor", "--json", config)
    assert "Traceback" not in ran.stderr, ran.stderr
    return {(f["check"], f["status"]) for f in json.loads(ran.stdout)["findings"] if f["status"] != "ok"}


def test_doctor_names_every_part_that_does_not_work_before_and_while_the_node_runs(tmp_path: Path) -> None:
    """Whoever is called at night has the doctor and nothing else; one broken part must not hide another."""
    tables = (
        f'[http]\nport = {free_port()}\n[local]\nsocket = "taken"\n[[curation]]\nname = "all"\nkeys = "rsu/**"\n'
        '[models.plate]\npath = "absent.onnx"\n[sensors.trace]\ndriver = "csv"\nfile = "absent.csv"\n'
    )
    config = prepare(tmp_path, "rsu-1", "rsu", tables)
    state = config.parent / "state"
    state.mkdir()
    (state / "outbox.sqlite").write_bytes(b"not a database" * 1_000)
    (state / "taken").write_text("a file of somebody")
    bad = {("outbox", "fail"), ("local", "fail"), ("model", "fail"), ("sensor", "fail")}
    assert bad <= found(config)
    assert (state / "outbox.sqlite").read_bytes().startswith(b"not a database"), "the doctor changes nothing"
    certificate = config.with_name("rsu-1.crt")
    good = certificate.read_bytes()
    with RunningNode(config) as node:
        assert {trouble["part"] for trouble in node.get("/readyz")["troubles"]} == {check for check, _ in bad}
        assert bad <= found(config)
        certificate.write_bytes(good[:100])
        eventually(lambda: "certificate" in str(node.get("/readyz")["troubles"]), "it has looked at its certificate")
        assert ("certificate", "fail") in found(config)
        certificate.write_bytes(good)
        eventually(lambda: "certificate" not in str(node.get("/readyz")["troubles"]), "and again")
        assert ("certificate", "fail") not in found(config)
    after = found(config)
    assert ("outbox", "warn") in after, "the damaged file is there to be looked into"
    assert ("outbox", "fail") not in after, "and a new outbox is in use"


def test_doctor_says_which_packages_a_split_model_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is easily forgotten, and the node runs without it: whole, if it may."""
    model = write_model(tmp_path / "work.onnx", [4, 4], "MatMul", repeat=3)
    tables = f'[models.a]\npath = "{model}"\nsplit = "latency"\n[models.b]\npath = "{model}"\nsplit = "latency"\n'
    config = load(prepare(tmp_path, "veh-1", "vehicle", f"{tables}whole = false\n"))
    assert [finding.status for finding in checks._models(config)] == ["ok", "ok"]
    monkeypatch.setattr(cutting, "can_cut", lambda: False)
    lacking = {finding.message[0]: finding for finding in checks._models(config) if "[split]" in finding.message}
    assert {name: finding.status for name, finding in lacking.items()} == {"a": "warn", "b": "fail"}


def test_doctor_compiles_rules_and_looks_for_the_programs_of_functions(tmp_path: Path) -> None:
    """A node with a broken rule does not start: better to know before."""
    tables = (
        '[rules]\nfiles = ["rules.toml"]\n[[function]]\nname = "sign"\nkeys = "a"\nrun = ["./sign"]\n'
        '[[function]]\nname = "log"\nkeys = "a"\nrun = ["cat"]\n'
    )
    place = tmp_path / "rsu-1"
    place.mkdir(exist_ok=True)
    (place / "rules.toml").touch()
    config_file = prepare(tmp_path, "rsu-1", "rsu", tables)
    rules = config_file.parent / "rules.toml"
    text = (
        '[[rule]]\nname = "mean speed"\nkeys = "a"\nwindow = { size_s = 1 }\ncompute = ["mean"]\n'
        'output = { key = "rsu/{node}/x", unit = "1" }\n'
    )
    rules.write_text(text.replace('mean"]', 'median"]'))
    config = load(config_file)
    (broken,) = additions.check_rules(config)
    assert (broken.status, "'median' is not a function" in broken.message) == ("fail", True)
    rules.write_text(text)
    (good,) = additions.check_rules(config)
    assert (good.status, good.message.startswith("mean speed; at most ")) == ("ok", True)
    assert [finding.status for finding in additions.check_functions(config, config_file.parent)] == ["fail", "ok"]
    sign = config_file.parent / "sign"
    sign.write_text("#!/bin/sh\n")
    sign.chmod(0o755)
    assert [finding.status for finding in additions.check_functions(config, config_file.parent)] == ["ok", "ok"]
