"""Owns reading answers with SGLang's own parsers, for names that this package does not know. SGLang is imported at the first use.

Their streaming and non-streaming results differ from each other in places, so an answer is read whole at its end and streams nothing
before. Refuses nothing of what they return, except that a call without valid arguments counts as malformed.
"""

import importlib
import logging
from collections.abc import Sequence
from typing import Any, cast

from services.policy_proxy.parsing.calling import Malformed, Outcome, printable
from services.policy_proxy.parsing.cursor import Cursor
from services.policy_proxy.parsing.parts import Json

log = logging.getLogger(__name__)


def tool_call_parsers() -> frozenset[str]:
    """SGLang's names. Raises ImportError where sglang cannot be imported."""
    return frozenset(cast("dict[str, Any]", _function_call_parser().ToolCallParserEnum))


def reasoning_parsers() -> frozenset[str]:
    """SGLang's names. Raises ImportError where sglang cannot be imported."""
    return frozenset(cast("dict[str, Any]", _reasoning_parser().DetectorMap))


class SGLangThinkReader:
    """`thinking.ThinkReader` with SGLang's ReasoningParser."""

    def __init__(self, name: str, *, in_reasoning: bool) -> None:
        self._parser = _reasoning_parser()(name, stream_reasoning=False, force_reasoning=True if in_reasoning else None)
        self._text: list[str] = []
        self.marked = False

    def feed(self, text: str) -> tuple[str, str]:
        """Keeps it."""
        self._text.append(text)
        return "", ""

    def finish(self) -> tuple[str, str]:
        """(reasoning, answer)."""
        text = "".join(self._text)
        try:
            reasoning, answer = self._parser.parse_non_stream(text)
        except Exception:  # foreign code on text of the policy: whatever it cannot read is text
            log.exception("sglang's reasoning parser failed on an answer of %d characters", len(text))
            return "", text
        self.marked = bool(reasoning)
        return reasoning or "", answer or ""


class SGLangCallReader:
    """`calling.CallReader` with SGLang's FunctionCallParser."""

    def __init__(self, name: str, tools: Sequence[Json]) -> None:
        schema = importlib.import_module("sglang.srt.entrypoints.openai.protocol").Tool
        self._parser = _function_call_parser()([schema(**tool) for tool in tools], name)
        self._name = name
        self._text: list[str] = []

    def feed(self, text: str) -> str:
        """Keeps it."""
        self._text.append(text)
        return ""

    def finish(self) -> Outcome:
        """Content and calls."""
        text = "".join(self._text)
        try:
            if not self._parser.has_tool_call(text):
                return Outcome(text)
            content, items = self._parser.parse_non_stream(text)
        except Exception as error:  # noqa: BLE001  # foreign code on text of the policy: whatever it cannot read is malformed
            return Outcome(text, problem=f"sglang's {self._name} parser failed: {printable(str(error))}")
        cursor = Cursor(text)
        try:
            for item in items:
                cursor.add(item.name, Cursor(item.parameters or "{}").json(), 0)
            return Outcome(content or "", cursor.calls().calls)
        except Malformed as wrong:
            return Outcome(text, problem=f"tool call {wrong.number}: {printable(wrong.what)} (read by sglang's {self._name} parser)")


def _function_call_parser() -> Any:
    return importlib.import_module("sglang.srt.function_call.function_call_parser").FunctionCallParser


def _reasoning_parser() -> Any:
    return importlib.import_module("sglang.srt.parser.reasoning_parser").ReasoningParser
