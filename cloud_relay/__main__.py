"""``python -m cloud_relay``."""

from cloud_relay.cli import main

main()
