"""The proof that stages compute what the whole model computes: a chain of them against the whole, bit for bit."""

from collections.abc import Sequence

from meshnode.models.cutting.inside.samples import Arrays
from meshnode.models.model import LoadedModel
from protocols.base.errors import ModelInvalid


def check_chain(whole: LoadedModel, stages: Sequence[LoadedModel], samples: Sequence[Arrays]) -> None:
    """Run the stages one after the other, as a holder of all tensors does, and compare with the whole.

    :raises ModelInvalid: an output differs in type, shape or any bit; names it.
    """
    for arrays in samples:
        expected = dict(whole.run(arrays))
        held = dict(arrays)
        for stage in stages:
            held.update(stage.run({each.name: held[each.name] for each in stage.inputs}))
        for name, array in expected.items():
            given = held[name]
            if given.dtype == array.dtype and given.shape == array.shape and given.tobytes() == array.tobytes():
                continue
            raise ModelInvalid(
                f"stages of model {whole.name!r} were refused: output {name!r} differs from that of the whole; choose "
                "other cuts, or optimisation = 'basic'"
            )
