"""The messages of the Open Inference Protocol: bytes that came in, and bytes that go out."""
