"""Owns Kimi K2's calls between ``<|tool_calls_section_begin|>`` and ``<|tool_calls_section_end|>``.

The format: https://huggingface.co/moonshotai/Kimi-K2-Instruct/blob/main/docs/tool_call_guidance.md. The id of a call holds its function's
name; an id without one is malformed, because which function was meant would be a guess. Text after the calls is dropped.
"""

import re
from collections.abc import Sequence

from services.policy_proxy.parsing.calling import Calls, ToolCallFormat
from services.policy_proxy.parsing.cursor import Cursor
from services.policy_proxy.parsing.parts import Json

OPEN, CLOSE = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
SHAPE = f"{OPEN}{CALL}functions.NAME:INDEX{ARGUMENTS}{{…}}{CALL_END}{CLOSE}"
_ID = re.compile(r"(?:functions\.)?([\w.\-]+):\d+")


def _read(text: str, _: Sequence[Json]) -> Calls:
    cursor = Cursor(text)
    cursor.expect(OPEN)
    cursor.skip_space()
    while not cursor.ended and not cursor.take(CLOSE):
        cursor.expect(CALL)
        at = cursor.at
        call_id = _ID.fullmatch(cursor.name(ARGUMENTS))
        if call_id is None:
            raise cursor.error("the id is not functions.NAME:INDEX", at)
        cursor.skip_space()
        arguments = cursor.json()
        cursor.skip_space()
        cursor.expect(CALL_END)
        cursor.add(call_id.group(1), arguments, at)
        cursor.skip_space()
    return cursor.calls()


KIMI_K2 = ToolCallFormat((OPEN,), SHAPE, _read)
