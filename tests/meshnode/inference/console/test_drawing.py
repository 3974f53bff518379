"""The drawing of cuts: well-formed whatever names a model has, complete, and without labels over one another."""

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from meshnode.inference.console.drawing import bytes_text, drawing, milliseconds_text
from meshnode.models.cutting import Cut, CutDescription, CutTensor
from protocols.base.ids import ModelDigest

SVG = "{http://www.w3.org/2000/svg}"


def described(cuts: list[Cut], inputs: tuple[CutTensor, ...] = (CutTensor("x", "f4", (1, 4), 16),)) -> CutDescription:
    return CutDescription(ModelDigest("0" * 64), inputs, inputs, tuple(cuts), 9, 10_000, 2_000, ())


def cut(share: float, size_bytes: int, *names: str) -> Cut:
    tensors = tuple(CutTensor(name, "f4", (1, 3), size_bytes // len(names)) for name in names)
    return Cut(1, tensors, ("x",), size_bytes, share, 100)


def labels(tree: ET.Element) -> list[float]:
    """Where the numbers of cuts stand, from top to bottom."""
    return [float(text.attrib["y"]) for text in tree.iter(f"{SVG}text") if text.get("class") == "strong"]


def test_drawing_of_names_that_look_like_markup_is_well_formed() -> None:
    """A model is made by others: a name with a bracket or a control character must stay a name."""
    evil = '</text><script>alert("1")</script>&\x00\x1b[2J'
    tree = ET.fromstring(drawing(evil, described([cut(0.5, 400, evil)])))
    assert [each.tag for each in tree.iter() if each.tag.endswith("script")] == []
    assert any("<script>" in "".join(each.itertext()) for each in tree.iter(f"{SVG}text"))
    assert not re.search(r"[\x00-\x08\x1b]", "".join(tree.itertext()))


def test_drawing_has_a_bar_for_each_cut_which_tells_all_of_it() -> None:
    """Labels have room for some; whoever points at a bar learns the rest."""
    cuts = [cut(0.1, 400, "a"), cut(0.1001, 40_000, "b", "c"), cut(0.9, 4_000_000, "d", "e", "f")]
    tree = ET.fromstring(drawing("m", described(cuts)))
    told = [str(title.text) for title in tree.iter(f"{SVG}title")][1:]
    assert len(told) == 3
    assert told[1].startswith("cut 1, behind 1 nodes: 40 kB, 10.0% of the time and 100 B of weights before it")
    assert "b: f4[1, 3] (20 kB)" in told[1]
    assert "later nodes use the inputs x" in told[1]
    bars = [each for each in tree.iter(f"{SVG}rect") if each.get("fill-opacity")]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths == sorted(widths)
    assert [bar.attrib["fill"] for bar in bars] == ["#0b7a4b", "#2f6fb2", "#b8741a"]


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_drawing_of_any_number_of_cuts_keeps_its_labels_apart(count: int) -> None:
    """Where many cuts are close together, labels over one another could not be read."""
    cuts = [cut(0.4 + 0.2 * at / max(1, count), 1_000 + at, f"t{at}") for at in range(count)]
    at = labels(ET.fromstring(drawing("m", described(cuts))))
    assert bool(at) == bool(count)
    assert all(below - above >= 16.9 for above, below in pairwise(at))


def test_drawing_of_a_model_without_tensors_of_a_size_is_drawn() -> None:
    """An input of no elements is allowed, and has no logarithm."""
    empty = (CutTensor("x", "f4", (0, 4), 0),)
    ET.fromstring(drawing("m", described([cut(0.5, 0, "a")], empty)))


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (819_200, "819 kB"), (999_700, "1000 kB"), (3_000_000_000, "3 GB")],
)
def test_bytes_are_told_in_three_digits(size_bytes: int, text: str) -> None:
    """A table of seven digits is not read."""
    assert bytes_text(size_bytes) == text


def test_times_are_told_in_milliseconds() -> None:
    """All times of inference are."""
    assert [milliseconds_text(us) for us in (155, 10_123, 2_500_000)] == ["0.155 ms", "10.1 ms", "2500 ms"]
