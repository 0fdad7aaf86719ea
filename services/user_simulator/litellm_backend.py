"""Owns the way to a model of any provider that litellm knows. Imports litellm only when such a model is configured: it takes seconds.

Refuses to retry: the turn decides.
"""

import importlib
import os
from typing import Any

from services.common.config import ConfigError
from services.user_simulator.completion import BackendFailed

Json = dict[str, Any]

RETRYABLE_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})


class LitellmBackend:
    """A model by litellm's name, such as ``gpt-4.1`` or ``anthropic/…``; keys come from the provider's environment variables."""

    def __init__(self, model: str, *, base_url: str | None = None) -> None:
        self._litellm = load_litellm()
        # litellm's errors are subclasses of those of the OpenAI SDK, which it depends on, and have no base class of their own.
        self._errors: Any = importlib.import_module("openai").OpenAIError
        self._fixed: Json = {"model": model, "num_retries": 0, "drop_params": True} | ({"base_url": base_url} if base_url else {})

    async def close(self) -> None:
        """Nothing to close: litellm keeps its own connections."""

    async def complete(self, request: Json) -> Any:
        """One chat completion as plain JSON. Raises `BackendFailed`."""
        # litellm writes its fields into what it is given.
        own = {**request, "messages": [dict(message) for message in request["messages"]]}
        try:
            answer = await self._litellm.acompletion(**{**own, **self._fixed})
        except self._litellm.exceptions.APIConnectionError as error:
            raise BackendFailed(str(error), retryable=True) from error
        except self._errors as error:
            raise BackendFailed(str(error), retryable=getattr(error, "status_code", None) in RETRYABLE_STATUS) from error
        return answer.model_dump()

    async def check(self) -> str:
        """Always "ok": a provider is not asked for a readiness probe."""
        return "ok"


def load_litellm() -> Any:
    """The package. Raises `ConfigError` where it is not installed."""
    # Otherwise the import fetches a price list from the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        litellm: Any = importlib.import_module("litellm")
    except ModuleNotFoundError as error:
        if error.name != "litellm":
            raise
        raise ConfigError(
            "econfig.user_llm names a litellm model and litellm is not installed: pip install 'frontdesk[litellm]', "
            "or set econfig.user_llm_base_url to an OpenAI-compatible server"
        ) from error
    # Advice that it prints to stdout with each error.
    litellm.suppress_debug_info = True
    return litellm
