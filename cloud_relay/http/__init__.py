"""The relay over HTTP: records for programs and people."""
