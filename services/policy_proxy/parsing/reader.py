"""Owns reading what the policy said: one answer, whole or in pieces, into reasoning, content and tool calls.

Text in, parts out. No text is an error: what cannot be read is content, flagged, with the reason. The pieces of a stream, put together,
are exactly the parts of the whole.
"""

from services.policy_proxy.parsing.calling import CallReader, Outcome
from services.policy_proxy.parsing.parts import CallDelta, ContentDelta, Delta, Reading, ReasoningDelta, Said
from services.policy_proxy.parsing.registry import FORMATS, THINKING
from services.policy_proxy.parsing.sglang_parsers import SGLangCallReader, SGLangThinkReader
from services.policy_proxy.parsing.thinking import ThinkReader


class AnswerReader:
    """Reads one answer. Parser names must have passed `registry.check_parsers`."""

    def __init__(self, reading: Reading) -> None:
        self._thinking = _think_reader(reading)
        self._calls = _call_reader(reading) if reading.with_tools else None
        self._max_calls = reading.max_calls
        self._answer: list[str] = []
        self._reasoning: list[str] = []
        self._content: list[str] = []

    def feed(self, text: str) -> list[Delta]:
        """Reads on. ``text`` is without special tokens that end the turn. Deltas are never empty."""
        reasoning, answer = self._thinking.feed(text)
        return self._deltas(reasoning, self._read(answer))

    def finish(self) -> tuple[list[Delta], Said]:
        """The deltas that were held back, and the answer in parts. Call once."""
        reasoning, answer = self._thinking.finish()
        content = self._read(answer)
        outcome = self._bounded(self._calls.finish(), content) if self._calls else Outcome("")
        deltas = self._deltas(reasoning, content + outcome.content)
        deltas += [CallDelta(index, call.name, call.arguments) for index, call in enumerate(outcome.calls)]
        said = Said(
            content="".join(self._content),
            reasoning="".join(self._reasoning) if self._thinking.marked else None,
            tool_calls=outcome.calls,
            malformed=bool(outcome.problem),
            problem=outcome.problem,
        )
        return deltas, said

    def _read(self, answer: str) -> str:
        self._answer.append(answer)
        return self._calls.feed(answer) if self._calls else answer

    def _bounded(self, outcome: Outcome, content: str) -> Outcome:
        """The outcome, or that of an answer with too many calls: all its text after what was released as content, which it begins with."""
        n_calls = len(outcome.calls)
        if not self._max_calls or n_calls <= self._max_calls:
            return outcome
        released = len("".join(self._content)) + len(content)
        problem = f"{n_calls} tool calls in one answer. Expected: {self._max_calls} at most"
        return Outcome("".join(self._answer)[released:], problem=problem)

    def _deltas(self, reasoning: str, content: str) -> list[Delta]:
        deltas: list[Delta] = []
        if reasoning:
            self._reasoning.append(reasoning)
            deltas.append(ReasoningDelta(reasoning))
        if content:
            self._content.append(content)
            deltas.append(ContentDelta(content))
        return deltas


def read_answer(text: str, reading: Reading) -> Said:
    """Splits an answer, without its end-of-turn token, into its parts."""
    reader = AnswerReader(reading)
    reader.feed(text)
    return reader.finish()[1]


def _think_reader(reading: Reading) -> ThinkReader | SGLangThinkReader:
    name = reading.reasoning_parser
    if name in THINKING:
        return ThinkReader(THINKING[name], in_reasoning=reading.in_reasoning)
    return SGLangThinkReader(name, in_reasoning=reading.in_reasoning)


def _call_reader(reading: Reading) -> CallReader | SGLangCallReader:
    name = reading.tool_call_parser
    if name in FORMATS:
        return CallReader(FORMATS[name], reading.tools)
    return SGLangCallReader(name, reading.tools)
