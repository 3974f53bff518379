"""Sizes as commands show them."""


def shown_size(size_bytes: int) -> str:
    """As in ``12.3 MB``, in units of which it has at least one."""
    for unit, unit_bytes in (("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} bytes"
