"""Reading what the policy said: reasoning, content and tool calls, whole or as a stream. See docs/parsers.md."""

from services.policy_proxy.parsing.parts import CallDelta, ContentDelta, Delta, Reading, ReasoningDelta, Said, ToolCall
from services.policy_proxy.parsing.reader import AnswerReader, read_answer
from services.policy_proxy.parsing.registry import REASONING_PARSERS, TOOL_CALL_PARSERS, check_parsers
from services.policy_proxy.parsing.thinking import THINK_OPEN

__all__ = [
    "REASONING_PARSERS",
    "THINK_OPEN",
    "TOOL_CALL_PARSERS",
    "AnswerReader",
    "CallDelta",
    "ContentDelta",
    "Delta",
    "Reading",
    "ReasoningDelta",
    "Said",
    "ToolCall",
    "check_parsers",
    "read_answer",
]
