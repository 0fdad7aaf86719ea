"""Owns showing the tally to Prometheus. Read at scrape time, so that a turn only counts once."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.user_simulator.server_states import State

if TYPE_CHECKING:
    from services.user_simulator.app import Simulator

PREFIX = "frontdesk_user_simulator_"


class SimulatorCollector(Collector):
    """The counts of one simulator."""

    def __init__(self, simulator: "Simulator") -> None:
        self._simulator = simulator

    def collect(self) -> Iterator[Metric]:
        """The metrics as they stand now."""
        simulator, tally = self._simulator, self._simulator.tally
        for name, doc, counts in (
            ("turns", "User turns by fault label", tally.turns),
            ("first_samples", "First samples of a turn by fault label", tally.first_samples),
        ):
            family = CounterMetricFamily(PREFIX + name, doc, labels=["fault"])
            for fault, count in counts.items():
                family.add_metric([fault.value], count)
            yield family
        yield CounterMetricFamily(PREFIX + "resampled", "Turns that were sampled anew", value=tally.resampled)
        yield CounterMetricFamily(PREFIX + "retries", "Requests to the model that were sent again", value=tally.retries)
        yield GaugeMetricFamily(PREFIX + "inflight_turns", "Turns in flight", value=simulator.inflight)
        if (server := simulator.server) is not None:
            yield GaugeMetricFamily(PREFIX + "server_ready", "1 while the wrapped server is ready", value=server.state is State.READY)
            yield CounterMetricFamily(PREFIX + "server_restarts", "Restarts of the wrapped server", value=server.restarts.total)
