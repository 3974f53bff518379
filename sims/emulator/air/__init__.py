"""The emulated air: Ethernet frames moved between TAP devices as the models of the media say."""
