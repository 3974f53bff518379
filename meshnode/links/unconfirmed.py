"""What a connection has taken and the computer of its peer has not confirmed, from the kernel's count of bytes."""

import fcntl
import struct
import termios

RECORD_BYTES = 8 + 22
"""What travels with each frame: its length, and what TLS 1.3 adds to a record."""


def unconfirmed_bytes(descriptor: int) -> int:
    """Bytes handed to a TCP socket that its peer has not acknowledged. 0: the system does not say."""
    try:
        (size_bytes,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return max(0, int(size_bytes))


def frames_in(size_bytes: int, frames_sent: int, frames_bytes: int) -> int:
    """How many frames about ``size_bytes`` are, where ``frames_sent`` frames had ``frames_bytes``; at least one."""
    if size_bytes <= 0 or frames_sent <= 0:
        return 0
    return min(frames_sent, -(-size_bytes * frames_sent // (frames_bytes + frames_sent * RECORD_BYTES)))
