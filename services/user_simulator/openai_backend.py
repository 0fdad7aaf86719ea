"""Owns the way to a model on any OpenAI-compatible server, such as SGLang: one POST per completion. Refuses to retry: the turn decides."""

import os
from typing import Any

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.user_simulator.completion import BackendFailed

Json = dict[str, Any]

API_KEY_ENV = "FRONTDESK_USER_LLM_API_KEY"
PROVIDERS = ("openai/", "hosted_vllm/")
"""litellm's prefixes for such servers, which the configs of AReaL's examples carry. No part of the model's name on its server."""
LITELLM_ONLY = ("num_retries", "drop_params", "timeout")


class OpenAIBackend:
    """A model by name on one server. ``base_url`` ends where ``/chat/completions`` begins, as OpenAI SDKs have it."""

    def __init__(self, base_url: str, model: str, *, timeout_s: float) -> None:
        headers = {"Authorization": f"Bearer {os.environ.get(API_KEY_ENV) or 'none'}"}
        self._client = ServiceClient("user model", base_url, timeout_s=timeout_s, headers=headers)
        self._model = model_name(model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def complete(self, request: Json) -> Any:
        """One chat completion. Raises `BackendFailed`."""
        try:
            return await self._client.post("/chat/completions", {"model": self._model, **request})
        except RemoteError as error:
            # A 500 of a model server is mostly one request's bad luck, unlike one of our own services.
            raise BackendFailed(str(error), retryable=error.retryable or error.status == 500) from error
        except ValueError as error:
            raise BackendFailed(f"the answer is not JSON: {error}", retryable=True) from error

    async def check(self) -> str:
        """ "ok", or why the server does not answer."""
        try:
            await self._client.request("GET", "/models", timeout_s=2.0)
        except RemoteError as error:
            # Any HTTP answer shows a server; not all of them list their models.
            return "ok" if error.status is not None and error.status < 500 else str(error)
        return "ok"


def model_name(configured: str) -> str:
    """The name that the server knows: ``openai/self-hosted-Qwen2.5-72B`` is ``self-hosted-Qwen2.5-72B``."""
    prefix = next((prefix for prefix in PROVIDERS if configured.startswith(prefix)), "")
    return configured.removeprefix(prefix)


def request_arguments(arguments: Json) -> Json:
    """``econfig.user_llm_args`` as fields of a request.

    What only litellm knows is left out, ``extra_body`` is merged as OpenAI SDKs do, and ``top_p`` is 1 where nothing is said: SGLang would
    take the model's own default instead (0.8 for Qwen2.5).
    """
    known = {key: value for key, value in arguments.items() if key not in (*LITELLM_ONLY, "extra_body")}
    return {"top_p": 1.0, **known, **(arguments.get("extra_body") or {})}
