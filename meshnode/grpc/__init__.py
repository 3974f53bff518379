"""The gRPC endpoint of a node: the Open Inference Protocol v2 for programs on the same host."""
