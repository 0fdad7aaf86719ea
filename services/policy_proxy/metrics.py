"""Owns the proxy's Prometheus metrics."""

from typing import TYPE_CHECKING

from prometheus_client import Histogram

if TYPE_CHECKING:
    from services.common.app import Metrics

OVERHEAD_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)


class ProxyMetrics:
    """What the proxy counts."""

    def __init__(self, metrics: "Metrics") -> None:
        self.calls = metrics.counter("calls_total", "Calls by outcome: generated, demonstrated, replayed, failed, cancelled", ("outcome",))
        self.generated = self.calls.labels("generated")
        self.branches = metrics.counter("branches_total", "Calls that left a path of their session's token tree")
        self.malformed = metrics.counter("malformed_tool_calls_total", "Answers with a tool call that could not be read")
        self.resubmissions = metrics.counter("resubmissions_total", "Requests sent again after an abort or a lost server")
        self.prompt_tokens = metrics.counter("prompt_tokens_total", "Prompt tokens by origin: reused from the session, or new", ("origin",))
        self.new_prompt_tokens, self.reused_prompt_tokens = (self.prompt_tokens.labels(origin) for origin in ("new", "reused"))
        self.output_tokens = metrics.counter("output_tokens_total", "Generated tokens recorded")
        self.in_flight = metrics.gauge("calls_in_flight", "Calls running now")
        self.sessions = metrics.gauge("sessions", "Sessions in memory")
        self.paused = metrics.gauge("paused", "1 while admission is paused for a weight update")
        self.policy_version = metrics.gauge("policy_version", "The committed policy version")
        self.servers = metrics.gauge("servers", "Policy servers by state", ("state",))
        self.overhead = Histogram(
            "frontdesk_policy_proxy_overhead_seconds",
            "Time of a call neither in a policy server nor waiting for one",
            buckets=OVERHEAD_BUCKETS_S,
            registry=metrics.registry,
        )
