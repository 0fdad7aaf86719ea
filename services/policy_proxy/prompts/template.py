"""Owns the chat template: messages and tools in, prompt text out, exactly as transformers' ``apply_chat_template`` would write it.

A Jinja environment of our own instead of transformers: importing transformers costs 9 s and 250 MB where torch is installed, this
0.3 s and 28 MB, and the 44 tool schemas that recur in every call are serialised once instead of once a call (docs/benchmarks.md).
Where `template_loop` shows that it may, a conversation goes on from the checkpoint of an earlier one. Refuses to look at what the
template wrote; `alignment` does that.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from typing import Any, NamedTuple, NoReturn, cast

import orjson
from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from services.common.errors import BadRequest
from services.policy_proxy.prompts.template_loop import Reads, rewrite
from services.policy_proxy.prompts.template_run import Checkpoint, Moved, Rendered, Run, Step
from services.policy_proxy.prompts.texts import Text

TOOLS_KEPT = 32
"""Distinct tool lists whose JSON is kept; an experiment has one or two."""
DICT_ATTRIBUTES = frozenset(dir(dict))
HARMLESS = frozenset({str, Step, LoopContext, Namespace})
"""Types whose public attributes the sandbox lets pass, but for ``str.format``."""
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""What agents call the thoughts of a message; the first that is there counts."""
FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a template raises for messages it was not written for."""


class Tool(dict[str, Any]):
    """A tool schema that knows its own JSON."""

    __slots__ = ("json",)

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__(schema)
        self.json = json.dumps(schema, ensure_ascii=False)


class ChatTemplate:
    """A compiled ``chat_template.jinja``. ``special_tokens`` are visible to it by their config names (``eos_token``, …).

    Raises ValueError where ``source`` cannot be parsed; ``name`` says which template that was.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], name: str = "chat template") -> None:
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
            tree = self._environment.parse(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"{name}, line {error.lineno}: {error.message}") from error
        self._reads = rewrite(tree)
        """What the loop depends on; None where a conversation cannot go on from a checkpoint."""
        tree.set_environment(self._environment)
        self._rewritten = self._environment.from_string(tree) if self._reads is not None else self._template
        self._special_tokens = dict(special_tokens)
        self._tools: OrderedDict[bytes, _Tools] = OrderedDict()
        self._numbers = count()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
    ) -> str:
        """The prompt text. ``extra`` are ``chat_template_kwargs``. Raises `BadRequest` where the template refuses the messages."""
        arguments, _ = self._arguments(messages, tools, add_generation_prompt, extra)
        try:
            return self._template.render(**arguments)
        except FAULTS as error:
            raise _refused(error) from error

    def begin(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
    ) -> Rendered:
        """What `render` gives, with a checkpoint where longer conversations may go on. Raises as `render` does."""
        if self._reads is None:
            return Rendered(Text.of(self.render(messages, tools, add_generation_prompt=add_generation_prompt, extra=extra)), None)
        arguments, context = self._arguments(messages, tools, add_generation_prompt, extra)
        return self._run(arguments, context, self._reads, None)

    def go_on(
        self,
        base: Checkpoint,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
    ) -> Rendered | None:
        """What `begin` gives, written from ``base`` on; None where the template would not write the same up to there.

        The caller knows that the first ``base.n_messages`` messages are those of ``base``. Raises as `render` does.
        """
        if self._reads is None:
            return None
        arguments, context = self._arguments(messages, tools, add_generation_prompt, extra)
        for start in (base, base.earlier):
            with suppress(Moved):
                if start is not None:
                    return self._run(arguments, context, self._reads, start)
        return None

    def _run(self, arguments: dict[str, Any], context: bytes, reads: Reads, base: Checkpoint | None) -> Rendered:
        run = Run(self._environment, reads, arguments["messages"], context, base)
        try:
            return run.render(self._rewritten, arguments)
        except FAULTS as error:
            raise _refused(error) from error

    def _arguments(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
    ) -> tuple[dict[str, Any], bytes]:
        known = self._known(tools)
        arguments = {
            **self._special_tokens,
            **extra,
            "messages": [_with_reasoning(message) for message in messages],
            "tools": known.tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return arguments, orjson.dumps([known.number, extra])

    def _known(self, tools: Sequence[Mapping[str, Any]]) -> "_Tools":
        key = orjson.dumps(tools)
        known = self._tools.pop(key, None) or _Tools(next(self._numbers), [Tool(tool) for tool in tools])
        self._tools[key] = known
        if len(self._tools) > TOOLS_KEPT:
            self._tools.popitem(last=False)
        return known


class _Tools(NamedTuple):
    number: int
    """Stands for the list: another one never gets the same."""
    tools: list[Tool]


class _Environment(ImmutableSandboxedEnvironment):
    """Sandboxed, because a template comes with the model and is not ours to trust."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox does it, less the search for the fields of messages in ``dict``, and the checks of what has nothing to hide."""
        kind = cast("type[object]", type(obj))
        if kind is dict and attribute not in DICT_ATTRIBUTES:
            fields = cast("dict[str, Any]", obj)
            return fields[attribute] if attribute in fields else self.undefined(obj=fields, name=attribute)
        if kind in HARMLESS and not attribute.startswith(("_", "format")):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return super().getattr(obj, attribute)
        return super().getattr(obj, attribute)


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}``: marks what the policy says, for training on text. Here it is only a scope."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message's thoughts under the name that templates read, and under the one that gpt-oss's reads, as transformers has it."""
    if "reasoning_content" not in message and "thinking" not in message and "reasoning" not in message:
        return message
    thoughts = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _refused(error: Exception) -> BadRequest:
    return BadRequest(f"messages: the chat template refuses them: {error}", code="invalid_messages", param="messages")


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
