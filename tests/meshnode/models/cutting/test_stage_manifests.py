"""The manifest of a stage, written as text: whatever the whole says of an input, the stage says the same."""

from hypothesis import given
from hypothesis import strategies as st

from meshnode.models.cutting.manifests import read_stage_manifest, stage_manifest
from meshnode.models.manifest import DeclaredInput, DeclaredOutput, Manifest
from meshnode.models.preprocessing import Preprocessing

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.floats(-1e6, 1e6).filter(bool)


@st.composite
def declared(draw: st.DrawFn) -> Manifest:
    inputs = [
        DeclaredInput(name=name, dtype="f4", shape=(1, -1), max=draw(st.none() | st.just((-1, 8))),
                      nan=draw(st.sampled_from(["allow", "forbid"])))
        for name in draw(st.lists(names, max_size=3, unique=True))
    ]  # fmt: skip
    steps = {
        name: Preprocessing(
            width=draw(st.integers(1, 4_096)), height=8, fit=draw(st.sampled_from(["stretch", "letterbox"])),
            colours="bgr", scale=draw(numbers), mean=draw(st.just(()) | st.tuples(numbers, numbers, numbers)),
        )
        for name in draw(st.lists(names, max_size=3, unique=True))
    }  # fmt: skip
    return Manifest(
        description="of the whole", inputs=tuple(inputs), outputs=(DeclaredOutput(name="y"),), preprocessing=steps
    )


@given(declared(), st.data())
def test_manifest_of_a_stage_says_of_its_inputs_what_the_whole_says(whole: Manifest, data: st.DataObject) -> None:
    """A bracket or a quote in a name must not change what is declared, nor a number lose its last digit."""
    known = [each.name for each in whole.inputs] + list(whole.preprocessing)
    taken = set(data.draw(st.lists(st.sampled_from(known), unique=True))) if known else set()
    text = stage_manifest(whole, taken)
    read = read_stage_manifest(text)
    assert {each.name: each for each in read.inputs} == {each.name: each for each in whole.inputs if each.name in taken}
    assert dict(read.preprocessing) == {name: each for name, each in whole.preprocessing.items() if name in taken}
    assert (read.outputs, read.description) == ((), "")
    assert bool(text) == bool(taken)


def test_manifest_of_a_stage_that_takes_no_input_of_the_model_is_empty() -> None:
    """Such a stage has the digest of its bytes alone."""
    steps = {"image": Preprocessing(width=8, height=8)}
    assert stage_manifest(Manifest(preprocessing=steps), {"591"}) == ""
    assert read_stage_manifest("") == Manifest()
