"""Field trials: a node that publishes by plan, can be told to misbehave, and keeps a journal."""
