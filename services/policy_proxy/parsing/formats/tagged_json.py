"""Owns JSON objects in ``<tool_call>`` tags: Qwen 2.5, Qwen 3 and Hermes.

The format: https://github.com/NousResearch/Hermes-Function-Calling. White space around the JSON is layout,
tags inside its strings are text. Text between and after the calls is dropped.
"""

from collections.abc import Sequence
from functools import partial

from services.policy_proxy.parsing.calling import Calls, ToolCallFormat
from services.policy_proxy.parsing.cursor import Cursor
from services.policy_proxy.parsing.parts import Json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
SHAPE = OPEN + '\\n{"name": …, "arguments": {…}}\\n' + CLOSE


def _read(text: str, _: Sequence[Json], *, closed_by_end: bool) -> Calls:
    cursor = Cursor(text)
    while cursor.seek(OPEN):
        cursor.skip_space()
        at = cursor.at
        value = cursor.json()
        cursor.skip_space()
        if not (closed_by_end and cursor.ended):
            cursor.expect(CLOSE)
        cursor.add_objects(value, at)
    return cursor.calls()


QWEN25 = ToolCallFormat((OPEN,), SHAPE, partial(_read, closed_by_end=False))
HERMES = ToolCallFormat((OPEN,), SHAPE, partial(_read, closed_by_end=True))
"""As Qwen's; the end of the answer closes the last call too."""
