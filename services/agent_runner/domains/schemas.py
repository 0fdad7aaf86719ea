"""Owns OpenAI function schemas, made from a method's signature and docstring the way upstream tau2 makes them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser
from pydantic import Field, create_model

from services.agent_runner.domains.base import STOP_TOOL, TaskSpec

Schema = dict[str, Any]

EXAMPLES = (" Example:", " For example:", " JSON schema of ")
"""Where the description of an argument ends: upstream's parser takes what follows for an example, inspect-evals' docstrings keep it."""


def function_schema(name: str, function: Callable[..., Any], docstring: str) -> Schema:
    """The schema of a bound or unbound method (``self`` is left out); ``docstring`` describes it and its arguments."""
    doc = docstring_parser.parse(docstring)
    told = {parameter.arg_name: _without_example(parameter.description) for parameter in doc.params}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        described = parameter.name in told
        fields[parameter.name] = (parameter.annotation, Field(default, description=told[parameter.name]) if described else default)
    parts = [part for part in (doc.short_description, doc.long_description) if part]
    return _schema(name, "\n\n".join(parts), create_model("parameters", **fields).model_json_schema())


def _without_example(description: str | None) -> str | None:
    if description is None:
        return None
    ends = [end for mark in EXAMPLES if (end := description.find(mark)) >= 0]
    return description[: min(ends)] if ends else description


def schemas_of_user(schemas: Mapping[str, Schema], task: TaskSpec) -> list[Schema]:
    """What of ``schemas`` the task's user holds. A task that names a tool that does not exist leaves the user without any, as upstream."""
    if task.user_tools is None:
        return list(schemas.values())
    if not schemas.keys() >= set(task.user_tools):
        return []
    return [schema for name, schema in schemas.items() if name in task.user_tools]


def stop_schema() -> Schema:
    """The schema of the tool that ends a solo episode."""
    empty: Schema = {"properties": {}, "title": "parameters", "type": "object"}
    return _schema(STOP_TOOL, "Call this function when you are done with the task.", empty)


def _schema(name: str, description: str, parameters: Schema) -> Schema:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
