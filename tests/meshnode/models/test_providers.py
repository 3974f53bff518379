"""Execution providers: by which of them a model is computed, and what is said about the others."""

from meshnode.models.providers import chosen_providers, provider_notes

CPU, CUDA, VINO = "CPUExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider"


def test_providers_are_taken_in_the_order_asked_for_and_the_processor_last() -> None:
    """What a graphics processor can't compute, the processor does."""
    assert chosen_providers(("cuda", "openvino"), (CPU, VINO, CUDA)) == ([CUDA, VINO, CPU], ())
    assert chosen_providers(("cpu", "cuda"), (CPU, CUDA)) == ([CPU, CUDA], ())
    assert chosen_providers(("cpu",), (CPU, CUDA)) == ([CPU], ())


def test_provider_that_is_absent_or_unknown_is_named_and_the_next_is_taken() -> None:
    """One configuration serves computers of several kinds."""
    chosen, (unknown, absent) = chosen_providers(("npu", "cuda", "openvino"), (CPU, VINO))
    assert chosen == [VINO, CPU]
    assert "'npu' is unknown" in unknown
    assert "'cuda' is not in the installed onnxruntime, which has cpu, openvino" in absent


def test_provider_that_does_not_start_is_told() -> None:
    """ONNX Runtime takes the processor without a word when a driver is missing."""
    assert provider_notes([CUDA, CPU], [CUDA, CPU]) == ()
    (note,) = provider_notes([CUDA, CPU], [CPU])
    assert "cuda can't be used and cpu computes the model" in note
