"""An order says whom it is for."""

from hashlib import sha256

import pytest

from protocols.base.ids import NodeId, Role
from protocols.releases.catalogue import Cohort
from protocols.releases.rollout.cohorts import follows_path, is_in_cohort
from tests.protocols.releases.rollout.fleet import order


def digest(data: bytes) -> bytes:
    return sha256(data).digest()


@pytest.mark.parametrize(
    ("cohort", "expected"),
    [
        (Cohort(), True),
        (Cohort(roles=(Role.RSU,)), False),
        (Cohort(roles=(Role.RSU, Role.VEHICLE)), True),
        (Cohort(labels=("city=ingolstadt",)), True),
        (Cohort(labels=("city=ingolstadt", "bus")), False),
        (Cohort(nodes=(NodeId("v-2"),)), False),
        (Cohort(nodes=(NodeId("v-1"),)), True),
        (Cohort(nodes=(NodeId("v-1"),), roles=(Role.RSU,)), False),
        (Cohort(share=0.0), False),
        (Cohort(share=1.0), True),
    ],
)
def test_node_must_fulfil_every_condition(cohort: Cohort, expected: bool) -> None:
    """Conditions that were joined by or would reach more nodes than the operator meant."""
    wanted = order(1, 1, (), cohort=cohort)
    assert is_in_cohort(wanted, NodeId("v-1"), Role.VEHICLE, {"city=ingolstadt"}, digest) is expected


def test_canary_follows_the_order_whatever_the_cohort_says() -> None:
    """A canary that did not would be silent, and would halt the rollout."""
    wanted = order(1, 1, ["v-1"], cohort=Cohort(roles=(Role.RSU,), share=0.0))
    assert is_in_cohort(wanted, NodeId("v-1"), Role.VEHICLE, (), digest)


def test_share_is_met_and_a_larger_one_contains_a_smaller_one() -> None:
    """Ten percent, then half: whoever had the release keeps it, and no node has it by chance of the serial."""
    nodes = [NodeId(f"v-{number}") for number in range(2_000)]

    def chosen(serial: int, share: float) -> set[NodeId]:
        wanted = order(serial, 4, (), cohort=Cohort(share=share))
        return {node for node in nodes if is_in_cohort(wanted, node, Role.VEHICLE, (), digest)}

    tenth, half = chosen(1, 0.1), chosen(9, 0.5)
    assert 150 < len(tenth) < 250
    assert 920 < len(half) < 1_080
    assert tenth < half
    other = order(1, 5, (), cohort=Cohort(share=0.1))
    assert {node for node in nodes if is_in_cohort(other, node, Role.VEHICLE, (), digest)} != tenth


def test_paths_are_followed_by_name_or_by_kind() -> None:
    """A node that follows models gets no rules."""
    assert follows_path("models/plate", ("models/plate",))
    assert follows_path("models/plate", ("models/*",))
    assert not follows_path("models/signs", ("models/plate",))
    assert not follows_path("rules/plate", ("models/*",))
