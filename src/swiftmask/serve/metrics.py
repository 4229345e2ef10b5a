"""What Prometheus reads of a server at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from swiftmask.serve.batches import Batches

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "swiftmask_requests", "Answered requests.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "swiftmask_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "swiftmask_queue_seconds",
            "Waiting for a decode.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter("swiftmask_images", "Images answered.", ("model",), registry=self.registry)
        self.errors = Counter(
            "swiftmask_errors", "Refused or failed requests.", ("type",), registry=self.registry
        )
        self.cancelled = Counter(
            "swiftmask_cancelled", "Requests whose client went away.", registry=self.registry
        )
        self._batch_size = Histogram(
            "swiftmask_batch_size", "Images of a decode.", buckets=_SIZES, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "swiftmask_batch_seconds",
            "A decode with its pixels.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def watch(self, batches: Batches) -> None:
        """Gauges of a queue."""
        for name, text, value in (
            ("swiftmask_queue_images", "Images that wait.", batches.num_waiting),
            ("swiftmask_running_images", "Images of the decode that runs.", lambda: batches.num_running),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def batch_done(self, size: int, seconds: float) -> None:
        """One decode."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """The page, in Prometheus' text format."""
        return generate_latest(self.registry)
