"""What faults do to real nodes: full disks, wrong clocks, liars; and inferences between real nodes."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from zeroconf import DNSAddress, DNSIncoming, DNSService, DNSText

from meshnode.links.adverts import parse_untrusted_advert
from protocols.base.ids import MeshName
from sims.emulator.disks import RealDisk
from sims.emulator.liar import advert
from sims.emulator.namespaces import Network
from sims.emulator.nodes import RealNode, launch
from sims.emulator.promises import Promises, passed_over
from sims.emulator.workplace import PREFIX
from sims.results.compare import ComparedFigure, compare
from sims.results.recorder import Recording
from sims.results.result import Result
from sims.runs.run import simulate
from sims.scenario.file import Fault, Fixed, Group, Inference, Radio, Scenario, Spread, Traffic
from tests.tools.emulator_fixture import POSSIBLE, WHY_NOT, children_of, command_of, emulation

pytestmark = pytest.mark.processes

SECOND = 1_000_000_000
MS = 1_000_000

TROUBLED = Scenario(
    "troubled", "two cars with full disks, one of which crashes, beside a roadside unit that lies", 9.0,
    (Group("car", 3, Fixed(((0.0, 0.0), (20.0, 0.0), (40.0, 0.0))), device="single-board", relay=True),
     Group("rsu", 1, Fixed(((20.0, 10.0),)), role="rsu", device="server")),
    radio=Radio(bit_rate_mbps=100.0), traffic=(Traffic("car"),),
    inference=(Inference("car", rate_hz=5.0, input_bytes=2_000, compute_ms=20.0, deadline_ms=400),),
    gossip=(Spread(1.0, "car-0"), Spread(1.5, "car-0"), Spread(6.5, "car-2")),
    faults=(
        Fault("full-disk", 2.0, 2.5, ("car-0", "car-1")),
        Fault("crash", 3.0, 0.8, ("car-1",)),
        Fault("clock-jump", 3.0, 2.0, ("car-2",), jump_s=600.0),
        Fault("false-adverts", 1.0, 4.0, ("rsu",)),
        Fault("forged-gossip", 2.0, 3.0, ("rsu",)),
        Fault("stale-gossip", 2.0, 3.0, ("rsu",)),
        Fault("false-load", 4.0, 2.0, ("rsu",), factor=50.0),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run of four real nodes with a fault of each new kind, looked at by several tests."""
    return emulation(TROUBLED, tmp_path_factory, undisturbed)


def undisturbed(result: Result) -> bool:
    """Whether no process stood still for long: then answers come late, and fewer readings and requests are made."""
    return (
        result.valid
        and inference_row(result).agrees is True
        and "requests_end_by_deadline" not in result.broken
        and result.inference.count > 80
        and 20 <= result.drops.get("expired", 0) <= 40
        and result.drops.get("outbox_failed", 0) >= 2
    )


@cache
def simulated() -> Result:
    """The same in virtual time."""
    return simulate(TROUBLED, 1)


def inference_row(result: Result) -> ComparedFigure:
    """How long inferences took in a run of real nodes, beside how long they take in the simulator."""
    return next(row for row in compare(result, simulated()).rows if row.figure == "inference p50")


def _lines(journals: Path, node: str, what: str) -> list[list[Any]]:
    found = [json.loads(line) for line in (journals / f"{node}.jsonl").read_text().splitlines()]
    return [line for line in found if line[0] == what]


# --- the run ---------------------------------------------------------------------------------------------------------
def test_troubled_run_keeps_every_promise_and_tells_every_fault(troubled: tuple[Result, Path]) -> None:
    """The nodes are real: this is the very software, among liars, with a full disk and a wrong clock."""
    result, _ = troubled
    assert result.valid, result.why_invalid
    assert not result.broken, {name: result.checks[name].details for name in result.broken}
    assert result.checks["processes_live"].passed == 4
    for kind in ("full-disk", "clock-jump", "false-adverts", "forged-gossip", "stale-gossip", "false-load"):
        assert result.sometimes[kind] == result.sometimes[f"{kind} over"] == 1


