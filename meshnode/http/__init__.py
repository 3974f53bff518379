"""A node's HTTP API on loopback: health, metrics, readings, and the Open Inference Protocol."""

from meshnode.http.server import HttpServer as HttpServer
