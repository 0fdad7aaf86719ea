"""Owns what ``/openapi.json`` says of the routes that agents call: their bodies, and the statuses beside 200.

Bodies are read by hand (see `chat.request`), so they are described by hand. Only what reading them checks is written here.
"""

from typing import Any

Json = dict[str, Any]

ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": ERROR}}}


MODEL_ERRORS: dict[int | str, dict[str, Any]] = {404: _error("No such model"), 400: _error("The path is not valid")}
CALL_ERRORS: dict[int | str, dict[str, Any]] = {
    400: _error("A parameter is unknown, not supported or wrong, or the prompt is too long; the error names it"),
    401: _error("No session key, or one nobody knows"),
    403: _error("The key of another session"),
    404: _error("No such session"),
    409: _error("The session is sealed, or the call id was used for another body"),
    413: _error("The body is too large"),
    429: _error("Too many calls; Retry-After says when to come back"),
    502: _error("A policy server answered wrongly"),
    503: _error("The trajectory store cannot be reached"),
    504: _error("No completion in time"),
}
ADMIN_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A value cannot be used; the detail names it"},
    401: {"description": "No admin key"},
    403: {"description": "Another key than the admin key"},
    404: {"description": "No such server"},
    409: {"description": "Not possible in the present state, or older than the current version"},
    503: {"description": "No server took it"},
}

NUMBER: Json = {"type": ["number", "null"]}
EXTENSIONS: Json = {
    "seed": {"type": ["integer", "null"], "minimum": 0},
    "top_k": {"type": ["integer", "null"], "minimum": -1},
    "min_p": NUMBER | {"minimum": 0, "maximum": 1},
    "frequency_penalty": NUMBER | {"minimum": -2, "maximum": 2},
    "presence_penalty": NUMBER | {"minimum": -2, "maximum": 2},
    "repetition_penalty": NUMBER | {"exclusiveMinimum": 0, "maximum": 2},
    "logit_bias": {"type": ["object", "null"], "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "chat_template_kwargs": {"type": ["object", "null"]},
}
SHARED: Json = {
    "model": {"type": "string", "description": "Echoed; one proxy serves one policy."},
    "temperature": NUMBER | {"minimum": 0, "maximum": 100},
    "top_p": NUMBER | {"exclusiveMinimum": 0, "maximum": 1},
    "stream": {"type": ["boolean", "null"]},
    **EXTENSIONS,
}
PARTS: Json = {"type": "array", "items": {"type": "object", "required": ["type"]}}
TEXT_OR_PARTS: Json = {"anyOf": [{"type": "string"}, PARTS]}
FUNCTION: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
        "parameters": {"type": "object"},
        "strict": {"type": ["boolean", "null"]},
    },
}


def _body(required: list[str], properties: Json) -> Json:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


CHAT_BODY = _body(
    ["model", "messages"],
    {
        **SHARED,
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {"anyOf": [{"type": "string"}, {"type": "null"}, PARTS]},
                    "reasoning_content": {"type": "string"},
                    "tool_call_id": {"type": "string"},
                    "tool_calls": {"type": "array", "items": {"type": "object", "required": ["function"]}},
                },
            },
        },
        "tools": {
            "type": ["array", "null"],
            "items": {"type": "object", "required": ["function"], "properties": {"type": {"const": "function"}, "function": FUNCTION}},
        },
        "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required", None]}, {"type": "object", "required": ["function"]}]},
        "parallel_tool_calls": {"type": ["boolean", "null"]},
        "response_format": {"type": ["object", "null"], "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}},
        "max_tokens": {"type": ["integer", "null"], "minimum": 1},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
        "stop": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 16}]},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 16},
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
        "service_tier": {"enum": ["auto", "default", None]},
        "modalities": {"enum": [["text"], None]},
        "user": {"type": ["string", "null"]},
        "metadata": {"type": ["object", "null"]},
        "store": {"type": ["boolean", "null"]},
        "safety_identifier": {"type": ["string", "null"]},
        "prompt_cache_key": {"type": ["string", "null"]},
    },
)
RESPONSES_BODY = _body(
    ["model", "input"],
    {
        **SHARED,
        "input": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "items": {"type": "object"}}]},
        "instructions": {"type": ["string", "null"]},
        "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
        "tools": {"type": ["array", "null"], "items": FUNCTION | {"required": ["type", "name"]}},
        "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required", None]}, {"type": "object", "required": ["type", "name"]}]},
        "parallel_tool_calls": {"type": ["boolean", "null"]},
        "text": {"type": ["object", "null"]},
        "include": {"type": ["array", "null"], "items": {"const": "message.output_text.logprobs"}},
        "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
        "truncation": {"enum": ["disabled", None]},
        "service_tier": {"enum": ["auto", "default", None]},
        "background": {"enum": [False, None]},
        "stream_options": {"type": ["object", "null"]},
        "reasoning": {"type": ["object", "null"]},
        "metadata": {"type": ["object", "null"]},
        "user": {"type": ["string", "null"]},
        "store": {"type": ["boolean", "null"]},
        "safety_identifier": {"type": ["string", "null"]},
        "prompt_cache_key": {"type": ["string", "null"]},
    },
)
_MESSAGES: Json = {
    **SHARED,
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {"role": {"enum": ["user", "assistant"]}, "content": TEXT_OR_PARTS},
        },
    },
    "system": {"anyOf": [{"type": "null"}, TEXT_OR_PARTS]},
    "stop_sequences": {"type": ["array", "null"], "items": {"type": "string", "minLength": 1}, "maxItems": 16},
    "tools": {"type": ["array", "null"], "items": {"type": "object", "required": ["name", "input_schema"]}},
    "tool_choice": {"type": ["object", "null"], "required": ["type"], "properties": {"type": {"enum": ["auto", "any", "tool", "none"]}}},
    "service_tier": {"enum": ["auto", "standard_only", None]},
    "metadata": {"type": ["object", "null"]},
}
MESSAGES_BODY = _body(["model", "messages", "max_tokens"], _MESSAGES | {"max_tokens": {"type": "integer", "minimum": 1}})
COUNT_BODY = _body(["model", "messages"], _MESSAGES)
DEMONSTRATION_BODY = _body(
    ["messages", "message"],
    {name: CHAT_BODY["properties"][name] for name in ("messages", "tools")} | {"message": {"type": "object", "required": ["role"]}},
)
