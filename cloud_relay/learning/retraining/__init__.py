"""When models are trained again, and the process that does it beside the relay."""
