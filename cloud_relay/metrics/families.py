"""Families of samples in the form that Prometheus reads."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

PREFIX: Final = "cloud_relay_"
Labels = tuple[str, ...]
Samples = Iterable[tuple[Labels, float]]
"""Values of the labels, and a number."""


def gauge(name: str, text: str, samples: Samples, *labels: str) -> "GaugeMetricFamily":
    """A family of numbers that go up and down; ``name`` without the prefix."""
    # Imported at the first scrape: a relay that nobody watches doesn't pay for it.
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def counter(name: str, text: str, samples: Samples, *labels: str) -> "CounterMetricFamily":
    """A family of numbers that only grow; ``name`` as for :func:`gauge`, without ``_total``."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"{PREFIX}{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def info(text: str, values: dict[str, str]) -> "InfoMetricFamily":
    """Texts about the relay, as labels of a sample that is always 1."""
    from prometheus_client.core import InfoMetricFamily

    return InfoMetricFamily(PREFIX.removesuffix("_"), text, value=values)
