"""Benchmarks of this mesh beside bare pynng, eclipse-zenoh and bare ``ssl`` sockets, all in one run."""
