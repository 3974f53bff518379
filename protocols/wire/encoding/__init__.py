"""How values and MessagePack are encoded, which all frames share."""
