"""The commands ``cloud-relay release`` and ``cloud-relay rollout``."""
