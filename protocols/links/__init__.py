"""Links: the queues of frames that wait for a neighbour, and the throughput of the link to it."""
