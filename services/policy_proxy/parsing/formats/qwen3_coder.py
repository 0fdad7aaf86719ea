"""Owns calls in XML-like tags with untyped values: Qwen 3 Coder.

The format: https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct (chat template). A value ends at its closing tag, at the next
parameter or at the end of the function. The end of the answer closes the ``<tool_call>``, but never a function: that call was cut off.
"""

from collections.abc import Sequence
from typing import Any

from services.policy_proxy.parsing.calling import Calls, ToolCallFormat
from services.policy_proxy.parsing.coercion import coerce, properties_of
from services.policy_proxy.parsing.cursor import Cursor
from services.policy_proxy.parsing.parts import Json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
SHAPE = f"{OPEN}\\n{FUNCTION}NAME>\\n{PARAMETER}KEY>\\nVALUE\\n{PARAMETER_END}\\n{FUNCTION_END}\\n{CLOSE}"


def _read(text: str, tools: Sequence[Json]) -> Calls:
    cursor = Cursor(text)
    while cursor.seek(OPEN):
        cursor.skip_space()
        cursor.expect(FUNCTION)
        _read_function(cursor, tools)
        while cursor.take(FUNCTION):
            _read_function(cursor, tools)
        if not cursor.ended:
            cursor.expect(CLOSE)
    return cursor.calls()


def _read_function(cursor: Cursor, tools: Sequence[Json]) -> None:
    at = cursor.at
    name = cursor.name(">")
    properties = properties_of(tools, name)
    arguments: dict[str, Any] = {}
    cursor.skip_space()
    while not cursor.take(FUNCTION_END):
        if not cursor.take(PARAMETER):
            raise cursor.error(f"{PARAMETER}…> or {FUNCTION_END} is missing")
        key = cursor.name(">")
        arguments[key] = coerce(_read_value(cursor, key), properties.get(key))
        cursor.skip_space()
    cursor.add(name, arguments, at)
    cursor.skip_space()


def _read_value(cursor: Cursor, key: str) -> str:
    at = cursor.at
    value = cursor.until(PARAMETER_END, PARAMETER, FUNCTION_END, FUNCTION, OPEN, CLOSE)
    if cursor.text.startswith((FUNCTION, OPEN, CLOSE), cursor.at):
        raise cursor.error(f"the value of {key} is not closed by {PARAMETER_END}", at)
    cursor.take(PARAMETER_END)
    return value.removeprefix("\n").removesuffix("\n")


QWEN3_CODER = ToolCallFormat((OPEN,), SHAPE, _read)
