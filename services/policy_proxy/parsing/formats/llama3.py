"""Owns Llama 3's JSON calls: after ``<|python_tag|>``, or as the whole answer without any tag, several separated by semicolons.

The format: https://huggingface.co/meta-llama/Llama-3.2-3B-Instruct (chat template). Objects may be Python dicts. An untagged answer in
JSON that does not name a function with arguments is an answer in JSON, not a broken call. A tag further on makes what is before it text.
"""

import re
from collections.abc import Sequence
from typing import Any, cast

from services.policy_proxy.parsing.calling import Calls, Malformed, ToolCallFormat
from services.policy_proxy.parsing.cursor import Cursor
from services.policy_proxy.parsing.parts import Json
from services.policy_proxy.parsing.values import literal

TAG, SEPARATOR = "<|python_tag|>", ";"
NEXT_OBJECT = '{"name":'
SHAPE = '{"name": …, "parameters": {…}}, several separated by ' + SEPARATOR
_BEGINS_LIKE_A_CALL = re.compile(r"""\{\s*["']name["']\s*:""")
_ARGUMENT_KEYS = {"parameters", "arguments"}


def _read(text: str, _: Sequence[Json]) -> Calls | None:
    cursor = Cursor(text)
    if cursor.seek(TAG):
        return _read_objects(cursor, text.partition(TAG)[0].rstrip(), tagged=True)
    try:
        return _read_objects(cursor, "", tagged=False)
    except Malformed:
        if _BEGINS_LIKE_A_CALL.match(text) is None:
            return None
        raise


def _read_objects(cursor: Cursor, before: str, *, tagged: bool) -> Calls | None:
    while True:
        cursor.skip_space(also=SEPARATOR)
        if cursor.ended:
            return cursor.calls(before)
        if not cursor.text.startswith("{", cursor.at):
            at = cursor.text.find(NEXT_OBJECT, cursor.at)
            if at < 0:
                return cursor.calls(f"{before} {cursor.text[cursor.at :].strip()}".strip())
            cursor.at = at
        at = cursor.at
        value = _read_object(cursor)
        if not tagged and not (isinstance(value, dict) and cast("Json", value).keys() & _ARGUMENT_KEYS):
            return None
        cursor.add_object(value, at)


def _read_object(cursor: Cursor) -> Any:
    at = cursor.at
    try:
        return cursor.json()
    except Malformed:
        end = _end_of_braces(cursor.text, at)
        try:
            value = literal(cursor.text[at:end])
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise
        cursor.at = end
        return cast("Json", value)


def _end_of_braces(text: str, at: int) -> int:
    depth = 0
    for brace in re.finditer(r"[{}]", text[at:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return at + brace.end()
    return len(text)


LLAMA3 = ToolCallFormat((TAG,), SHAPE, _read, bare="{")