def test_inferences_of_real_nodes_are_answered_rightly_and_by_whom_it_is_fastest(troubled: tuple[Result, Path]) -> None:
    """The roadside unit is eight times as fast: cars that never asked it would be four cars alone."""
    result, _ = troubled
    assert result.checks["answer_is_right"].passed == result.inference.count
    assert result.inference.count > 80  # three cars, five a second, for six seconds and more
    assert result.inference_by["rsu"] > result.inference_by.get("here", 0)  # where all is well, nobody stays at home
    assert 10.0 < result.inference.quantiles["p50"] < 60.0  # 10 ms there and the way; 80 ms here


def test_inferences_of_both_harnesses_take_as_long(troubled: tuple[Result, Path]) -> None:
    """What ``meshsim compare`` is for: the same work, side by side."""
    row = inference_row(troubled[0])
    assert row.judged
    assert row.agrees, (row.emulator, row.simulator)


def test_full_disk_keeps_records_out_and_nothing_is_unexplained(troubled: tuple[Result, Path]) -> None:
    """``ENOSPC`` from a real file system, in the real outbox; the relay's audit has to add up all the same."""
    result, journals = troubled
    assert result.drops["outbox_failed"] >= 2  # of one a second, while it was full
    assert "database or disk is full" in (journals / "car-0.log").read_text()
    assert "disk is full" not in (journals / "car-2.log").read_text()
    assert result.checks["records_accounted_for"].passed == 3


def test_node_that_crashed_with_a_full_disk_comes_back_when_there_is_room(troubled: tuple[Result, Path]) -> None:
    """It can't start before: its incarnation could not be written down."""
    result, journals = troubled
    assert len(_lines(journals, "car-1", "started")) == 2
    assert result.figures["last_start_s"] >= 4.5, "its disk was emptied then"


def test_clock_that_jumps_is_what_the_node_takes_for_utc(troubled: tuple[Result, Path]) -> None:
    """Ten minutes ahead it is: readings that live for a second have been under way for ten minutes. As simulated."""
    result, journals = troubled
    drops = _lines(journals, "car-2", "ended")[0][5]
    expired = sum(count for _, _, reason, count in drops if reason == "expired")
    assert 20 <= expired <= 40  # two publishers, ten a second, for two seconds; one of them down for a part of it
    assert result.drops["expired"] == expired
    assert abs(simulated().drops["expired"] - expired) <= 15


def test_clock_that_is_wrong_from_the_start_is_told_before_a_life_begins(tmp_path: Path) -> None:
    """The first thing that a node does by its clock is to choose its incarnation; and all lives have one clock."""
    group = Group("car", 1, Fixed(((0.0, 0.0),)), clock_skew_ms=5_000.0, clock_drift_ppm=30.0)
    told = []
    node = RealNode("car-0", 0, group, Network(-1, -1), tmp_path)
    node.set_clock(Random("1/clocks"))
    node.clock_jump(60 * SECOND)
    for _ in range(2):
        node.held = launch(["/bin/cat"], None)
        node.let_go(1.5)
        assert node.running is not None
        output, _ = node.running.communicate(timeout=60)
        told.append(output.decode().splitlines())
    clock, age = told[0]
    what, offset_ns, drift_ppb, _ = json.loads(clock)
    assert (what, age) == ("clock", "1.500000")
    assert 40 * SECOND < offset_ns < 80 * SECOND
    assert offset_ns != 60 * SECOND
    assert 0 < abs(drift_ppb) < 200_000
    assert told[1] == told[0]


def test_adverts_and_knocks_of_a_liar_are_refused_by_name(troubled: tuple[Result, Path]) -> None:
    """They were really on the wire: each node has met the ghost, and nobody took anything of it."""
    _, journals = troubled
    for node in ("car-0", "car-2"):
        codes = {line[3]: line[4] for line in _lines(journals, node, "refused")}
        assert "its certificate rsu-0" in codes["identity"]
        assert any(line[2].startswith("ghost-") for line in _lines(journals, node, "found"))
    ended = {json.loads(line)[2] for line in (journals / "rsu-0.liar.log").read_text().splitlines()}
    assert "closed" in ended  # of this mesh, without a Hello
    assert any(how.startswith("refused") for how in ended)  # of another mesh
    assert "open" not in ended


