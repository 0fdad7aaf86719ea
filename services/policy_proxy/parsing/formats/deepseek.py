"""Owns DeepSeek V3's and V3.1's calls between ``<｜tool▁calls▁begin｜>`` and ``<｜tool▁calls▁end｜>``.

The formats: https://huggingface.co/deepseek-ai/DeepSeek-V3-0324 and DeepSeek-V3.1 (chat templates). Text after the calls is dropped.
"""

from collections.abc import Sequence

from services.policy_proxy.parsing.calling import Calls, ToolCallFormat
from services.policy_proxy.parsing.cursor import Cursor
from services.policy_proxy.parsing.parts import Json

OPEN, CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
FENCE, FENCE_END = "\n```json\n", "\n```"
SHAPE_V3 = f"{OPEN}{CALL}function{SEPARATOR}NAME\\n```json\\n{{…}}\\n```{CALL_END}{CLOSE}"
SHAPE_V31 = f"{OPEN}{CALL}NAME{SEPARATOR}{{…}}{CALL_END}{CLOSE}"


def _read_v3(text: str, _: Sequence[Json]) -> Calls:
    cursor = _opened(text)
    while _begins_call(cursor):
        at = cursor.at
        cursor.name(SEPARATOR)  # The type of the call, always "function".
        name = cursor.name(FENCE)
        arguments = cursor.json()
        space = cursor.until("```")
        if space.strip() or not space.endswith("\n"):
            raise cursor.error("the line after the JSON is not ```")
        cursor.expect("```")
        cursor.expect(CALL_END)
        cursor.add(name, arguments, at)
    return cursor.calls()


def _read_v31(text: str, _: Sequence[Json]) -> Calls:
    cursor = _opened(text)
    while _begins_call(cursor):
        at = cursor.at
        name = cursor.name(SEPARATOR)
        cursor.skip_space()
        arguments = cursor.json()
        cursor.skip_space()
        cursor.expect(CALL_END)
        cursor.add(name, arguments, at)
    return cursor.calls()


def _opened(text: str) -> Cursor:
    cursor = Cursor(text)
    cursor.expect(OPEN)
    return cursor


def _begins_call(cursor: Cursor) -> bool:
    """Passes the next opening tag; False where the calls end."""
    cursor.skip_space()
    if cursor.ended or cursor.take(CLOSE):
        return False
    cursor.expect(CALL)
    return True


DEEPSEEK_V3 = ToolCallFormat((OPEN,), SHAPE_V3, _read_v3)
DEEPSEEK_V31 = ToolCallFormat((OPEN,), SHAPE_V31, _read_v31)
