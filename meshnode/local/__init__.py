"""Local applications: other processes on this computer that publish, subscribe and infer through a running node."""
