"""Satellite navigation: fixes by gpsd or NMEA 0183 become the position and the clock uncertainty of a node."""