def test_gossip_of_a_liar_changes_nothing(troubled: tuple[Result, Path]) -> None:
    """Forged and superseded entries came over its own authenticated links, from its own genuine certificate."""
    result, journals = troubled
    assert sum(line[2] for line in _lines(journals, "rsu-0", "sent")) >= 8
    counters = result.counters
    assert counters["gossip_entries_forged"] >= 2  # at both that lived to the end; the same lie again is a duplicate
    assert counters["gossip_entries_stale"] + counters["gossip_entries_duplicate"] >= 4
    refused = _lines(journals, "car-0", "entry_refused")
    assert refused
    assert refused[0][2] == "rsu-0"
    assert refused[0][-1] == "forged"


def test_troubled_run_leaves_no_mount_no_descriptor_and_no_liar(troubled: tuple[Result, Path]) -> None:
    """A file system that stays takes the memory that it holds."""
    assert troubled[0].nodes == 4
    assert PREFIX not in Path("/proc/self/mounts").read_text()
    assert not [entry for entry in Path("/proc/self/fd").iterdir() if _names_a_mount(entry)]
    assert not [child for child in children_of(os.getpid()) if "sims.emulator" in command_of(child)]


def _names_a_mount(descriptor: Path) -> bool:
    try:
        target = str(descriptor.readlink())
    except OSError:  # that of the listing itself
        return False
    return target.startswith("mnt:") or PREFIX in target


# --- disks -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RealDisk]:
    """Of 1 MB, over ``tmp_path / 'state'``."""
    if not POSSIBLE:
        pytest.skip(WHY_NOT)
    made = RealDisk(tmp_path / "state", 1 << 20)
    yield made
    made.close()


def _inside(disk: RealDisk, script: str) -> tuple[int, str]:
    """Status and output of a program that has the disk."""
    process = launch(["/bin/sh", "-c", script], None, disk=disk)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.decode()


def test_disk_that_is_filled_refuses_what_programs_write_until_it_is_emptied(disk: RealDisk, tmp_path: Path) -> None:
    """That is the whole fault; what was on the disk before has to be there after it."""
    written = tmp_path / "state" / "written"
    assert _inside(disk, f"echo before > {written}") == (0, "")
    disk.fill()
    assert disk.free_bytes() == 0
    assert _inside(disk, f"echo more > {written}2 2>/dev/null")[0] != 0
    disk.empty()
    assert _inside(disk, f"cat {written}; echo after >> {written}; tail -n 1 {written}") == (0, "before\nafter\n")


def test_disk_is_seen_by_its_own_processes_only_and_can_be_lost(disk: RealDisk, tmp_path: Path) -> None:
    """A mount in the host's own table would outlive a harness that is killed."""
    folder = tmp_path / "state"
    assert _inside(disk, f"mkdir -p {folder}/a/b; echo x > {folder}/a/b/c; echo y > {folder}/d; ls {folder}")[1]
    assert list(folder.iterdir()) == []
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    disk.fill()
    disk.lose()
    assert _inside(disk, f"ls {folder}") == (0, "ballast\n")


# --- the liar's adverts ----------------------------------------------------------------------------------------------
def test_advert_of_the_liar_is_one_that_a_real_node_reads() -> None:
    """One that is malformed would be dropped for that, and prove nothing."""
    message = DNSIncoming(advert("10.78.0.3", "emulation", "ghost-1", 17, 7_000))
    assert message.valid
    answers = message.answers()
    text = next(answer.text for answer in answers if isinstance(answer, DNSText))
    service = next(answer for answer in answers if isinstance(answer, DNSService))
    address = next(answer.address for answer in answers if isinstance(answer, DNSAddress))
    properties = {}
    while text:
        entry, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        name, _, value = entry.partition(b"=")
        properties[name] = value
    told = parse_untrusted_advert(properties, [".".join(map(str, address))], service.port, MeshName("emulation"))
    assert (told.node, told.incarnation, str(told.addresses[0])) == ("ghost-1", 17, "10.78.0.3:7000")


# --- promises --------------------------------------------------------------------------------------------------------
PAIR = Scenario("pair", "two", 10.0, (Group("car", 2, Fixed(((0.0, 0.0), (20.0, 0.0)))),))


