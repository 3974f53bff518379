"""Cameras: frames of video devices, files and streams, and what models are given of a picture."""
