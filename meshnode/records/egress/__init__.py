"""The egress policy of a node: its section, its key, its pictures, and the gate before the outbox."""
