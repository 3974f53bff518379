"""The NNG link engine: links and exchanges on NNG sockets. The only package that imports pynng."""
