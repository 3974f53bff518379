"""What the relay tells Prometheus."""
