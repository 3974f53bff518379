"""An example of a model of windows: how a vehicle moves, learned from what an inertial sensor says of it."""
