"""Owns Mistral's calls: a JSON list after ``[TOOL_CALLS]``, or in newer models ``[TOOL_CALLS]name[ARGS]{…}`` for each call.

The format: https://github.com/mistralai/mistral-common (tokenizers v3 and v11).
"""

from collections.abc import Sequence

from services.policy_proxy.parsing.calling import Calls, ToolCallFormat
from services.policy_proxy.parsing.cursor import Cursor
from services.policy_proxy.parsing.parts import Json

TAG, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
SHAPE = TAG + ' [{"name": …, "arguments": {…}}]'


def _read(text: str, _: Sequence[Json]) -> Calls:
    cursor = Cursor(text)
    while cursor.seek(TAG):
        cursor.skip_space()
        at = cursor.at
        if text.startswith("[", at):
            cursor.add_objects(cursor.json(), at)
        else:
            name = cursor.name(ARGUMENTS)
            cursor.skip_space()
            cursor.add(name, cursor.json(), at)
    return cursor.calls(trailing=text[cursor.at :].strip())


MISTRAL = ToolCallFormat((TAG,), SHAPE, _read)
