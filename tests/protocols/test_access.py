"""Who may do what: default deny, and no way round it by a clever name."""

import pytest
from hypothesis import given

from protocols.access import DEFAULT_RULES, LINK_ROLES, AccessRule, AccessTable
from protocols.base.errors import InvalidKey
from protocols.base.ids import NodeId, Role
from tests.tools.strategies import IDS, KEYS, MODEST

TABLE = AccessTable()


@pytest.mark.parametrize(
    ("role", "node", "key", "allowed"),
    [
        (Role.VEHICLE, "veh-1", "veh/veh-1/speed", True),
        (Role.VEHICLE, "veh-1", "veh/veh-1", True),
        (Role.VEHICLE, "veh-1", "veh/veh-2/speed", False),
        (Role.VEHICLE, "veh-1", "rsu/veh-1/hazard", False),
        (Role.VEHICLE, "veh-1", "veh/veh-11/speed", False),
        (Role.RSU, "rsu-1", "rsu/rsu-1/hazard", True),
        (Role.RSU, "rsu-1", "veh/rsu-1/speed", False),
        (Role.TOOL, "t", "tool/t/x", True),
        (Role.RELAY, "r", "relay/r/x", False),
    ],
)
def test_publish_by_default_is_on_own_keys_only(role: Role, node: str, key: str, allowed: bool) -> None:
    """A vehicle that could publish another's braking would stop the traffic behind it."""
    assert TABLE.permits_publish(role, NodeId(node), key) is allowed


def test_relay_by_default_may_do_nothing_on_links() -> None:
    """Its certificate opens exchanges, no links."""
    relay = NodeId("relay-1")
    assert not TABLE.permits_subscribe(Role.RELAY, relay, "**")
    assert not TABLE.permits_infer(Role.RELAY, relay, "plate")
    assert Role.RELAY not in LINK_ROLES


def test_empty_table_denies_everything() -> None:
    """What no rule allows is denied."""
    nothing = AccessTable(())
    node = NodeId("a")
    for role in Role:
        assert not nothing.permits_publish(role, node, "veh/a/x")
        assert not nothing.permits_subscribe(role, node, "a")
        assert not nothing.permits_infer(role, node, "m")
    assert not nothing.permits_origin(node, "veh/a/x")


def test_subscribe_to_more_than_the_rule_is_denied() -> None:
    """Half of an expression can't be granted: the neighbour must ask for what it may have."""
    table = AccessTable(
        (AccessRule(Role.VEHICLE, "subscribe", "rsu/*/hazard"), AccessRule(Role.VEHICLE, "infer", "plate/**"))
    )
    node = NodeId("a")
    assert table.permits_subscribe(Role.VEHICLE, node, "rsu/*/hazard")
    assert table.permits_subscribe(Role.VEHICLE, node, "rsu/north/hazard")
    for wider in ("**", "rsu/**", "rsu/*/*", "rsu/**/hazard"):
        assert not table.permits_subscribe(Role.VEHICLE, node, wider)
    assert not table.permits_subscribe(Role.RSU, node, "rsu/north/hazard")
    assert table.permits_infer(Role.VEHICLE, node, "plate/eu")
    assert not table.permits_infer(Role.VEHICLE, node, "face")


def test_table_with_a_bad_expression_is_refused_when_built() -> None:
    """A typing error in the configuration must not silently deny or allow."""
    with pytest.raises(InvalidKey):
        AccessTable((AccessRule(Role.VEHICLE, "publish", "veh//{id}"),))
    with pytest.raises(InvalidKey):
        AccessTable((AccessRule(Role.VEHICLE, "publish", "veh/{id}*"),))


@MODEST
@given(IDS, IDS, KEYS)
def test_origin_of_any_valid_id_never_speaks_for_another(node: str, other: str, key: str) -> None:
    """Readings that others pass on are judged by their origin's name alone."""
    if node != other:
        for space in ("veh", "rsu", "tool"):
            assert not TABLE.permits_origin(NodeId(node), f"{space}/{other}/{key}")
    assert TABLE.permits_origin(NodeId(node), f"veh/{node}/{key}")


def test_default_rules_name_every_link_role() -> None:
    """A role without rules could do nothing and nobody would say why."""
    assert {rule.role for rule in DEFAULT_RULES} == LINK_ROLES
