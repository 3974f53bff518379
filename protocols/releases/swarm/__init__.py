"""The swarm: chunks that travel between neighbours, whatever they are part of."""
