"""CAN: chosen signals of a bus, or of a log of one, become readings."""
