"""Owns walking through the text of tool calls: a place in it, what may come next, and an error that says where it did not."""

import re
from typing import Any, cast

from services.policy_proxy.parsing.calling import Calls, Malformed
from services.policy_proxy.parsing.parts import Json, ToolCall
from services.policy_proxy.parsing.tags import find_first
from services.policy_proxy.parsing.values import NotJson, decode, encode

_NAME = re.compile(r"""[^\n<>\[\]{}"]+""")
"""What names are checked for is only markup that belongs elsewhere: which names there are is for the tools' owner to say."""


class Cursor:
    """A place in ``text``, and the calls read up to it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._calls: list[ToolCall] = []

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.at >= len(self.text)

    def error(self, what: str, at: int | None = None) -> Malformed:
        """The error that the call being read is malformed at ``at``, by default here."""
        return Malformed(what, self.at if at is None else at, len(self._calls) + 1)

    def skip_space(self, also: str = "") -> None:
        """Passes white space and the characters in ``also``."""
        while not self.ended and (self.text[self.at].isspace() or self.text[self.at] in also):
            self.at += 1

    def take(self, tag: str) -> bool:
        """Passes ``tag`` if it comes next; says whether it did."""
        taken = self.text.startswith(tag, self.at)
        self.at += len(tag) if taken else 0
        return taken

    def expect(self, tag: str) -> None:
        """Passes ``tag``. Raises `Malformed` where something else comes next."""
        if not self.take(tag):
            raise self.error(f"{tag.strip()} is missing")

    def seek(self, tag: str) -> bool:
        """Passes everything up to and including the next ``tag``; says whether there was one."""
        at = self.text.find(tag, self.at)
        self.at = self.at if at < 0 else at + len(tag)
        return at >= 0

    def until(self, *tags: str) -> str:
        """Passes the text before the first of ``tags`` and returns it. Raises `Malformed` where none follows."""
        at = find_first(self.text, tags, self.at)
        if at < 0:
            raise self.error(f"{' or '.join(tag.strip() for tag in tags)} is missing", len(self.text))
        passed = self.text[self.at : at]
        self.at = at
        return passed

    def name(self, end: str) -> str:
        """Passes a name and the ``end`` after it; returns the name. Raises `Malformed` where what stands there can be no name."""
        at = self.at
        name = self.until(end).strip()
        if _NAME.fullmatch(name) is None:
            raise self.error(f"no name stands before {end.strip()}", at)
        self.expect(end)
        return name

    def json(self) -> Any:
        """Passes a JSON value and returns it. Raises `Malformed`."""
        try:
            value, self.at = decode(self.text, self.at)
        except NotJson as wrong:
            raise self.error(wrong.what, wrong.at) from wrong
        return value

    def add(self, name: Any, arguments: Any, at: int) -> None:
        """Adds a call that was written at ``at``. Raises `Malformed` where name or arguments are not what they must be."""
        if not isinstance(name, str) or not name:
            raise self.error("the name of the function is missing", at)
        if not isinstance(arguments, dict):
            raise self.error(f"the arguments of {name} are {_kind(arguments)}, they must be an object", at)
        try:
            encode(name)
            self._calls.append(ToolCall(name, encode(arguments)))
        except ValueError as error:
            raise self.error(f"the call of {name!a} cannot be written in UTF-8: {error}", at) from error

    def add_object(self, value: Any, at: int) -> None:
        """Adds ``{"name": …, "arguments": …}``; ``parameters`` is another word for arguments, and none at all are empty ones."""
        if not isinstance(value, dict):
            raise self.error(f"{_kind(value)} where an object with name and arguments must be", at)
        fields = cast("Json", value)
        self.add(fields.get("name"), fields.get("parameters") or fields.get("arguments", {}), at)

    def add_objects(self, value: Any, at: int) -> None:
        """Adds one such object or a list of them. Raises `Malformed`, also where the list is empty."""
        values = cast("list[Any]", value) if isinstance(value, list) else [value]
        if not values:
            raise self.error("an empty list where a call must be", at)
        for each in values:
            self.add_object(each, at)

    def calls(self, trailing: str = "") -> Calls:
        """All that was added. Raises `Malformed` where nothing was."""
        if not self._calls:
            raise self.error("no call follows")
        return Calls(tuple(self._calls), trailing)


def _kind(value: Any) -> str:
    kinds: dict[type[Any], str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return kinds.get(cast("type[Any]", type(value)), "null")
