"""The Open Inference Protocol v2: what stock clients of an inference server ask of a node."""
