"""OpenAI's chat-completions form: `request` reads a body, `answer` writes what the policy said."""

from services.policy_proxy.chat.fields import Json
from services.policy_proxy.chat.request import (
    MODEL_ID,
    ChatRequest,
    Demonstration,
    parse_body,
    read_demonstration,
    read_request,
    refuse_untrue,
)

__all__ = ["MODEL_ID", "ChatRequest", "Demonstration", "Json", "parse_body", "read_demonstration", "read_request", "refuse_untrue"]
