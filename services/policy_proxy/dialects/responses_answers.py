"""Owns OpenAI's Responses API as a form of chat completions: answers."""

from typing import Any

from services.policy_proxy.chat.answer import calls_in
from services.policy_proxy.chat.fields import Json

ECHOED: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
}
"""Parameters that a response repeats, and what it says of those that were left out."""


def frame(call_id: str, body: Json, created: int, status: str) -> Json:
    """A response without its output."""
    echoed = {name: default if body.get(name) is None else body[name] for name, default in ECHOED.items()}
    return {
        "id": call_id,
        "object": "response",
        "created_at": created,
        "model": body["model"],
        "status": status,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        "previous_response_id": None,
        **echoed,
    }


def response(completion: Json, body: Json) -> Json:
    """A chat completion as a response."""
    choice = completion["choices"][0]
    cut_off = choice["finish_reason"] == "length"
    whole = frame(completion["id"], body, completion["created"], "incomplete" if cut_off else "completed")
    whole["incomplete_details"] = {"reason": "max_output_tokens"} if cut_off else None
    whole["output"] = output_items(completion["id"], choice)
    whole["usage"] = _usage(completion["usage"])
    for name in ("matched_stop", "malformed_tool_call"):
        if name in choice:
            whole[name] = choice[name]
    return whole


def output_items(call_id: str, choice: Json) -> list[Json]:
    """What was thought, said and called, as items; their ids are made of the call's, so that a replay has the same."""
    said = choice["message"]
    items: list[Json] = []
    if said.get("reasoning_content"):
        items.append(reasoning_item(call_id, said["reasoning_content"]))
    if said.get("content"):
        logprobs: Json = choice["logprobs"] or {}
        items.append(message_item(call_id, said["content"], logprobs.get("content") or []))
    return items + [call_item(call) for call in calls_in(said)]


def reasoning_item(call_id: str, text: str) -> Json:
    """What was thought."""
    return {"type": "reasoning", "id": f"rs_{call_id}", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def message_item(call_id: str, text: str, logprobs: list[Any], status: str = "completed") -> Json:
    """What was said."""
    return {"type": "message", "id": f"msg_{call_id}", "role": "assistant", "status": status, "content": [text_part(text, logprobs)]}


def text_part(text: str, logprobs: list[Any]) -> Json:
    """The text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def call_item(call: Json, status: str = "completed") -> Json:
    """A function call."""
    function = call["function"]
    return {
        "type": "function_call",
        "id": f"fc_{call['id']}",
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
        "status": status,
    }


def _usage(usage: Json) -> Json:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }
