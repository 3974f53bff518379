"""The link engine ``nng``: links and exchanges on NNG sockets. No other package imports pynng."""
