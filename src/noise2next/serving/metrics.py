"""What Prometheus may ask: requests, queries, batches, and which version serves since when."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
QUERIES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = of = CollectorRegistry()
        ProcessCollector(registry=of)
        self.requests = Counter("noise2next_requests", "Requests answered.", ["endpoint", "status"], registry=of)
        self.seconds = Histogram(
            "noise2next_request_seconds", "From the request's head to the answer's end.", ["endpoint"],
            buckets=SECONDS, registry=of,
        )  # fmt: skip
        self.queries = Counter("noise2next_queries", "Queries answered by a model.", registry=of)
        self.fallbacks = Counter("noise2next_fallbacks", "Queries answered by popularity.", ["reason"], registry=of)
        self.unknown_items = Counter("noise2next_unknown_items", "Items given that no model knew.", registry=of)
        self.together = Histogram(
            "noise2next_batch_queries", "Queries scored in one call.", buckets=QUERIES, registry=of
        )
        self.waiting = Gauge("noise2next_waiting_queries", "Queries that wait to be scored.", registry=of)
        self.listed = Gauge("noise2next_users_listed", "Users whose lists are worked out and looked up.", registry=of)
        self.turned_away = Counter(
            "noise2next_turned_away", "Requests refused because the queue was full.", registry=of
        )
        self.model = Gauge(
            "noise2next_model", "1 for the version that serves.", ["version", "variant", "data_version"], registry=of
        )
        self.model_since = Gauge("noise2next_model_since_seconds", "When it began, in seconds of 1970.", registry=of)
        self.swaps = Counter("noise2next_model_swaps", "Versions that began to serve.", registry=of)
        self.versions_kept_out = Counter(
            "noise2next_versions_kept_out", "Loads of a champion that failed, the old one goes on.", registry=of
        )
        self.registry_reached = Gauge("noise2next_registry_reached", "1 where the registry last answered.", registry=of)

    def serves(self, version: str, variant: str, data_version: str) -> None:
        """Another version begins."""
        self.model.clear()
        self.model.labels(version, variant, data_version).set(1)
        self.model_since.set_to_current_time()
        self.swaps.inc()

    def page(self) -> bytes:
        """In Prometheus' text form."""
        return generate_latest(self._registry)
