"""Owns the chat template: messages and tools in, prompt text out, exactly as transformers' ``apply_chat_template`` would write it.

A Jinja environment of our own instead of transformers: importing transformers costs 9 s and 250 MB where torch is installed, this
0.3 s and 28 MB, and the 44 tool schemas that recur in every call are serialised once instead of once a call (docs/benchmarks.md).
Refuses to look at what the template wrote; `alignment` does that.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import orjson
from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.common.errors import BadRequest

TOOLS_KEPT = 32
"""Distinct tool lists whose JSON is kept; an experiment has one or two."""


class Tool(dict[str, Any]):
    """A tool schema that knows its own JSON."""

    __slots__ = ("json",)

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__(schema)
        self.json = _dump(schema)


class ChatTemplate:
    """A compiled ``chat_template.jinja``. ``special_tokens`` are visible to it by their config names (``eos_token``, …)."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        # Sandboxed, because a template comes with the model and is not ours to trust.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        try:
            functions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
            self._template = environment.from_string(source, globals=functions)
        except TemplateSyntaxError as error:
            raise ValueError(f"chat template, line {error.lineno}: {error.message}") from error
        self._special_tokens = dict(special_tokens)
        self._tools: OrderedDict[bytes, list[Tool]] = OrderedDict()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
    ) -> str:
        """The prompt text. ``extra`` are ``chat_template_kwargs``. Raises `BadRequest` where the template refuses the messages."""
        try:
            return self._template.render(
                messages=messages,
                tools=self._known(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **extra,
            )
        except (TemplateError, TypeError) as error:
            raise BadRequest(f"messages: the chat template refuses them: {error}", code="invalid_messages", param="messages") from error

    def _known(self, tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
        key = orjson.dumps(tools)
        known = self._tools.get(key)
        if known is None:
            known = [Tool(tool) for tool in tools]
            self._tools[key] = known
            if len(self._tools) > TOOLS_KEPT:
                self._tools.popitem(last=False)
        else:
            self._tools.move_to_end(key)
        return known


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(value, Tool) and not (ensure_ascii or indent or separators or sort_keys):
        return value.json
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
