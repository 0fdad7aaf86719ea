"""Owns the sizes of the engine and their checks. Refuses sizes that could not hold what they promise."""

from dataclasses import dataclass

from services.common.config.services import PolicyServerService


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Sizes of the engine, in tokens and requests."""

    max_running_requests: int = 64
    max_queued_requests: int = 1024
    """Requests that wait; one more is refused with 503."""
    max_tail_tokens: int = 3072
    kv_slots: int = 192
    threads: int = 1
    min_trunk_tokens: int = 512
    """A shorter shared start is copied between tails, a longer one is computed once as trunk."""
    max_trunk_tokens: int = 131072
    """Idle segments are dropped above this."""
    prefill_tokens_per_step: int = 512
    """New prompt tokens in one step, so that a long prompt does not hold up the tokens of others."""
    build_tokens_per_step: int = 1024
    """Trunk tokens computed between two steps."""

    def __post_init__(self) -> None:
        if self.kv_slots < self.max_running_requests:
            raise ValueError(
                f"services.policy_server.kv_slots is {self.kv_slots}: every running request needs a slot, "
                f"set it to at least max_running_requests ({self.max_running_requests})"
            )
        if self.max_tail_tokens < self.min_trunk_tokens:
            raise ValueError(
                f"services.policy_server.max_tail_tokens is {self.max_tail_tokens}: set it to at least {self.min_trunk_tokens}"
            )

    @classmethod
    def from_config(cls, section: PolicyServerService) -> "EngineSettings":
        """The settings of a service section."""
        return cls(
            max_running_requests=section.max_running_requests,
            max_tail_tokens=section.max_tail_tokens,
            kv_slots=section.kv_slots,
            threads=section.threads,
        )
