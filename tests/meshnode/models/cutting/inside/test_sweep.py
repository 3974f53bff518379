"""The pass that finds cuts: against the definition of a live tensor, and the kinds of tensors that are no boundary."""

import time

from hypothesis import given
from hypothesis import strategies as st

from meshnode.models.cutting.inside.sweep import GraphStep, Place, constant_steps, places


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[GraphStep], list[str]]:
    """Nodes that each take some of what came before: inputs, weights and results of earlier nodes."""
    inputs = [f"i{at}" for at in range(draw(st.integers(0, 3)))]
    known = [*inputs, "w0", "w1", "w2"]
    steps = []
    for at in range(draw(st.integers(0, 12))):
        takes = draw(st.lists(st.sampled_from(known), max_size=4, unique=True))
        gives = [f"t{at}.{number}" for number in range(draw(st.integers(1, 2)))]
        steps.append(GraphStep(tuple(takes), tuple(gives), draws=draw(st.integers(0, 9)) == 0))
        known += gives
    return steps, inputs


@given(graphs())
def test_places_of_any_graph_are_those_of_the_definition(graph: tuple[list[GraphStep], list[str]]) -> None:
    """A tensor too few makes a stage that can't be computed, one too many hides a cut."""
    steps, inputs = graph
    is_constant = constant_steps(steps, inputs)
    found = {place.at: place for place in places(steps, inputs, 3)}
    varying = [at for at in range(len(steps)) if not is_constant[at]]
    for at in varying:
        given_before = {name for earlier in varying if earlier <= at for name in steps[earlier].gives}
        used_behind = {name for later in varying if later > at for name in steps[later].takes}
        live = given_before & used_behind
        assert (at + 1 in found and bool(found[at + 1].live)) == (1 <= len(live) <= 3)
        if 1 <= len(live) <= 3:
            assert set(found[at + 1].live) == live
            assert set(found[at + 1].inputs) == used_behind & set(inputs)


@given(graphs())
def test_weights_of_any_graph_are_told_once_and_not_after_their_first_use(
    graph: tuple[list[GraphStep], list[str]],
) -> None:
    """Weights that are counted twice make a stage look too large for a small computer."""
    steps, inputs = graph
    told = [name for place in places(steps, inputs, 3) for name in place.weights]
    assert len(told) == len(set(told))
    assert set(told) == _weights_of_varying(steps, inputs)


def _weights_of_varying(steps: list[GraphStep], inputs: list[str]) -> set[str]:
    producer = {name: step for step in steps for name in step.gives}
    waiting = [name for step, constant in zip(steps, constant_steps(steps, inputs), strict=True)
               if not constant for name in step.takes]  # fmt: skip
    seen = set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += producer[name].takes if name in producer else ()
    return {name for name in seen if name.startswith("w")}


def test_place_that_only_constants_cross_is_no_cut() -> None:
    """A boundary of constants would be sent with each request, and never change."""
    steps = [GraphStep(("w",), ("scaled",)), GraphStep(("scaled",), ("shifted",)), GraphStep(("x", "shifted"), ("y",))]
    assert list(places(steps, ["x"], 3)) == [Place(3, (), (), ("w",))]


def test_random_numbers_are_no_constants() -> None:
    """Two stages that draw them anew would each work with others."""
    steps = [GraphStep((), ("noise",), draws=True), GraphStep(("x", "noise"), ("y",)), GraphStep(("y",), ("z",))]
    assert [place.live for place in places(steps, ["x"], 3)][:2] == [("noise",), ("y",)]


def test_output_that_nobody_uses_later_is_not_carried_on() -> None:
    """The stage that computes it hands it out; sending it through the others would cost bytes for nothing."""
    steps = [GraphStep(("x",), ("a", "result")), GraphStep(("a",), ("b",)), GraphStep(("b",), ("other",))]
    assert [place.live for place in places(steps, ["x"], 3)] == [("a",), ("b",), ()]


def test_pass_over_many_nodes_takes_time_in_proportion() -> None:
    """A graph of a hundred thousand nodes with long ways must not take minutes."""
    count = 20_000
    steps = [GraphStep(("x", "w0", f"t{at - 1}") if at else ("x",), (f"t{at}",)) for at in range(count)]
    side = [GraphStep((f"c{at - 1}",) if at else ("w1",), (f"c{at}",)) for at in range(count)]
    began_s = time.process_time()
    found = list(places([*side, *steps, GraphStep((f"c{count - 1}", f"t{count - 1}"), ("y",))], ["x"], 3))
    assert len(found) == count + 1
    assert found[-1].weights == ("w1",)
    assert time.process_time() - began_s < 5
