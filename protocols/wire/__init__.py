"""The frames of the wire and the codec that turns them into bytes and back."""
