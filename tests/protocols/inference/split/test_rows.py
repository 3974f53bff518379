"""Which inputs of a batch are divided, when that is not possible, and how outputs are joined."""

from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.errors import InputInvalid
from protocols.inference.signature import ModelSignature, TensorSignature
from protocols.inference.split.batches.rows import Joined, Rows
from protocols.wire.tensors import NamedTensor, Tensor, tensor_of


def numbers(name: str, *shape: int) -> NamedTensor:
    count = 1
    for size in shape:
        count *= size
    return NamedTensor(name, Tensor("i4", shape, tensor_of(array("i", range(count))).data))


def signature(*inputs: tuple[int | None, ...], output: tuple[int | None, ...] = (None, 2)) -> ModelSignature:
    taken = tuple(TensorSignature(name, "i4", shape) for name, shape in zip("abc", inputs, strict=False))
    return ModelSignature(taken, (TensorSignature("y", "i4", output),))


def values(named: NamedTensor) -> list[int]:
    return list(named.tensor.data.cast("i"))


def test_inputs_of_the_same_length_are_divided_and_others_go_along() -> None:
    """Images with their depths, and one scale for all."""
    rows = Rows("m", None, (numbers("a", 4, 2), numbers("b", 4), numbers("c", 3)), (), ())
    assert (rows.count, rows.unit, rows.row_bytes, rows.same_bytes) == (4, 0, 12, 12)
    a, b, c = rows.shard(1, 2)
    assert (a.tensor.shape, values(a)) == ((2, 2), [2, 3, 4, 5])
    assert (b.tensor.shape, values(b)) == ((2,), [1, 2])
    assert values(c) == [0, 1, 2]


def test_shard_is_a_view_of_the_bytes_of_the_caller() -> None:
    """A batch of a gigabyte must not be copied under the engine's lock."""
    given_array = array("i", range(6))
    rows = Rows("m", None, (NamedTensor("a", tensor_of(given_array)),), (), ())
    (part,) = rows.shard(2, 3)
    given_array[3] = 77
    assert values(part) == [2, 77, 4]


def test_input_that_the_model_takes_as_it_is_is_not_divided() -> None:
    """A table of anchors may be longer than the batch."""
    rows = Rows("m", signature((1, 2), (9, 4)), (numbers("a", 3, 2), numbers("b", 9, 4)), (), ())
    assert (rows.count, rows.unit) == (3, 1)
    assert [named.tensor.shape for named in rows.shard(0, 1)] == [(1, 2), (9, 4)]


def test_caller_can_name_the_inputs_that_are_divided() -> None:
    """A shared input may happen to be as long as the batch."""
    rows = Rows("m", None, (numbers("a", 4), numbers("b", 4)), (), ("a",))
    assert [named.tensor.shape for named in rows.shard(0, 2)] == [(2,), (4,)]


PICTURES = ModelSignature((TensorSignature("a", "u1", (None,)),), (TensorSignature("y", "i4", (1, 2)),))


def picture(*names: bytes) -> tuple[NamedTensor, ...]:
    return tuple(NamedTensor("a", tensor_of(name)) for name in names)


@pytest.mark.parametrize("model", [PICTURES, None])
def test_encoded_pictures_are_rows_of_their_own(model: ModelSignature | None) -> None:
    """Each has another size, so they can't be one array; the threshold for all of them goes along."""
    rows = Rows("m", model, (*picture(b"one", b"three"), numbers("b", 7)), (), ())
    assert (rows.count, rows.unit, rows.row_bytes, rows.same_bytes) == (2, 1, 4, 28)
    for at, expected in enumerate((b"one", b"three")):
        a, b = rows.shard(at, 1)
        assert (a.name, bytes(a.tensor.data), b.tensor.shape) == ("a", expected, (7,))


def test_single_encoded_picture_is_a_batch_of_one() -> None:
    """A folder may hold only one, and its bytes are no rows."""
    rows = Rows("m", PICTURES, picture(b"JPEG"), (), ())
    assert (rows.count, rows.unit) == (1, 1)
    assert bytes(rows.shard(0, 1)[0].tensor.data) == b"JPEG"


