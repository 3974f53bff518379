"""The Open Inference Protocol v2 over HTTP: what stock clients of an inference server ask of a node."""
