"""Topics and keys in each other's place, as MQTT and the mesh match them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from meshnode.mqtt.topics import Template, expression_matcher, filter_matcher, wildcards_in
from protocols.base.errors import InvalidKey
from protocols.base.keys import checked_expression, matches

levels = st.sampled_from(["a", "b", "c.d", "e$", "x y"])
topics = st.lists(levels, min_size=1, max_size=5).map("/".join)


@given(st.lists(levels | st.just("+"), min_size=1, max_size=4), st.booleans(), topics)
def test_filter_takes_the_topics_that_a_broker_would_send(parts: list[str], is_open: bool, topic: str) -> None:
    """The client library's own matching decides."""
    topic_filter = "/".join([*parts, *["#"] * is_open])
    found = filter_matcher(topic_filter).found(topic)
    assert (found is not None) == topic_matches_sub(topic_filter, topic)
    if found is not None:
        assert len(found) == wildcards_in(topic_filter)


chunks = st.sampled_from(["a", "b", "c", "d"])


@given(
    st.lists(chunks | st.just("*") | st.just("**"), min_size=1, max_size=5), st.lists(chunks, min_size=1, max_size=6)
)
def test_expression_takes_the_keys_that_the_mesh_would_deliver(parts: list[str], key: list[str]) -> None:
    """And has a group for each of its wildcards."""
    expression = "/".join(parts)
    try:
        checked_expression(expression)
    except InvalidKey:
        return
    found = expression_matcher(expression).found("/".join(key))
    assert (found is not None) == matches(expression, "/".join(key))
    if found is not None:
        assert len(found) == wildcards_in(expression)


def test_template_is_filled_in_its_order_and_with_names() -> None:
    """What a wildcard stood for may have braces, and is not looked at again."""
    template = Template("veh/{node}/x/{2}/{1}", 2, frozenset({"node"}))
    assert template.filled(("{node}", "b"), {"node": "v-1"}) == "veh/v-1/x/b/{node}"
    found = expression_matcher("veh/*/can/**").found("veh/v-1/can/Engine/Speed")
    assert found is not None
    assert Template("{1}:{2}", 2, frozenset()).filled(found, {}) == "v-1:Engine/Speed"


@pytest.mark.parametrize("text", ["{3}", "{0}", "{nodes}", "{}", "{1", "1}", "{ 1}"])
def test_template_with_a_place_that_is_not_there_is_named(text: str) -> None:
    """A mistake in a template would be a key of its own."""
    with pytest.raises(ValueError, match=r"place|brace"):
        Template(text, 2, frozenset({"node"}))


@pytest.mark.parametrize("text", ["", "a/#/b", "a+", "#a", "a/b#", "a\0"])
def test_text_that_is_no_filter_is_named(text: str) -> None:
    """A broker would close the connection for it."""
    with pytest.raises(ValueError, match=r"topic filter|wildcard"):
        filter_matcher(text)
