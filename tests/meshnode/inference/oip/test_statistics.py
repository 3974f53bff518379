"""Statistics of requests: counted once each, and bounded."""

import asyncio

import pytest

from meshnode.inference.oip.statistics import MAX_MODELS, RequestStatistics
from meshnode.inference.result import InferenceResult
from protocols.base.errors import InputInvalid
from protocols.base.ids import NodeId

RESULT = InferenceResult({}, NodeId("rsu-1"), took_ms=5.0, compute_ms=3.0, queued_ms=1.0, attempts=())


def test_request_counts_as_answered_or_failed_whatever_ends_it() -> None:
    """A caller who hangs up is a failure too, as in Triton's own figures."""
    statistics = RequestStatistics()
    with statistics.request("m") as succeeded:
        statistics.executed("m", 2)
        succeeded(RESULT)
    for error in (InputInvalid("wrong"), asyncio.CancelledError()):
        with pytest.raises(type(error)), statistics.request("m"):
            raise error
    form = statistics.form("m", "1")
    assert (form["inference_count"], form["execution_count"]) == (1, 2)
    assert form["inference_stats"]["success"] == {"count": 1, "ns": 5_000_000}
    assert form["inference_stats"]["queue"] == {"count": 1, "ns": 1_000_000}
    assert form["inference_stats"]["compute_infer"] == {"count": 1, "ns": 3_000_000}
    assert form["inference_stats"]["fail"]["count"] == 2
    assert form["batch_stats"][0]["batch_size"] == 1


def test_model_that_nobody_asked_for_has_counts_of_zero() -> None:
    """Triton lists it too."""
    form = RequestStatistics().form("m", "1")
    assert (form["inference_count"], form["last_inference"], form["batch_stats"]) == (0, 0, [])


def test_models_beyond_the_bound_replace_the_one_asked_for_longest_ago() -> None:
    """Neighbours name models, and a name costs nothing."""
    statistics = RequestStatistics()
    for name in ("first", *map(str, range(MAX_MODELS - 1))):
        for asked in (name, "kept"):
            with statistics.request(asked) as succeeded:
                succeeded(RESULT)
    assert statistics.form("first", "1")["inference_count"] == 0
    assert statistics.form("kept", "1")["inference_count"] == MAX_MODELS
