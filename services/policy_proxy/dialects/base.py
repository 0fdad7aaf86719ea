"""Owns what an API is to the routes: how its requests become chat requests, and answers and errors its own again.

What is recorded is always the chat form, so a call is replayed in whichever API it is asked for again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from services.common.errors import ServiceError
from services.policy_proxy.chat.chunks import ChunkWriter
from services.policy_proxy.chat.fields import Json, unsupported
from services.policy_proxy.sse import EventWriter


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API."""

    to_chat: Callable[[Json], Json]
    """A request body as a chat-completions body. Raises `BadRequest`."""
    answer: Callable[[Json, Json], Json]
    """(chat completion, request body) -> its own answer."""
    writer: Callable[[str, Json, int], EventWriter]
    """(call id, request body, Unix seconds) -> what writes a stream."""
    error: Callable[[ServiceError], Json] = ServiceError.openai
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    """Parameters of chat completions that have another name here."""

    def renamed(self, error: ServiceError) -> ServiceError:
        """The error under the name that the client knows its parameter by."""
        name = self.names.get(error.param or "")
        if name is not None and error.param is not None:
            error.detail = error.detail.replace(error.param, name, 1)
            error.param = name
        return error


EXTENSIONS = frozenset(
    ["seed", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "chat_template_kwargs"]
)
"""Parameters of chat completions that every API takes here, also where its own service has no such parameter."""


def refuse_unknown(body: Json, known: frozenset[str]) -> None:
    """Raises `BadRequest` that names a parameter outside ``known``."""
    unknown = [name for name, value in body.items() if value is not None and name not in known]
    if unknown:
        raise unsupported(min(unknown), "not supported here; remove it")


def only(body: Json, name: str, allowed: tuple[object, ...], why: str) -> None:
    """Raises `BadRequest` where ``name`` is there with a value that cannot be honoured."""
    value = body.get(name)
    if value is not None and value not in allowed:
        raise unsupported(name, f"{why}; remove it")


def _chat_writer(call_id: str, body: Json, created: int) -> EventWriter:
    options: Json = body.get("stream_options") or {}
    return ChunkWriter(call_id, body["model"], created, include_usage=bool(options.get("include_usage")))


CHAT = Dialect(to_chat=lambda body: body, answer=lambda completion, _: completion, writer=_chat_writer)
"""OpenAI's chat completions, which everything else is translated to."""
