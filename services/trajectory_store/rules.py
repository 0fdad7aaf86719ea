"""Owns the numbers that decide about attempts and groups, as the scripts need them. Refuses to read configuration files."""

from dataclasses import dataclass

from services.common.config.services import StoreService


@dataclass(frozen=True, slots=True)
class Rules:
    """When an episode is tried again, when a group is ready, when the store refuses more."""

    max_attempts: int = 3
    retry_delay_s: float = 0.5
    retry_max_delay_s: float = 60.0
    group_quorum: float = 1.0
    group_deadline_s: float = 0.0
    max_queued: int = 1_000_000
    alarm_after_barren_groups: int = 200
    session_ttl_s: int = 86_400

    @property
    def retry(self) -> tuple[int, float, float]:
        """(attempts, first delay, longest delay), as the scripts take them."""
        return self.max_attempts, self.retry_delay_s, self.retry_max_delay_s


def rules_of(settings: StoreService) -> Rules:
    """The rules of a configured store."""
    return Rules(
        max_attempts=settings.max_attempts,
        retry_delay_s=settings.retry_delay_s,
        retry_max_delay_s=settings.retry_max_delay_s,
        group_quorum=settings.group_quorum,
        group_deadline_s=settings.group_deadline_s,
        max_queued=settings.max_queued,
        alarm_after_barren_groups=settings.alarm_after_barren_groups,
        session_ttl_s=settings.session_ttl_s,
    )
