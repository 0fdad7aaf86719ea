"""Owns the parameters that shape an answer: sampling, stop strings, constraints on its form.

Each shaping parameter is turned into arguments of `Sampling`, together with the name under which the client asked for it, so that a
proxy whose calls are trained on can refuse it by that name: logprobs under it would not be those of the policy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import orjson

from services.policy_proxy.chat.fields import Json, invalid, number, unsupported

MAX_STOPS = 16
TOP_K_ALL = 2**20
"""No vocabulary is larger, so that a larger ``top_k`` asks for nothing (AReaL sends 1e8)."""
TAGGED_JSON_PARSERS = frozenset({"qwen25", "qwen", "hermes"})
"""Tool-call parsers of ``<tool_call>{"name": …, "arguments": …}</tool_call>``, whose calls a structural tag can constrain."""
RANGES: Mapping[str, tuple[float, float, float]] = {
    "top_p": (0.0, 1.0, 1.0),
    "min_p": (0.0, 1.0, 0.0),
    "frequency_penalty": (-2.0, 2.0, 0.0),
    "presence_penalty": (-2.0, 2.0, 0.0),
    "repetition_penalty": (0.0, 2.0, 1.0),
}
"""Lowest and highest value, and the one that changes nothing."""
POSITIVE = frozenset({"top_p", "repetition_penalty"})


class Shaping(msgspec.Struct, frozen=True):
    """What a request asks of sampling beyond temperature, budget and seed."""

    arguments: Mapping[str, Any]
    """Of `Sampling`; empty where tokens are drawn from the policy's own distribution."""
    untrue: str = ""
    """The first parameter under which captured logprobs are not the policy's, "" where they are."""
    forced: bool = False
    """The answer must be tool calls; they come as a JSON array of ``{"name", "parameters"}``."""


def read_shaping(body: Json, tools: Sequence[Json], tool_call_parser: str) -> Shaping:
    """Every shaping parameter of ``body``; ``tools`` are those that the policy is shown. Raises `BadRequest`."""
    arguments: Json = {}
    for name, (low, high, neutral) in RANGES.items():
        value = number(body, name, neutral, low, high)
        if name in POSITIVE and value == 0:
            raise invalid(name, "a number over 0 is needed")
        if value != neutral:
            arguments[name] = value
    _read_top_k(body, arguments)
    _read_logit_bias(body, arguments)
    untrue = next(iter(arguments), "")
    name, constraint, forced = _constraint(body, tools, tool_call_parser)
    return Shaping(arguments | constraint, untrue or name, forced)


def read_stops(value: Any) -> tuple[str, ...]:
    """The stop strings. Raises `BadRequest`."""
    stops: Any = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(cast("list[Any]", stops)) > MAX_STOPS
        or not all(isinstance(stop, str) and stop for stop in cast("list[Any]", stops))
    ):
        raise invalid("stop", f"a string is needed, or a list of at most {MAX_STOPS} strings, none of them empty")
    return tuple(cast("list[str]", stops))


def _read_top_k(body: Json, arguments: Json) -> None:
    top_k = body.get("top_k")
    if isinstance(top_k, float) and top_k.is_integer():
        top_k = int(top_k)
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or (top_k < 1 and top_k != -1)):
        raise invalid("top_k", "an integer of at least 1 is needed, or -1 for the whole vocabulary")
    if top_k is not None and 1 <= top_k < TOP_K_ALL:
        arguments["top_k"] = top_k


def _read_logit_bias(body: Json, arguments: Json) -> None:
    value = body.get("logit_bias")
    if value is None or value == {}:
        return
    if not isinstance(value, dict):
        raise invalid("logit_bias", "an object of token ids and numbers is needed")
    biases = cast("Json", value)
    for token, bias in biases.items():
        if not token.isdecimal() or isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise invalid("logit_bias", f"a token id and a number from -100 to 100 are needed, not {token!r}: {bias!r}")
    arguments["logit_bias"] = {token: float(bias) for token, bias in biases.items()}


