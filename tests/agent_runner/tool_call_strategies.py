"""Hypothesis strategies for tool calls of all kinds: reference actions as they are, bent out of shape, and made up."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

JUNK = st.sampled_from([None, True, 0, -3, 7, 12.5, 250.0, "", "x", "7", "12.5", "nan", [], ["a"], {}, 'a", "b": "c'])
BROKEN_JSON = st.sampled_from(["{", "", "[]", "null", "3", '"x"', '{"a": 1, "a": 2}', '["user_id"]'])


@dataclass(frozen=True)
class Call:
    """One tool call, by whom."""

    name: str
    arguments: dict[str, Any]
    requestor: Any = "assistant"


def bent(arguments: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """``arguments`` with one of them left out, replaced or added; where there are JSON arguments inside, mostly those."""
    options = [st.just(arguments), _replaced(arguments)]
    inner = _object(arguments.get("arguments"))
    if inner is not None:
        options += [_with(arguments, "arguments", BROKEN_JSON), *[_with(arguments, "arguments", _replaced(inner).map(json.dumps))] * 4]
    return st.one_of(options)


def _object(text: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _with(arguments: dict[str, Any], key: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return values.map(lambda value: arguments | {key: value})


def _replaced(arguments: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    added = JUNK.map(lambda value: arguments | {"unheard_of": value})
    if not arguments:
        return added
    key = st.sampled_from(sorted(arguments))
    missing = key.map(lambda name: {kept: value for kept, value in arguments.items() if kept != name})
    return st.one_of(missing, st.tuples(key, JUNK).map(lambda item: arguments | {item[0]: item[1]}), added)


def made_up(tools: Mapping[Any, Mapping[str, Callable[..., Any]]], values: Mapping[str, Sequence[Any]]) -> st.SearchStrategy[Call]:
    """Calls of any tool of either side (``{requestor: {name: method}}``) with ``values`` by parameter name, or with junk."""

    def call(choice: tuple[Any, str]) -> st.SearchStrategy[Call]:
        requestor, name = choice
        named = inspect.signature(tools[requestor][name]).parameters if name in tools[requestor] else {}
        arguments = st.fixed_dictionaries({key: _value(key, values) for key in named if key != "self"})
        return arguments.flatmap(bent).map(lambda made: Call(name, made, requestor))

    names = [(requestor, name) for requestor, methods in tools.items() for name in [*methods, "no_such_tool"]]
    return st.sampled_from(names).flatmap(call)


def _value(parameter: str, values: Mapping[str, Sequence[Any]]) -> st.SearchStrategy[Any]:
    return st.one_of(st.sampled_from(values[parameter]), JUNK) if values.get(parameter) else JUNK
