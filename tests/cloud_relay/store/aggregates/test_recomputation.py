"""The short form of ``python -m benchmarks.aggregates``, whose long one has ten million records."""

from pathlib import Path

from benchmarks.aggregates import measured


def test_records_in_random_order_a_tenth_twice_give_what_plain_python_computes(tmp_path: Path) -> None:
    """The promise, judged by code that shares nothing with the relay but the numbers that it is given."""
    figures = measured(tmp_path, None, 4_000, 0)
    assert (figures["stored"], figures["repeated"], figures["wrong"]) == (4_000, 400, 0)
    assert figures["groups"] > 3_000
    assert 0 < figures["worst_error"] <= figures["told_error"] == 2**-7
