"""Owns how the engine's counters appear in Prometheus: read at scrape time, so a step pays nothing for them."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from services.policy_server.loading import EngineLoader

PREFIX = "frontdesk_policy_server_"
COUNTERS = {
    "generated_tokens": "Tokens sampled",
    "prompt_tokens": "Prompt tokens of submitted requests",
    "prefill_tokens": "Prompt tokens computed, trunk included",
    "cached_tokens": "Prompt tokens that needed no computing",
    "steps": "Engine steps",
    "step_seconds": "Time in engine steps",
    "finished": "Requests ended, in whatever way",
    "aborted": "Requests ended by an abort",
    "retracted": "Requests sent back to wait",
    "weight_updates": "Weights taken after the first",
}


class EngineCollector(Collector):
    """Reads `Engine.load`."""

    def __init__(self, loader: EngineLoader) -> None:
        self._loader = loader

    def collect(self) -> Iterator[Metric]:
        """The samples of this moment; none before the policy is loaded."""
        if self._loader.engine is None:
            return
        load = self._loader.engine.load()
        for name, doc in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, doc, value=getattr(load.totals, name))
        yield GaugeMetricFamily(PREFIX + "running_requests", "Requests that hold a slot", value=load.running)
        yield GaugeMetricFamily(PREFIX + "waiting_requests", "Requests that wait", value=load.waiting)
        yield GaugeMetricFamily(PREFIX + "kv_tokens", "Tokens whose keys and values are kept", value=load.kv_tokens)
        yield GaugeMetricFamily(PREFIX + "trunk_tokens", "Those of them that are shared", value=load.trunk_tokens)
        yield GaugeMetricFamily(PREFIX + "paused", "1 while generation is paused", value=float(load.paused))