def test_decoded_pictures_go_one_by_one_to_a_model_that_takes_encoded_ones() -> None:
    """Its signature says ``u1[?]``, and tells nothing of what it takes beside that."""
    assert Rows("m", PICTURES, (numbers("a", 6, 3, 4, 4),), (), ()).unit == 1


@pytest.mark.parametrize(("model", "inputs", "divided", "message"), [
    (None, (numbers("a"),), (), "no input of model 'm' is given with rows"),
    (None, (numbers("a", 3), numbers("b")), ("b",), "input 'b' of model 'm' has no dimensions"),
    (None, (numbers("a", 3),), ("d",), "input 'd' of model 'm' is not given"),
    (None, (numbers("a", 3), numbers("b", 4)), ("a", "b"), "equally many rows.*'a' has 3, 'b' has 4"),
    (None, (numbers("a", 0, 4),), (), "at least one"),
    (None, (numbers("a", 2), numbers("b", 2), numbers("b", 3), numbers("b", 1)), ("a",), "'a' has 2, 'b' has 3"),
    (signature((4, 2)), (numbers("a", 6, 2),), (), "takes 4 rows at a time, and 6 .* add 2 rows, or give 2 fewer"),
    (signature((1, 2), (2, 2)), (numbers("a", 4, 2), numbers("b", 4, 2)), (), "take 1 and 2 rows at a time"),
    (signature((None, 2), output=(1, 2)), (numbers("a", 4, 2),), (), "does not follow the batch"),
])  # fmt: skip
def test_batch_that_cannot_be_divided_is_refused_with_the_reason(
    model: ModelSignature | None, inputs: tuple[NamedTensor, ...], divided: tuple[str, ...], message: str
) -> None:
    """Before anything is computed."""
    with pytest.raises(InputInvalid, match=message):
        Rows("m", model, inputs, (), divided)


def test_output_that_nobody_wants_need_not_follow_the_batch() -> None:
    """Whoever asks only for the others can have them."""
    both = ModelSignature(signature((None, 2)).inputs, (
        TensorSignature("y", "i4", (None,)), TensorSignature("statistics", "f4", (7,)),
    ))  # fmt: skip
    inputs = (numbers("a", 4, 2),)
    with pytest.raises(InputInvalid, match="'statistics'"):
        Rows("m", both, inputs, (), ())
    assert Rows("m", both, inputs, ("y",), ()).count == 4


@given(cuts=st.sets(st.integers(1, 19)), order=st.randoms())
def test_outputs_are_joined_in_order_however_they_come(cuts: set[int], order: object) -> None:
    """The first shard may be the last to end."""
    rows = Rows("m", None, (numbers("a", 20, 3),), (), ())
    edges = [0, *sorted(cuts), 20]
    shards = list(pairwise(edges))
    order.shuffle(shards)  # type: ignore[attr-defined]
    joined = Joined(20)
    for first, end in shards:
        outputs = rows.shard(first, end - first)
        assert joined.misfit(end - first, outputs) == ""
        joined.add(first, outputs)
    (whole,) = joined.tensors()
    assert (whole.tensor.shape, values(whole)) == ((20, 3), list(range(60)))


def test_output_that_does_not_fit_is_told() -> None:
    """The message says what is wrong with it."""
    joined = Joined(4)
    assert "i4[3, 2] for 2 rows" in joined.misfit(2, (numbers("y", 3, 2),))
    assert "i4[] for 2 rows" in joined.misfit(2, (numbers("y"),))
    joined.add(0, (numbers("y", 2, 2),))
    assert "that of another shard i4[?, 2]" in joined.misfit(2, (numbers("y", 2, 3),))
    assert "not those of another shard" in joined.misfit(2, (numbers("z", 2, 2),))
    assert joined.misfit(2, (numbers("y", 2, 2),)) == ""