def _judged(lines: list[tuple[float, str, list[Any]]], tape: tuple[Fault, ...] = ()) -> dict[str, tuple[int, int]]:
    """Checks by name: kept and broken. ``lines``: second, node, line without its instant."""
    recording = Recording(PAIR)
    promises = Promises(["car-0", "car-1"], tape, recording)
    for at_s, node, (what, *rest) in lines:
        promises.tell(round(at_s * SECOND), node, [what, 0, *rest])
    promises.end(10 * SECOND)
    checks = recording.result("emulator", 1, 10.0, 10.0).checks
    return {name: (check.passed, check.failed) for name, check in checks.items()}


def test_promises_of_a_good_run_are_kept() -> None:
    """A judge that condemns the innocent is of no use either."""
    judged = _judged([
        (0.0, "car-0", ["started", "car-0", 0]), (0.0, "car-1", ["started", "car-1", 0]),
        *[(1.0, "car-0", ["entry", "car-0", "spread", 7, "car-0"])] * 2,
        (1.1, "car-1", ["entry", "car-0", "spread", 7, "car-0"]), (1.2, "car-1", ["delivered", "car-0", "a/b", 1]),
        (2.0, "car-0", ["asked", 1, "m", 500]), (2.1, "car-0", ["result", 1, "car-1", 9, "", True]),
        (3.0, "car-0", ["asked", 2, "m", 500]), (3.5, "car-0", ["result", 2, "", 0, "late", None]),
        (9.9, "car-0", ["asked", 3, "m", 500]),
    ])  # fmt: skip
    assert all(failed == 0 for _, failed in judged.values()), judged
    assert judged["requests_end_by_deadline"] == (2, 0)
    assert judged["answer_is_right"] == (1, 0)
    assert judged["gossip_author_only"] == (1, 0)


@pytest.mark.parametrize(
    ("check", "lines"),
    [
        ("answer_is_right", [["asked", 1, "m", 500], ["result", 1, "car-1", 9, "", False]]),
        ("one_answer_per_request", [["asked", 1, "m", 500], *[["result", 1, "car-1", 9, "", True]] * 2]),
        ("requests_end_by_deadline", [["asked", 1, "m", 500]]),
        ("no_frame_from_unverified", [["delivered", "ghost-car-1", "a/b", 1]]),
        ("no_frame_from_unverified", [["met", "ghost-car-1", 5]]),
        ("gossip_forward_only", [["entry", "car-1", "address", v, "car-1"] for v in (5, 4)]),
        ("gossip_author_only", [["entry", "car-1", "address", 5, "car-1"]]),
        ("commands_obeyed", [["failed", "control", "nonsense"]]),
    ],
)
def test_promise_that_is_broken_is_seen(check: str, lines: list[list[Any]]) -> None:
    """A check that never fails protects nobody."""
    assert _judged([(2.0, "car-0", line) for line in lines])[check][1] == 1


@pytest.mark.parametrize(
    "excuse",
    [Fault("slow-node", 1.0, 3.0, ("car-0",)), Fault("crash", 2.1, 0.0, ("car-0",))],
)
def test_request_of_a_node_that_was_hindered_is_not_held_against_it(excuse: Fault) -> None:
    """A stopped process answers nobody, and a killed one has no last word."""
    judged = _judged([(2.0, "car-0", ["asked", 1, "m", 500])], (excuse,))
    assert judged.get("requests_end_by_deadline", (0, 0))[1] == 0


@pytest.mark.parametrize(
    ("runs", "found"),
    [
        ([("car-1", "done", 5)], None),
        ([("car-1", "cancelled", 4), ("car-0", "done", 5)], None),
        ([("car-1", "cancelled", 9), ("car-0", "done", 5)], ("car-1", "cancelled")),
        ([("car-1", "busy", 1), ("car-0", "done", 5)], ("car-1", "busy")),
    ],
)
def test_run_that_was_passed_over_is_a_fallback_unless_it_merely_lost(
    runs: list[tuple[str, str, int]], found: tuple[str, str] | None
) -> None:
    """As the simulator counts them: a hedge that was not needed is none."""
    assert passed_over(runs, "car-0" if len(runs) > 1 else "car-1") == found
