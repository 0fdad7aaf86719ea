"""Owns putting the user simulator together: which back end plays the users, and the model server behind it where one is wrapped."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from fastapi import FastAPI

from services.common import app as common
from services.common.background import Background
from services.common.config import ConfigError, ExperimentConfig
from services.common.config.paths import logs_dir
from services.common.config.services import WrappedServerConfig
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.users import UserTurnBody, UserTurnReply
from services.user_simulator import routes
from services.user_simulator.litellm_backend import LitellmBackend
from services.user_simulator.metrics import SimulatorCollector
from services.user_simulator.model import Limits, ModelUser
from services.user_simulator.openai_backend import API_KEY_ENV, OpenAIBackend, request_arguments
from services.user_simulator.scripted import scripted_turn
from services.user_simulator.server import WrappedServer
from services.user_simulator.tally import Tally

BackendName = Literal["scripted", "openai", "litellm"]
PROBE_TIMEOUT_S = 5.0
SECRETS = ("api_key", "api_base", "base_url")


@dataclass(slots=True)
class Simulator:
    """What the routes work with."""

    turn: Callable[[UserTurnBody], Awaitable[UserTurnReply]]
    max_inflight: int
    backend: BackendName
    tally: Tally = field(default_factory=Tally)
    inflight: int = 0
    server: WrappedServer | None = None


def create_app(config: ExperimentConfig) -> FastAPI:
    """The user simulator's app. Raises `ConfigError` where the config names a back end and not what it needs."""
    service, tally = config.services.user_simulator, Tally()
    backend = backend_of(config)
    model = None if backend == "scripted" else _model(config, backend)
    simulator = Simulator(scripted, service.max_inflight_turns, backend, tally)
    if model is not None:
        simulator.turn = _model_user(config, model, tally).turn
    prober = ServiceClient("wrapped model server", service.server.ready_url, timeout_s=PROBE_TIMEOUT_S) if service.server else None
    if service.server is not None and prober is not None:
        simulator.server = _wrapped(config, service.server, prober)

    async def readiness() -> dict[str, str]:
        checks = {"backend": "ok" if model is None else await model.check()}
        return checks if simulator.server is None else {"server": simulator.server.readiness(), **checks}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            if model is not None:
                stack.push_async_callback(model.close)
            if simulator.server is not None and prober is not None:
                await stack.enter_async_context(prober)
                background = await stack.enter_async_context(Background())
                background.start("model server", simulator.server.run)
            yield

    app = common.create_app("user_simulator", lifespan=lifespan, readiness=readiness, routers=[routes.router])
    app.state.simulator = simulator
    app.state.metrics.registry.register(SimulatorCollector(simulator))
    return app


def backend_of(config: ExperimentConfig) -> BackendName:
    """The back end of a config. Raises `ConfigError` where what it needs is missing."""
    env, service = config.econfig, config.services.user_simulator
    chosen = service.backend
    if chosen == "auto":
        chosen = "openai" if env.user_llm_base_url else "litellm" if env.user_llm else "scripted"
    if chosen != "scripted" and not env.user_llm:
        raise ConfigError(f"services.user_simulator.backend={chosen} needs econfig.user_llm, the model that plays the users")
    if chosen == "openai" and not env.user_llm_base_url:
        raise ConfigError("services.user_simulator.backend=openai needs econfig.user_llm_base_url, such as http://host:30000/v1")
    if service.server is not None and chosen == "scripted":
        raise ConfigError("services.user_simulator.server wraps a model that nobody asks: set econfig.user_llm_base_url and user_llm")
    if given := next((key for key in SECRETS if key in (env.user_llm_args or {})), None):
        raise ConfigError(
            f"econfig.user_llm_args.{given}: the key comes from the environment (${API_KEY_ENV}, or the one that litellm reads for the "
            "provider), the address from econfig.user_llm_base_url"
        )
    return chosen


def _model(config: ExperimentConfig, backend: BackendName) -> OpenAIBackend | LitellmBackend:
    env = config.econfig
    assert env.user_llm is not None
    if backend == "litellm":
        return LitellmBackend(env.user_llm, base_url=env.user_llm_base_url)
    assert env.user_llm_base_url is not None
    return OpenAIBackend(env.user_llm_base_url, env.user_llm, timeout_s=config.services.user_simulator.call_timeout_s)


def _model_user(config: ExperimentConfig, backend: OpenAIBackend | LitellmBackend, tally: Tally) -> ModelUser:
    service, arguments = config.services.user_simulator, config.econfig.user_llm_args or {}
    return ModelUser(
        backend,
        request_arguments(arguments) if isinstance(backend, OpenAIBackend) else arguments,
        Limits(service.turn_timeout_s, service.call_timeout_s),
        resample_temperature=service.resample_temperature,
        persona_guidelines=service.persona_guidelines,
        tally=tally,
    )


def _wrapped(config: ExperimentConfig, server: WrappedServerConfig, prober: ServiceClient) -> WrappedServer:
    async def answers() -> bool:
        try:
            await prober.request("GET", "")
        except RemoteError:
            return False
        return True

    return WrappedServer(server, logs_dir(config) / "user_model_server.log", answers)


async def scripted(body: UserTurnBody) -> UserTurnReply:
    """A turn of the scripted user, as a coroutine like the model's."""
    return scripted_turn(body)
