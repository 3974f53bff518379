"""``meshnode peers`` and ``meshnode watch`` on a full channel, as an operator reads them."""

from typing import Any

import pytest
from click.testing import CliRunner

from meshnode.cli import neighbours
from protocols.base.errors import ModelUnknown


def peer(node: str, **more: Any) -> dict[str, Any]:
    """One entry of ``/v1/peers``."""
    return {
        "node": node, "role": "vehicle", "state": "alive", "met": True, "round_trip_ns": 2_000_000, "silent_ns": 0,
        "lanes": ["realtime"], "waiting_readings": 0, "offers": [], **more,
    }  # fmt: skip


class FakeApi:
    """A node that answers with what the test says."""

    def __init__(self, peers: list[dict[str, Any]], plans: dict[str, Any] | None = None, **counters: int) -> None:
        """``plans``: None: it is of a version that makes none."""
        node = {
            "id": "veh-1", "role": "vehicle", "mesh": "m", "port": 7447, "uptime_s": 60, "certificate_days_left": 29.0,
            "relay": None, "statistics": counters,
        }  # fmt: skip
        self._answers = {"/v1/peers": peers, "/v1/node": node, "/v1/drops": [], "/v1/plans": plans}

    def get(self, path: str) -> Any:
        if (answer := self._answers[path]) is None:
            raise ModelUnknown("there is no such path")
        return answer


@pytest.fixture(params=["peers", "watch"])
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What one of both commands prints about a node, a line each."""

    def printed(api: FakeApi) -> list[str]:
        monkeypatch.setattr(neighbours, "chosen_node", lambda *_: api)
        arguments = ["--once", "--interval", "0.2"] if request.param == "watch" else []
        ran = CliRunner().invoke(getattr(neighbours, request.param), arguments, env={"COLUMNS": "160"})
        assert ran.exit_code == 0, ran.output
        return [line.rstrip() for line in ran.output.splitlines()]

    return printed


def test_full_channel_is_explained_in_words_and_figures(command: Any) -> None:
    """Whoever misses readings must see who gets fewer, how many, and why."""
    slow = {"is_behind": True, "left_out": 1_204, "frames_per_s": 20.4, "waiting_readings": 12}
    lines = command(FakeApi([peer("veh-2", **slow), peer("veh-3", left_out=7)], pace_frames_per_s=41))
    assert "this node keeps a pace of 41 frames a second, because its neighbours confirm late (a full channel)" in lines
    assert "less can be sent to veh-2 than is published: older readings give way to newer ones of their key" in lines
    (head,) = (line.split() for line in lines if line.startswith("neighbour"))
    assert head[-5:] == ["waiting", "frames/s", "left", "out", "computes"]
    shown = {line.split()[0]: line.split()[-3:] for line in lines if "realtime" in line}
    assert shown == {"veh-2": ["12", "20", "1204"], "veh-3": ["0", "-", "7"]}


def test_channel_with_room_has_nothing_to_explain(command: Any) -> None:
    """Two columns of zeros would hide what matters. A node of an earlier version says nothing of them either."""
    lines = command(FakeApi([peer("veh-2")]))
    assert not [
        line for line in lines if "pace" in line or "left out" in line or "frames/s" in line or "give way" in line
    ]


def test_many_slow_neighbours_are_summed_up(command: Any) -> None:
    """A line of thirty names is read by nobody."""
    lines = command(FakeApi([peer(f"veh-{number}", is_behind=True) for number in range(2, 12)], pace_frames_per_s=1))
    assert any("veh-6 and 5 more than is published" in line for line in lines)
    assert any("a pace of 1 frame a second" in line for line in lines)


def test_plans_and_stages_of_neighbours_are_told_in_a_line_each(command: Any) -> None:
    """Whoever wonders why an RSU is busy must see whose stages it runs, and a vehicle who computes its model."""
    stages = [{"node": "veh-1", "share": 0.04}, {"node": "rsu-1", "share": 0.96}]
    in_force = {"state": "in force", "timed_ms": 41.23, "predicted_ms": 38.0, "stages": stages}
    models = [
        {"model": "plate", "whole": {"node": "veh-1", "expected_ms": 612.0}, "plans": [in_force]},
        {"model": "ocr", "whole": None, "plans": [{"state": "waiting"}]},
        {"model": "large", "whole": None, "plans": []},
    ]
    hosted = [
        {"model": "signs", "asked_by": ["veh-3"], "state": "ready", "compute_ms": 12.0, "idle_s": 3.0},
        {"model": "lanes", "asked_by": [], "payer": "veh-4", "state": "fetching", "have_bytes": 0, "size_bytes": 9_000},
    ]
    lines = command(FakeApi([peer("veh-2")], {"models": models, "hosted": hosted}))
    assert [line for line in lines if line.startswith(("plan ", "stage "))] == [
        "plan       plate: veh-1 4% > rsu-1 96%, 41.2 ms timed, 38.0 ms predicted; the whole takes 612.0 ms at veh-1",
        "plan       ocr: stages are being made ready; nobody can run the whole now",
        "plan       large: none; nobody can run the whole now",
        "stage      of signs for veh-3: ready, 12.0 ms a run, idle for 3 s",
        "stage      of lanes for veh-4, which has left: fetching, 0 B of 9 kB",
    ]
