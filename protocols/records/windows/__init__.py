"""Windows: what many readings come to, by time, by pauses between them, or by their number."""
