"""Files of the traffic simulator SUMO. This package imports nothing else of ``meshnode``: the simulator uses it too."""
