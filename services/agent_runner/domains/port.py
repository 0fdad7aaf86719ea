"""Owns how tool code of the `inspect-evals` port becomes plain classes, and how those become toolkits: names, schemas, result texts.

The port hosts its tools on `StoreModel`, which validates the whole database at each attribute read and shares one store per process. The
methods use nothing of that, so a plain class with the same functions gives the same results at a hundredth of the cost. Never calls the
port's `initialize()`, which leaves a file behind per call.
"""

import importlib
import inspect
import json
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.agent_runner.domains.render import to_text
from services.agent_runner.domains.schemas import Schema, function_schema

PORT = "inspect_evals.tau2"
Renderer = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Toolkit:
    """The tools of one side of one domain, loaded once per process."""

    code: type
    """A plain class whose instances hold ``db``."""
    schemas: Mapping[str, Schema]
    """Tool name -> OpenAI schema, in upstream's order."""
    writes: frozenset[str]
    """Tools that can change a database; upstream re-executes only these when it replays a conversation."""
    renderers: Mapping[str, Renderer]

    def render(self, name: str, value: Any) -> str:
        """What a tool returned, as upstream's text."""
        return self.renderers.get(name, to_text)(value)


@dataclass(frozen=True)
class ToolkitSource:
    """Where a toolkit is in the port and what has to be done to it to be upstream's."""

    hosted: str
    """``module:class`` of the tool methods."""
    name: str
    """Upstream's name of the class; it shows in the text of a TypeError, and so in the conversation."""
    wrappers: str
    """The module with the Inspect tools, whose docstrings are upstream's where those of the methods are shortened."""
    tools: tuple[str, ...]
    """Upstream's tools, in upstream's order."""
    writes: frozenset[str]
    described: Callable[[str], bool] = bool
    """Tools whose schema is made from the wrapper's docstring; the others' from the method's."""
    supplied: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])
    """Methods that the port lacks."""
    replaced: Callable[[Any], Mapping[str, Any]] = lambda _module: {}
    """Gives, for the module of the methods, names that shall mean something else in them."""
    renderers: Mapping[str, Renderer] = field(default_factory=dict[str, Renderer])

    def load(self) -> Toolkit:
        """Imports the port (seconds, once) and builds the toolkit."""
        module_name, _, class_name = self.hosted.partition(":")
        module = port_module(module_name)
        code = plain_class(getattr(module, class_name), self.name, supplied=self.supplied, replaced=self.replaced(module))
        wrappers = port_module(self.wrappers)
        schemas = {tool: function_schema(tool, getattr(code, tool), self._docstring(tool, code, wrappers)) for tool in self.tools}
        return Toolkit(code, schemas, self.writes, self.renderers)

    def _docstring(self, tool: str, code: type, wrappers: Any) -> str:
        if hasattr(wrappers, tool) and self.described(tool):
            return getattr(wrappers, tool)().__doc__
        return getattr(code, tool).__doc__


def port_module(name: str) -> Any:
    """A module of the port, such as ``retail.tools``."""
    # What the port's dependencies deprecate at import concerns their authors, not whoever runs with warnings as errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{PORT}.{name}")


def plain_class(hosted: type, name: str, *, supplied: Mapping[str, Callable[..., Any]], replaced: Mapping[str, Any]) -> type:
    """A class with the functions and properties that ``hosted`` itself defines and none of its bases, plus the supplied ones."""
    own = {key: value for key, value in vars(hosted).items() if isinstance(value, (types.FunctionType, property)) and key != "initialize"}
    namespace: dict[str, Any] = {}
    for key, value in {**own, **supplied}.items():
        namespace[key] = _renamed(value, f"{name}.{key}", replaced) if isinstance(value, types.FunctionType) else value
    return type(name, (), namespace)


def _renamed(function: types.FunctionType, qualified_name: str, replaced: Mapping[str, Any]) -> types.FunctionType:
    scope = {**function.__globals__, **replaced} if replaced else function.__globals__
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__qualname__ = qualified_name
    copy.__doc__ = function.__doc__
    copy.__kwdefaults__ = function.__kwdefaults__
    originals = {id(function.__globals__.get(key)): value for key, value in replaced.items()}
    copy.__annotations__ = {key: _swapped(hint, originals) for key, hint in inspect.get_annotations(function).items()}
    return copy


def _swapped(hint: Any, originals: Mapping[int, Any]) -> Any:
    """A type hint with some classes in it, alone or in a union, exchanged for others."""
    if isinstance(hint, types.UnionType):
        members = [originals.get(id(member), member) for member in hint.__args__]
        union = members[0]
        for member in members[1:]:
            union = union | member
        return union
    return originals.get(id(hint), hint)


def reserialized(text: str) -> str:
    """A model that the port has dumped by itself, as upstream dumps it: with blanks after commas and colons."""
    return json.dumps(json.loads(text), default=str)
