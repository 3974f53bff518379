"""The wandering: its plan follows from a seed, its judgement finds what was lost, and the run itself."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.disturbances import FIRST, KINDS, RELAY, SECOND, addresses_after, first_address, plan
from benchmarks.lan import why_not
from benchmarks.wandering import MAX_GROWTH_BYTES, MAX_MORE_DESCRIPTORS, MAX_MORE_THREADS, Outcome, compare
from cloud_relay.query.audit import OriginAccount
from tests.tools.node_fixture import environment

NAMES = ("veh-1", "veh-2", "veh-3", "veh-4")
REASON = why_not()


@pytest.mark.parametrize("seed", range(8))
def test_plan_follows_from_its_seed_and_leaves_every_computer_with_a_network(seed: int) -> None:
    """A computer that the plan itself left without an address would look like a node that failed."""
    planned = plan(NAMES, 120.0, seed)
    assert planned == plan(NAMES, 120.0, seed)
    assert planned != plan(NAMES, 120.0, seed + 1)
    assert list(planned.steps) == sorted(planned.steps, key=lambda step: step.at_s)
    up = dict.fromkeys((*NAMES, RELAY), True)
    held = {(name, FIRST): {first_address(number)} for number, name in enumerate(NAMES)}
    for step in planned.steps:
        place = (step.who, step.interface)
        match step.do:
            case "down" | "up":
                assert up[step.who] == (step.do == "down")
                up[step.who] = step.do == "up"
            case "plug":
                assert place not in held
                held[place] = {step.value}
            case "unplug":
                del held[place]
            case "add":
                held[place].add(step.value)
            case "remove":
                held[place].remove(step.value)
            case _:
                pass
    assert all(up.values())
    assert not [place for place in held if place[1] == SECOND]
    ends = addresses_after(NAMES, planned.steps)
    assert held == {(name, FIRST): {ends[name]} for name in NAMES}
    assert len(set(ends.values())) == len(NAMES)
    for reader in NAMES:
        told = {name: first_address(number) for number, name in enumerate(NAMES)}
        wrong: set[str] = set()
        for step in planned.steps:
            if (step.do, step.who) == ("resolve", reader):
                name, _, address = step.value.partition("=")
                if not address:
                    wrong.discard(name)
                elif address.startswith("10.50.255."):
                    wrong.add(name)
                else:
                    told[name] = address
        assert told == ends
        assert not wrong


def test_plan_of_ten_minutes_has_every_kind_many_times() -> None:
    """A kind that never happens is not tested."""
    counts = plan([f"veh-{number}" for number in range(10)], 600.0, 1).counts
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 10
    assert sum(counts.values()) >= 500


def judged(published: int, stored: Counter[str], dropped: int = 0, **account: int) -> list[str]:
    """The faults of one node's records."""
    outcome = Outcome("express", 1, 4, 1.0)
    names = ("issued", "expired", "evicted", "refused", "deleted", "outstanding", "missing")
    fields = dict.fromkeys(names, 0) | account
    known = OriginAccount(
        "veh-1", stored=len(stored), gaps=(), stored_after_all=0, conflicts=0, with_receipt=len(stored),
        wrong_receipts=0, why_wrong="", **fields,
    )  # fmt: skip
    compare(outcome, "veh-1", {"readings": 0, "records": published, "failed": ""}, stored, dropped, known)
    return outcome.faults


def test_record_that_is_lost_or_stored_twice_is_named() -> None:
    """The one promise that a relay makes."""
    all_of_them = Counter(str(number) for number in range(1, 11))
    assert judged(10, all_of_them) == []
    assert judged(13, all_of_them, dropped=1, expired=2) == []
    (lost,) = judged(13, all_of_them, expired=2)
    assert "1 records of veh-1 are neither at the relay nor counted" in lost
    (twice,) = judged(10, all_of_them + Counter({"3": 1}))
    assert "1 records of veh-1 are at the relay twice: ['3']" in twice
    (hole, _) = judged(11, all_of_them, missing=1)
    assert "does not add up" in hole


def test_run_that_is_late_or_grows_breaks_a_promise() -> None:
    """Each bound is named with the node that broke it."""
    good = Outcome("nng", 7, 4, 1.0, whole_s=3.0, growth_bytes={"veh-1": 1_000}, more_descriptors={"veh-1": 2})
    assert good.missed_bars(5.0) == []
    (late,) = good.missed_bars(2.0)
    assert late.startswith("nng, seed 7: everybody had everybody after 3.0 s")
    never = Outcome("nng", 7, 4, 1.0, growth_bytes={"veh-2": MAX_GROWTH_BYTES})
    never.more_descriptors = {"veh-3": MAX_MORE_DESCRIPTORS + 1}
    never.more_threads = {"veh-4": MAX_MORE_THREADS + 1}
    assert ["not everybody" in never.missed_bars(5.0)[0], len(never.missed_bars(5.0))] == [True, 4]


@pytest.mark.processes
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_nodes_stay_a_mesh_while_networks_names_and_clocks_change(tmp_path: Path) -> None:
    """Ten minutes with ten nodes are a release's business. How fast they are whole again depends on the computer, so
    here only that they are, and that nothing is lost."""
    out = tmp_path / "wandering.json"
    command = [sys.executable, "-P", "-m", "benchmarks.wandering", "--minutes", "0.2", "--nodes", "4", "--seed", "3"]
    done = subprocess.run(
        [*command, "--engine", "express", "--whole-s", "60", "--check", "--out", str(out)],
        env=environment(), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(out.read_text())["runs"]
    assert run["seed"] == 3
    assert run["steps"] > 10
    assert sum(run["done"].values()) >= 4
    assert run["records"] == run["stored"] + run["counted"]
    assert run["stored"] > 100
