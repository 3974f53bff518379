"""What the commands share: the running node that they talk to, how they print, and how a node runs as a process."""
