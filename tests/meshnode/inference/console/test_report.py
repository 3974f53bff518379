"""Who ran which part of a request, as ``meshnode infer`` prints it."""

import json
from typing import Any

from meshnode.inference.console.report import RequestReport, parts_table, table
from meshnode.inference.result import MAX_PARTS_TOLD, parts_text
from protocols.base.ids import NodeId
from protocols.inference.events import PartReport


def part(index: int, node: str, kind: Any = "stage", took_ms: int = 10, replays: int = 0) -> PartReport:
    return PartReport(kind, index, NodeId(node), took_ms * 1_000_000, 500, 8_000, 1_000, 2_000, replays)


def report(*parts: PartReport, ran_on: str = "rsu-1") -> RequestReport:
    parameters = {"ran_on": ran_on, "took_ms": 30.0, "compute_ms": 20.0, "queued_ms": 1.0, "parts": parts_text(parts)}
    return RequestReport.done("frame", parameters)


def test_stages_are_summed_up_by_stage_and_node() -> None:
    """One stage may run on several nodes over time, and the rows must say which."""
    reports = [
        report(part(0, "veh-1"), part(1, "rsu-1", took_ms=20)),
        report(part(0, "veh-1"), part(1, "rsu-2", took_ms=30, replays=1)),
        report(ran_on="veh-1"),
    ]
    assert [line.split() for line in parts_table(reports, "veh-1")][1:] == [
        ["stage", "1", "veh-1", "here", "2", "8.0", "0.5", "10.0", "10.0", "0"],
        ["stage", "2", "rsu-1", "neighbour", "1", "8.0", "0.5", "20.0", "20.0", "0"],
        ["stage", "2", "rsu-2", "neighbour", "1", "8.0", "0.5", "30.0", "30.0", "1"],
    ]
    assert sorted(line.split()[:3] for line in table(reports, "veh-1"))[1:] == [
        ["veh-1", "here", "1"], ["veh-1+rsu-1", "divided", "1"], ["veh-1+rsu-2", "divided", "1"],
    ]  # fmt: skip


def test_shards_are_summed_up_by_node() -> None:
    """A batch of a hundred tiles is three rows for three nodes."""
    reports = [report(*(part(index, f"veh-{index % 3}", "shard") for index in range(9)))]
    rows = [line.split()[:4] for line in parts_table(reports, "veh-1")][1:]
    assert rows == [
        ["shards", "veh-0", "neighbour", "3"], ["shards", "veh-1", "here", "3"], ["shards", "veh-2", "neighbour", "3"],
    ]  # fmt: skip


def test_request_that_was_not_divided_has_no_parts() -> None:
    """Nodes of earlier versions say nothing of parts, and a text that is none must not end the command."""
    assert parts_text(()) == ""
    for parameters in ({}, {"parts": ""}, {"parts": "{"}, {"parts": "[1]"}, {"parts": '[{"kind": "stage"}]'}):
        assert RequestReport.done("frame", {"ran_on": "veh-1", **parameters}).parts == ()
    assert list(parts_table([report()], "veh-1")) == []


def test_answer_names_a_bounded_number_of_parts() -> None:
    """A batch of a thousand shards must not make the head of its answer larger than the answer."""
    text = parts_text([part(index, "veh-1", "shard") for index in range(1_000)])
    assert len(json.loads(text)) == MAX_PARTS_TOLD
    assert len(text) < 16_000