def _constraint(body: Json, tools: Sequence[Json], tool_call_parser: str) -> tuple[str, Json, bool]:
    """(name of the parameter that asks for it, arguments of `Sampling`, whether the answer must be calls)."""
    schema = _response_schema(body.get("response_format"))
    chosen = _chosen_tools(body.get("tool_choice"), tools)
    strict = [index for index, tool in enumerate(tools) if tool["function"].get("strict")]
    if schema is not None and (tools or chosen):
        raise unsupported("response_format", "it cannot be combined with tools; leave one of them out, or set tool_choice to none")
    if schema is not None:
        return "response_format", {"json_schema": _dump(schema)}, False
    if chosen:
        return "tool_choice", {"json_schema": _dump(_calls_schema(chosen, body))}, True
    if strict:
        name = f"tools[{strict[0]}].function.strict"
        if tool_call_parser not in TAGGED_JSON_PARSERS:
            raise unsupported(name, f"calls in the form of {tool_call_parser!r} cannot be constrained; leave strict out")
        return name, {"structural_tag": _dump(_tagged_calls(tools))}, False
    return "", {}, False


def _response_schema(value: Any) -> Json | None:
    """The JSON schema that a ``response_format`` asks for; None for text."""
    if value is None:
        return None
    form = cast("Json", value) if isinstance(value, dict) else {}
    match form.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            wrapped: Any = form.get("json_schema")
            schema: Any = cast("Json", wrapped).get("schema") if isinstance(wrapped, dict) else None
            if not isinstance(schema, dict):
                raise invalid("response_format.json_schema.schema", "a JSON schema object is needed")
            return cast("Json", schema)
        case _:
            raise invalid("response_format", 'its type must be "text", "json_object" or "json_schema"')


def _chosen_tools(value: Any, tools: Sequence[Json]) -> Sequence[Json]:
    """The tools of which one must be called; none where the policy is free."""
    if value is None or value in ("auto", "none"):
        return ()
    if value == "required":
        if not tools:
            raise invalid("tool_choice", '"required" needs tools')
        return tools
    function: Any = cast("Json", value).get("function") if isinstance(value, dict) else None
    name: Any = cast("Json", function).get("name") if isinstance(function, dict) else None
    if name is None:
        raise invalid("tool_choice", '"auto", "none", "required" or {"type": "function", "function": {"name": …}} is needed')
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise invalid("tool_choice", f"tools has no function {name!r}")
    return named[:1]


def _calls_schema(chosen: Sequence[Json], body: Json) -> Json:
    """What SGLang's own OpenAI front makes of a tool choice: an array of ``{"name", "parameters"}`` objects."""
    definitions: Json = {}
    for tool in chosen:
        definitions |= _parameters(tool).get("$defs", {})
    schema: Json = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": [_call_schema(tool) for tool in chosen]}}
    if body.get("parallel_tool_calls") is False or not isinstance(body["tool_choice"], str):
        schema["maxItems"] = 1
    return schema | ({"$defs": definitions} if definitions else {})


def _call_schema(tool: Json) -> Json:
    parameters = _parameters(tool) or {"type": "object", "properties": {}}
    properties: Json = {"name": {"type": "string", "enum": [tool["function"]["name"]]}, "parameters": parameters}
    return {"properties": properties, "required": ["name", "parameters"]}


def _tagged_calls(tools: Sequence[Json]) -> Json:
    """Free text in which every ``<tool_call>`` is a call of one of the tools; only strict ones have their arguments constrained."""
    structures: list[Json] = [
        {
            "begin": f'<tool_call>\n{{"name":{_dump(tool["function"]["name"])}, "arguments":',
            "schema": _parameters(tool) if tool["function"].get("strict") else {},
            "end": "}\n</tool_call>",
        }
        for tool in tools
    ]
    return {"type": "structural_tag", "structures": structures, "triggers": ["<tool_call>"]}


def _parameters(tool: Json) -> Json:
    return tool["function"].get("parameters") or {}


def _dump(value: Any) -> str:
    return orjson.dumps(value).decode()
