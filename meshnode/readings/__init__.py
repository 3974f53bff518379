"""What an application publishes and subscribes with."""
