"""Series: values at a steady rate, such as those of an inertial sensor, and models that take windows of them."""
