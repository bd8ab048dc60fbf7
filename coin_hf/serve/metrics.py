"""What a router did, for Prometheus."""

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coin_hf.serve.events import Observer, Reply, Suppressed

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics(Observer):
    """Counts a router's events."""

    def __init__(self) -> None:
        """Start at zero, in a registry of its own."""
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "coin_requests", "Answers by expert and kind.", ["expert", "answer"], **make
        )
        self.responses = Counter(
            "coin_responses", "Responses to queries, refused ones included.", ["path", "status"],
            **make,
        )  # fmt: skip
        self.seconds = Histogram(
            "coin_seconds", "Seconds until the answer.", ["answer"], buckets=BUCKETS, **make
        )
        self.hedges = Counter(
            "coin_hedges", "Times that others were asked, by reason.", ["expert", "reason"], **make
        )
        self.held = Counter(
            "coin_hedges_suppressed", "Hedges not made, by reason.", ["expert", "reason"], **make
        )
        self.cancels = Counter(
            "coin_cancelled", "Requests to networks that nobody waited for.", ["network"], **make
        )
        self.waste = Counter(
            "coin_wasted", "Answers of networks that came too late.", ["network"], **make
        )
        self.agreement = Counter(
            "coin_agreement", "Decoded beside direct answers.", ["expert", "same"], **make
        )
        self.breakers = Gauge("coin_breaker_open", "1 where it counts as down.", ["expert"], **make)
        self.deadlines = Gauge("coin_deadline_seconds", "When it is late.", ["expert"], **make)

    def answered(self, reply: Reply) -> None:
        """Count an answer."""
        self.requests.labels(reply.expert, reply.how).inc()
        self.seconds.labels(reply.how).observe(reply.seconds)

    def failed(self, expert: str, error: BaseException) -> None:
        """Count a request without an answer."""
        self.requests.labels(expert, type(error).__name__.lower()).inc()

    def hedged(self, expert: str, reason: str) -> None:
        """Count a hedge."""
        self.hedges.labels(expert, reason).inc()

    def suppressed(self, expert: str, reason: Suppressed) -> None:
        """Count a hedge that was not made."""
        self.held.labels(expert, reason).inc()

    def cancelled(self, network: str) -> None:
        """Count a request that nobody waits for."""
        self.cancels.labels(network).inc()

    def wasted(self, network: str) -> None:
        """Count an answer that came too late."""
        self.waste.labels(network).inc()

    def agreed(self, expert: str, same: bool) -> None:
        """Count a decoded answer beside a direct one."""
        self.agreement.labels(expert, str(same).lower()).inc()

    def families(self) -> list[Metric]:
        """Return all metrics as they are now, as plain data."""
        return list(self.registry.collect())


class Aggregator:
    """Collects the metrics of all routers; here those of one that is alone."""

    async def exchange(self, families: Sequence[Metric]) -> Mapping[str, Sequence[Metric]]:
        """Give a router's metrics, and get those of all.

        Args:
            families: Its own, as they are now.

        Returns:
            Each router's by its name, as last given; one that is alone has none.
        """
        return {"": families}


def text_of(by_router: Mapping[str, Sequence[Metric]]) -> bytes:
    """Write the metrics of several routers in Prometheus' text format.

    Args:
        by_router: Each router's, by its name; one without a name stands alone.

    Returns:
        Each family once, its samples told apart by the label `router`.
    """
    found: dict[str, Metric] = {}
    for router, families in by_router.items():
        mark = {"router": router} if router else {}
        for family in families:
            kept = found.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            kept.samples += [
                sample._replace(labels={**sample.labels, **mark}) for sample in family.samples
            ]
    return generate_latest(_Families(list(found.values())))


class _Families(Collector):
    """Metrics that are there already, as a registry gives them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Return them."""
        return self._families
