"""Spans of time mean the same wherever an operator writes one."""

import pytest

from cloud_relay.spans import untrusted_span_s


@pytest.mark.parametrize(
    ("text", "units", "seconds"),
    [
        ("90s", "smhd", 90),
        ("2h", "smhd", 7_200),
        ("30d", "hd", 2_592_000),
        ("999999m", "smhd", 59_999_940),
        ("30d", "smh", None),
        ("0h", "smhd", None),
        ("1000000s", "smhd", None),
        ("-1s", "smhd", None),
        ("1.5h", "smhd", None),
        (" 1h", "smhd", None),
        ("\N{ARABIC-INDIC DIGIT FOUR}h", "smhd", None),
        ("1", "smhd", None),
        (90, "smhd", None),
    ],
)
def test_span_is_a_whole_number_and_a_unit(text: object, units: str, seconds: int | None) -> None:
    assert untrusted_span_s(text, units) == seconds
