"""Owns what the user's model is asked: upstream tau2's system prompt, then the conversation with the roles swapped.

The user's own tool calls and their results stay in: without them a user with tools does not know what its phone said. Pure.
"""

import json
from typing import Any

from services.common.wire.users import UserSideMessage, UserTurnBody

Json = dict[str, Any]

PERSONA_MARK = "<PERSONA_GUIDELINES>"


def prompt(body: UserTurnBody, persona_guidelines: str = "") -> list[Json]:
    """The chat for the model, in OpenAI form."""
    system = system_prompt(body.guidelines, body.scenario.text, persona_guidelines)
    return [{"role": "system", "content": system}, *(_swapped(message) for message in body.messages)]


def system_prompt(guidelines: str, scenario: str, persona_guidelines: str = "") -> str:
    """Upstream's layout (``user/user_simulator.py``). Guidelines without `PERSONA_MARK` take no persona guidelines."""
    persona = f"\n\n{persona_guidelines}\n" if persona_guidelines else ""
    return f"{guidelines.replace(PERSONA_MARK, persona)}\n\n<scenario>\n{scenario}\n</scenario>"


def _swapped(message: UserSideMessage) -> Json:
    if message.role == "tool":
        return {"role": "tool", "content": message.content, "tool_call_id": message.tool_call_id}
    if message.role == "assistant":
        return {"role": "user", "content": message.content}
    # Not null where there are only calls: several OpenAI-compatible servers refuse that.
    swapped: Json = {"role": "assistant", "content": message.content or ""}
    if message.tool_calls:
        swapped["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
            for call in message.tool_calls
        ]
    return swapped
