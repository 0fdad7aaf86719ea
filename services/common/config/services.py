"""Owns where each service listens and how the laptop stand-ins are sized. Frontdesk's own section: AReaL has no services."""

import os
from typing import Literal, get_args

from pydantic import Field

from services.common.config.base import Section

ServiceName = Literal["trajectory_store", "policy_server", "policy_proxy", "user_simulator", "agent_runner", "trainer"]
SERVICE_NAMES: tuple[ServiceName, ...] = get_args(ServiceName)


class Endpoint(Section):
    """Where one service listens."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    url: str | None = None
    """Where the others reach it; default http://host:port. ``FRONTDESK_<NAME>_URL`` in the environment wins."""


class StoreService(Endpoint):
    """trajectory_store."""

    port: int = 8101
    redis_url: str | None = None
    """``REDIS_URL`` in the environment wins. Without either, the launcher starts a Redis of its own."""
    redis_port: int = 8107
    """Of the Redis that the launcher starts."""
    max_attempts: int = Field(default=3, ge=1)
    """An episode that failed this often is dropped with its reason."""
    retry_delay_s: float = Field(default=0.5, ge=0)
    """Back-off before attempt n+1, times n."""


class PolicyServerService(Endpoint):
    """policy_server, the laptop stand-in for SGLang."""

    port: int = 8106
    max_running_requests: int = 64
    max_tail_tokens: int = 3072
    """Longest private part (what follows the shared prefix) of one sequence."""
    kv_slots: int = 192
    """Private parts kept for reuse between turns."""
    threads: int = 1


class ProxyService(Endpoint):
    """policy_proxy."""

    port: int = 8102
    server_urls: list[str] = []
    """SGLang servers behind the proxy; default the policy_server of this config."""
    call_timeout_s: float = 300.0
    pause_deadline_s: float = 60.0
    """A pause that nobody ends is lifted by itself after this long."""
    max_inflight_calls: int = 4096


class UserService(Endpoint):
    """user_simulator."""

    port: int = 8104
    backend: Literal["scripted", "openai"] = "scripted"
    turn_timeout_s: float = 120.0


class RunnerService(Endpoint):
    """agent_runner."""

    port: int = 8103
    concurrency: int = Field(default=64, ge=1)
    """Episodes in flight in this process."""
    lease_ttl_s: float = 20.0
    episode_timeout_s: float = 600.0
    call_timeout_s: float = 300.0


class TrainerService(Endpoint):
    """trainer."""

    port: int = 8105
    threads: int = 1
    warm_start_threads: int = 2
    """Threads of the SFT phase, when nothing else computes."""


class ServicesConfig(Section):
    """One entry a service."""

    trajectory_store: StoreService = StoreService()
    policy_server: PolicyServerService = PolicyServerService()
    policy_proxy: ProxyService = ProxyService()
    user_simulator: UserService = UserService()
    agent_runner: RunnerService = RunnerService()
    trainer: TrainerService = TrainerService()

    def endpoint(self, name: ServiceName) -> Endpoint:
        """The entry of one service."""
        return getattr(self, name)

    def url(self, name: ServiceName) -> str:
        """Where to reach one service from here."""
        endpoint = self.endpoint(name)
        default = endpoint.url or f"http://{endpoint.host}:{endpoint.port}"
        return os.environ.get(f"FRONTDESK_{name.upper()}_URL", default)
