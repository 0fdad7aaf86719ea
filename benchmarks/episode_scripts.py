"""Owns the scripted parts that the episode benchmark plays: what agent and user say in each episode, as OpenAI messages.

The agent makes the task's reference actions, asks the user in text for those that are the user's, tells what must be communicated and says
goodbye. A stand-in for two models: it shows nothing about how good an agent is. Used by our runner and by upstream's alike.
"""

import json
from typing import Any

Json = dict[str, Any]

ASK, BYE = "Please run: ", "Goodbye."


def agent_script(task: Json) -> list[Json]:
    """The agent's messages of one normal-mode episode, in order."""
    criteria = task.get("evaluation_criteria") or {}
    messages: list[Json] = []
    for number, action in enumerate(criteria.get("actions") or ()):
        if action.get("requestor", "assistant") == "user":
            messages.append({"role": "assistant", "content": f"{ASK}{action['name']} {json.dumps(action['arguments'])}"})
        else:
            messages.append(tool_call(f"call_{number}", action["name"], action["arguments"]))
    told = ". ".join(criteria.get("communicate_info") or ())
    messages.append({"role": "assistant", "content": f"{told} {BYE}".strip()})
    return messages


def user_reply(last: Json, opening: str, number: int) -> Json:
    """What the user says to the last message of its view (``role`` as the user sees it: the agent is ``assistant``)."""
    text = last.get("content") or ""
    if last["role"] == "tool":
        return {"role": "assistant", "content": "I have done that."}
    if text.startswith(ASK):
        name, _, arguments = text.removeprefix(ASK).partition(" ")
        return tool_call(f"user_{number}", name, json.loads(arguments))
    return {"role": "assistant", "content": "###STOP###" if text.endswith(BYE) else opening}


def tool_call(call_id: str, name: str, arguments: Json) -> Json:
    """An assistant message with one tool call."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": call_id, "type": "function", "function": function}]}
