"""Owns where each service listens and how the laptop stand-ins are sized. Frontdesk's own section: AReaL has no services."""

import os
from typing import Literal, get_args

from pydantic import Field

from services.common.config.base import HttpUrl, Section, http_url

ServiceName = Literal["trajectory_store", "policy_server", "policy_proxy", "user_simulator", "agent_runner", "trainer"]
SERVICE_NAMES: tuple[ServiceName, ...] = get_args(ServiceName)


class Endpoint(Section):
    """Where one service listens."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    url: HttpUrl | None = None
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
    """Back-off before the second attempt; it doubles with each further one."""
    retry_max_delay_s: float = Field(default=60.0, ge=0)
    group_deadline_s: float = Field(default=0.0, ge=0)
    """This long after its first lease a train group is delivered with the members that have a reward, if they are a quorum; 0 = never."""
    group_quorum: float = Field(default=1.0, gt=0, le=1)
    """Share of a group."""
    max_queued: int = Field(default=1_000_000, ge=1)
    """Episodes that may wait; more are refused with 429."""
    alarm_after_barren_groups: int = Field(default=200, ge=0)
    """Groups in a row of which the dynamic filter took everything: then an alarm is raised and no train episode is taken; 0 = never."""
    session_ttl_s: int = Field(default=86_400, ge=1)
    """A session that no trajectory names is forgotten after this long."""
    max_body_mb: int = Field(default=64, ge=1)
    """Largest body of a request."""
    max_inflight_body_mb: int = Field(default=512, ge=1)
    """Bodies being read at one time, together; more are refused with 429."""
    spill_url: str | None = None
    """Where large bodies go instead of into Redis: a folder, or any fsspec URL such as ``s3://bucket/path``."""
    spill_over_kb: int = Field(default=64, ge=1)
    """Compressed size from which a body is large."""
    retain_age_s: float | None = Field(default=None, gt=0)
    """Consumed trajectories are removed after this long; null = never. Their ids stay known."""
    retain_trajectories: int | None = Field(default=None, ge=0)
    """Most trajectories kept; the oldest consumed ones go first."""
    retain_mb: int | None = Field(default=None, ge=0)
    """Most megabytes of bodies kept, likewise."""
    dump_to_file: bool = False
    """Writes every trajectory as json and txt below ``{fileroot}/generated`` when it is final."""
    max_trials: int = Field(default=64, ge=1)
    """Trials that one store serves under ``/t/{experiment}/{trial}``."""


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
    server_urls: list[HttpUrl] = []
    """SGLang servers behind the proxy; default the policy_server of this config."""
    call_timeout_s: float = 300.0
    pause_deadline_s: float = 60.0
    """A pause that nobody ends is lifted by itself after this long."""
    max_inflight_calls: int = 4096
    """Calls at one time; more are refused with 429."""
    max_inflight_per_server: int = Field(default=512, ge=1)
    """Calls at one policy server; the limit in force is lower where its own load figures ask for it."""
    max_waiting_calls: int = Field(default=4096, ge=0)
    """Calls that may wait for a place at a policy server; more are refused with 429."""
    server_api: Literal["generate", "chat"] = "generate"
    """Which of SGLang's routes generates: ``/generate``, or chat completions with ``input_ids`` and ``return_token_ids``, which cannot
    stream: a client that streams then gets its tokens at once when the answer is complete."""
    router_url: HttpUrl | None = None
    """An sglang-router: generation goes through it, while each of ``server_urls`` is watched and updated directly."""
    pause_mode: Literal["abort", "wait", "retract", "in_place"] = "abort"
    """What a weight update does to running calls: ends them and sends what they have back for the rest under the new weights (abort), lets
    them finish for up to half the deadline and ends the others (wait), computes their keys and values anew (retract), or keeps those of the
    old weights (in_place). The last two need a server that reports versions token by token."""
    controls_servers: bool = True
    """Whether this proxy updates, pauses and continues its servers. Of several proxies before the same servers at least one must; one that
    does not takes each server for what it says it has."""
    stall_s: float = Field(default=120.0, gt=0)
    """A streamed answer that says nothing for this long is taken from its server and goes on at another one."""
    areal_capacity: int | None = Field(default=None, ge=0)
    """Sessions that ``POST /rl/start_session`` may begin before the first ``POST /grant_capacity``; each takes one, each grant adds one. 0
    is AReaL's own rule; null: sessions begin without grants."""
    areal_export_wait_s: float = Field(default=120.0, gt=0)
    """How long ``POST /export_trajectories`` waits for the end of its session."""
    untrue_logprobs: Literal["refuse", "allow"] = "refuse"
    """Whether calls may ask for sampling whose captured logprobs are not the policy's own (top_p, top_k, penalties, constrained decoding).
    ``allow`` is for sessions that nobody trains on."""


class RestartConfig(Section):
    """When a wrapped server that died is started again."""

    max: int = Field(default=5, ge=0)
    """Restarts in a row; a life of ``reset_after_s`` sets the count back."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Before the first restart; doubled with each further one."""
    backoff_max_s: float = Field(default=60.0, ge=0)
    reset_after_s: float = Field(default=600.0, ge=0)


class WrappedServerConfig(Section):
    """services.user_simulator.server: the model server that the user simulator starts itself."""

    command: list[str] = Field(min_length=1)
    """Such as ``python -m sglang.launch_server …``, word by word; nothing is expanded."""
    ready_url: HttpUrl
    """Answers 2xx once the server can serve, such as ``http://127.0.0.1:30000/health``."""
    start_timeout_s: float = Field(default=1800.0, gt=0)
    """From the start to the first answer of ``ready_url``; a 72B model takes minutes to load."""
    probe_every_s: float = Field(default=2.0, gt=0)
    hang_s: float = Field(default=180.0, gt=0)
    """A server that was ready and does not answer for this long is killed and started again."""
    stop_timeout_s: float = Field(default=10.0, gt=0)
    """From SIGTERM to SIGKILL."""
    restart: RestartConfig = RestartConfig()


class UserService(Endpoint):
    """user_simulator."""

    port: int = 8104
    backend: Literal["auto", "scripted", "openai", "litellm"] = "auto"
    """``auto``: openai where ``econfig.user_llm_base_url`` is set, else litellm where ``econfig.user_llm`` is, else scripted."""
    turn_timeout_s: float = Field(default=120.0, gt=0)
    """One turn, with all its retries and its resample."""
    call_timeout_s: float = Field(default=60.0, gt=0)
    """One request to the model; a stalled one is sent again while the turn has time."""
    max_inflight_turns: int = Field(default=4096, ge=1)
    """More are refused with 429."""
    resample_temperature: float = Field(default=0.7, gt=0)
    """Of the second sample of a turn, where the configured temperature is lower: at 0 another seed alone gives the same turn again."""
    persona_guidelines: str = ""
    """Stands where the benchmark's guidelines have ``<PERSONA_GUIDELINES>``; guidelines without that mark take none, as upstream."""
    server: WrappedServerConfig | None = None
    """The model server to start and watch; null = attach to the one at ``econfig.user_llm_base_url``."""


class RunnerService(Endpoint):
    """agent_runner."""

    port: int = 8103
    concurrency: int = Field(default=64, ge=1)
    """Episodes in flight in this process."""
    lease_ttl_s: float = 20.0
    episode_timeout_s: float = 600.0
    tool_timeout_s: float = Field(default=60.0, gt=0)
    """Tool calls of one message, where the back end's tools run in a thread."""
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
        """Where to reach one service from here. Raises ValueError where the environment names no address."""
        endpoint, variable = self.endpoint(name), f"FRONTDESK_{name.upper()}_URL"
        if not (given := os.environ.get(variable)):
            return endpoint.url or f"http://{endpoint.host}:{endpoint.port}"
        try:
            return http_url(given)
        except ValueError as error:
            raise ValueError(f"{variable}: {given!r} {error}") from None
