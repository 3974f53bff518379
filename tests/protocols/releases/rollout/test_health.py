"""What nodes say fits into an entry, and gates are judged as the order says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base import limits
from protocols.base.errors import RemoteProtocolError
from protocols.releases.catalogue import Gates
from protocols.releases.events import Measures
from protocols.releases.rollout.health import (
    REASONS,
    STATES,
    broken_gate,
    decode_untrusted_health,
    encode_health,
    readable_health,
    reason_of,
)
from protocols.wire.releases import ReportedRelease, RolloutHealth

LARGEST = ReportedRelease(2**31 - 1, 2**31 - 1, 127, 127, 127)


def test_largest_body_fits_beside_the_longest_certificate() -> None:
    """An entry that is too large is never signed, and its author would be a silent canary."""
    body = encode_health(RolloutHealth((LARGEST,) * limits.MAX_REPORTED_RELEASES))
    assert len(body) <= 150
    assert decode_untrusted_health(body).releases[0] == LARGEST


def test_body_has_the_bytes_that_the_wire_page_describes() -> None:
    """Nodes of other versions, and of other makers, read it."""
    body = b"\x91\x91\x95\x05\x03\x06\x01\x00"
    assert encode_health(RolloutHealth((ReportedRelease(5, 3, 6, 1, 0),))) == body
    longer = b"\x92\x91\x96\x05\x03\x06\x01\x00\xa3new\xc3"
    assert decode_untrusted_health(longer) == decode_untrusted_health(body), "what a later version adds is passed over"


def test_numbers_of_states_and_reasons_never_change() -> None:
    """Nodes of other versions read them."""
    assert STATES[:4] == ("", "fetching", "fetched", "staged")
    assert STATES.index("rolled_back") == 9
    assert REASONS.index("errors") == 13
    assert len(set(STATES)) == len(STATES) <= 128
    assert len(set(REASONS)) == len(REASONS) <= 128


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """A neighbour writes whatever it likes into its own entry."""
    health = readable_health(body)
    assert health is None or len(health.releases) <= limits.MAX_REPORTED_RELEASES


def test_body_of_another_kind_is_refused() -> None:
    """The error is one of the tree, so nothing else has to be caught."""
    with pytest.raises(RemoteProtocolError):
        decode_untrusted_health(b"\x91\x91\x93\x01\x02\x03")


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        (Measures(0, 0, 0, 0, 0, 0), ""),
        (Measures(100, 1, 10, 10, 100, 90), ""),
        (Measures(100, 2, 10, 10, 100, 100), "errors"),
        (Measures(100, 0, 16, 10, 100, 100), "latency"),
        (Measures(100, 0, 1_000, 0, 100, 100), ""),
        (Measures(100, 0, 10, 10, 100, 89), "agreement"),
        (Measures(100, 100, 1_000, 10, 100, 0), "errors"),
    ],
)
def test_gate_is_broken_as_the_table_says(measures: Measures, expected: str) -> None:
    """At most one percent of errors, one and a half times the latency, and nine of ten equal answers."""
    assert broken_gate(Gates(max_errors=0.01, max_latency=1.5, min_agreement=0.9), measures) == expected


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("", ""),
        ("no_room: 12 MB are free", "no_room"),
        ("golden", "golden"),
        ("OSError: what?", "other"),
        (": x", "other"),
    ],
)
def test_reason_of_a_failure_is_its_first_word(failure: str, reason: str) -> None:
    """Words for people do not travel; the reason does, in one byte."""
    assert reason_of(failure) == reason
