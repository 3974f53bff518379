"""The history of releases, out of real audit logs: what is told, what is drawn, and logs that are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from meshnode.releases.audit import AUDIT_FILE, AuditLog
from meshnode.releases.console.commands import models
from meshnode.releases.console.history import read_history
from meshnode.releases.console.timeline import ReleaseBar, bars_of, timeline
from protocols.base.errors import ConfigError, StorageError

PATH = "models/plate"
Tell = Callable[..., None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the node, which the test sets."""
    now = [1_800_000_000.0]
    monkeypatch.setattr("meshnode.releases.audit.time.time", lambda: now[0])
    return now


def told(log: AuditLog, clock: list[float], *lines: tuple[float, str, int]) -> None:
    """Note changes of releases: after how many seconds, the state, and the release. A swap is noted as ``served``."""
    begin_s = clock[0]
    for after_s, state, counter in lines:
        clock[0] = begin_s + after_s
        if state in ("served", "dropped"):
            log.note(state, path=PATH, counter=counter, **({"why": ""} if state == "served" else {}))
        else:
            log.note("ReleaseState", path=PATH, counter=counter, state=state, detail="")


def drawn(path: Path, node: str = "veh-1") -> ET.Element:
    return ET.fromstring(timeline([read_history(node, path)]))


def run(*words: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(models, ["history", *map(str, words)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def test_release_that_is_swapped_in_ends_the_bar_of_the_one_before(tmp_path: Path, clock: list[float]) -> None:
    """Whoever looks at the picture wants to know which release answered when."""
    log = AuditLog(tmp_path / AUDIT_FILE)
    told(
        log, clock, (0, "fetching", 1), (2, "fetched", 1), (3, "served", 1), (3, "serving", 1), (10, "staged", 2),
        (12, "served", 2), (12, "soaking", 2), (15, "served", 1), (15, "failed", 2), (16, "dropped", 2),
    )  # fmt: skip
    first_s = 1_800_000_000.0
    bars = bars_of(read_history("veh-1", tmp_path / AUDIT_FILE).steps, first_s + 20)
    shown = {
        counter: [(bar.state, bar.from_s - first_s, bar.until_s - first_s) for bar in its]
        for counter, its in bars.items()
    }
    assert shown == {
        1: [("fetching", 0, 2), ("fetched", 2, 3), ("serving", 3, 3), ("serving", 3, 12), ("serving", 15, 20)],
        2: [("staged", 10, 12), ("serving", 12, 12), ("soaking", 12, 15), ("failed", 15, 15)],
    }


def test_own_file_that_answers_again_ends_the_bar_and_has_none(tmp_path: Path, clock: list[float]) -> None:
    """Release 0 is the file of the configuration."""
    told(AuditLog(tmp_path / AUDIT_FILE), clock, (0, "served", 1), (5, "served", 0))
    (step, _) = steps = read_history("veh-1", tmp_path / AUDIT_FILE).steps
    assert bars_of(steps, step.utc_s + 9) == {1: [ReleaseBar("serving", step.utc_s, step.utc_s + 5, "")]}
    assert "models/plate, own file answers requests" in run(tmp_path / AUDIT_FILE).output


def test_drawing_is_well_formed_whatever_names_and_reasons_are(tmp_path: Path, clock: list[float]) -> None:
    """Reasons and names of nodes are other people's text."""
    log = AuditLog(tmp_path / AUDIT_FILE)
    log.note("ReleaseState", path='models/<script>"&', counter=1, state="failed", detail="]]><svg onload='x'>\n\x07")
    log.note("RolloutState", serial=3, path='models/<script>"&', counter=1, state="halted", detail="3 < 4 & more")
    log.note("ReleaseState", path=PATH, counter=2, state="of a newer version", detail="")
    root = drawn(tmp_path / AUDIT_FILE, "<veh>")
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.split(" at ")[0] for title in titles] == [
        "Releases", "<veh>, release 1: failed (]]><svg onload='x'>\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER})",
        "<veh>, order 3: halted (3 < 4 & more)", "<veh>, release 2: of a newer version",
    ]  # fmt: skip


@pytest.mark.parametrize("span_s", [0, 3, 600, 40_000, 3_000_000, 90_000_000])
def test_scale_has_a_few_lines_for_seconds_and_for_years(tmp_path: Path, clock: list[float], span_s: float) -> None:
    """A rollout takes minutes at a bench, and months on the road."""
    told(AuditLog(tmp_path / AUDIT_FILE), clock, (0, "fetching", 1), (span_s, "fetched", 1))
    lines = list(drawn(tmp_path / AUDIT_FILE).iter("{http://www.w3.org/2000/svg}line"))
    assert 0 <= len(lines) <= 11
    assert lines or span_s == 0
    assert all(210 <= float(line.attrib["x1"]) <= 1110.1 for line in lines)


def test_clock_that_was_set_back_does_not_turn_the_order_around(tmp_path: Path, clock: list[float]) -> None:
    """The lines of a log are in order whatever its clock said."""
    told(AuditLog(tmp_path / AUDIT_FILE), clock, (0, "fetching", 1), (-5_000, "fetched", 1), (7, "staged", 1))
    steps = read_history("veh-1", tmp_path / AUDIT_FILE).steps
    assert [(step.state, step.utc_s - 1_800_000_000) for step in steps] == [
        ("fetching", 0),
        ("fetched", 0),
        ("staged", 7),
    ]


def test_command_tells_of_several_nodes_by_time_and_draws_them(tmp_path: Path, clock: list[float]) -> None:
    """An operator has copied the logs of a fleet."""
    for node, after_s in (("veh-1", 0.0), ("veh-2", 5.0)):
        clock[0] = 1_800_000_000.0 + after_s
        log = AuditLog(tmp_path / f"{node}.jsonl")
        told(log, clock, (0, "fetching", 1), (10, "fetched", 1))
        log.note("MetadataTaken", timestamp_version=2, releases=1)
    log.note("ReleaseState", path="models/other", counter=1, state="fetching", detail="")
    sources = [tmp_path / "veh-1.jsonl", tmp_path / "veh-2.jsonl"]
    output = run(*sources, "--model", "plate", "--svg", tmp_path / "t.svg").output
    assert [line.split()[2:] for line in output.splitlines()] == [
        ["veh-1", PATH, "1", "fetching"], ["veh-2", PATH, "1", "fetching"],
        ["veh-1", PATH, "1", "fetched"], ["veh-2", PATH, "1", "fetched"],
    ]  # fmt: skip
    assert {"veh-1", "veh-2"} < {element.text for element in ET.parse(tmp_path / "t.svg").iter()}
    listed: list[dict[str, Any]] = json.loads(run(*sources, "--json").output)
    assert [(each["path"], each["utc_s"]) for each in listed][-1] == ("models/other", 1_800_000_015.0)


def test_lines_that_are_cut_off_are_passed_over_and_counted(tmp_path: Path, clock: list[float]) -> None:
    """A log is most wanted after a crash."""
    log = AuditLog(tmp_path / "veh-1.jsonl")
    told(log, clock, (0, "fetching", 1))
    with (tmp_path / "veh-1.jsonl").open("ab") as file:
        file.write(b'{"utc_s": 18\n')
    output = run(tmp_path / "veh-1.jsonl").output
    assert "models/plate 1 fetching" in output
    assert "veh-1: 1 lines can't be read: 'meshnode models verify' tells more" in output


def test_file_that_is_no_log_is_refused_by_name(tmp_path: Path) -> None:
    """Somebody has named the model itself."""
    (tmp_path / "plate.onnx").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(StorageError, match=r"plate\.onnx is no audit log of releases: it is audit\.jsonl in"):
        read_history("plate", tmp_path / "plate.onnx")


def test_node_to_which_nothing_has_happened_says_so(tmp_path: Path, clock: list[float]) -> None:
    """It has just been installed, or the model has another name."""
    told(AuditLog(tmp_path / "veh-1.jsonl"), clock, (0, "fetching", 1))
    assert "nothing has happened to sign there" in run(tmp_path / "veh-1.jsonl", "--model", "sign").output
    (tmp_path / "new.jsonl").touch()
    output = run(tmp_path / "new.jsonl", "--svg", tmp_path / "t.svg").output
    assert "nothing has happened to releases there" in output
    assert not (tmp_path / "t.svg").exists()


def test_log_that_is_not_there_is_an_error_and_no_empty_history(tmp_path: Path) -> None:
    """A slip of the pen must not look like a fleet in which nothing happened."""
    result = CliRunner().invoke(models, ["history", str(tmp_path / "veh-1.jsonl")])
    assert isinstance(result.exception, ConfigError)
    assert "there is no" in str(result.exception)
    assert "name the configuration of a node, or a copy of its audit.jsonl" in str(result.exception)
