"""SGLang's own reading of an answer, and how ours may differ: the differences that docs/parsers.md lists, each with what proves it."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parser_corpus import TOOLS, Answer
from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.parser.reasoning_parser import ReasoningParser

from services.policy_proxy.parsing import Reading, Said, read_answer
from services.policy_proxy.parsing.registry import THINKING
from services.policy_proxy.parsing.thinking import ThinkReader

Made = list[tuple[str | None, Any]]
SGLANG_TOOLS = [Tool(**tool) for tool in TOOLS]


@dataclass(frozen=True)
class Both:
    """One answer after its reasoning, read twice."""

    parser: str
    text: str
    ours: Said
    content: str
    """SGLang's."""
    calls: Made | None
    """SGLang's; None where its parser raised an exception."""

    @property
    def made(self) -> Made:
        """Our calls."""
        return [(call.name, json.loads(call.arguments)) for call in self.ours.tool_calls]

    @property
    def same_content(self) -> bool:
        """But for white space, which docs/parsers.md says we treat as layout."""
        return without_space(self.ours.content) == without_space(self.content)


def without_space(text: str) -> str:
    """White space beside tags is where the two differ on purpose."""
    return "".join(text.split())


def sglang_reasoning(name: str, text: str, *, in_reasoning: bool) -> tuple[str, str]:
    """(reasoning, answer) as SGLang reads them."""
    parser = ReasoningParser(name, stream_reasoning=False, force_reasoning=True if in_reasoning else None)
    reasoning, answer = parser.parse_non_stream(text)
    return reasoning or "", answer or ""


def our_reasoning(name: str, text: str, *, in_reasoning: bool) -> tuple[str, str]:
    """(reasoning, answer) as we read them."""
    reader = ThinkReader(THINKING[name], in_reasoning=in_reasoning)
    first, last = reader.feed(text), reader.finish()
    return first[0] + last[0], first[1] + last[1]


def both(answer: Answer) -> Both:
    """Reads what follows the reasoning with both."""
    _, text = our_reasoning(answer.reasoning_parser, answer.text, in_reasoning=answer.in_reasoning)
    ours = read_answer(answer.text, Reading(answer.reasoning_parser, answer.tool_call_parser, answer.in_reasoning, True, TOOLS))
    try:
        content, items = FunctionCallParser(SGLANG_TOOLS, answer.tool_call_parser).parse_non_stream(text)
    except Exception:  # noqa: BLE001  # foreign code on broken text: which exception it raises is no matter
        return Both(answer.tool_call_parser, text, ours, text, None)
    return Both(answer.tool_call_parser, text, ours, content, [(item.name, _value(item.parameters)) for item in items])


def agree(pair: Both) -> bool:
    """The same calls and the same content; where we say malformed, that SGLang makes no call either and leaves the text alone."""
    if pair.ours.malformed:
        return not pair.calls and pair.same_content
    return pair.made == pair.calls and pair.same_content


def difference(pair: Both) -> str | None:
    """The first listed difference that this one is proven to be."""
    return next((name for name, proof in DIFFERENCES.items() if proof(pair)), None)


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _broken_call_is_dropped(pair: Both) -> bool:
    """SGLang makes no call, and what the policy tried is gone from the content."""
    return pair.ours.malformed and not pair.calls and len(without_space(pair.content)) < len(without_space(pair.text))


def _other_calls_are_made(pair: Both) -> bool:
    """SGLang makes calls of an answer in which something that begins a call is no call."""
    return pair.ours.malformed and bool(pair.calls) and pair.ours.content == pair.text and not whole(pair.parser, pair.text)


def _raises(pair: Both) -> bool:
    """SGLang's parser raises an exception (its server then leaves the answer as text)."""
    return pair.calls is None


def _newlines_are_layout(pair: Both) -> bool:
    """SGLang's qwen25 knows tags only with their newlines."""
    loose = re.search(r"<tool_call>(?!\n)|(?<!\n)</tool_call>", pair.text)
    return pair.parser in ("qwen", "qwen25") and loose is not None and len(pair.made) > len(pair.calls or [])


def _tag_inside_a_string(pair: Both) -> bool:
    """SGLang's hermes ends a call at a closing tag inside a JSON string."""
    inside = any(tag in json.dumps(arguments) for _, arguments in pair.made for tag in ("</tool_call>", "<tool_call>"))
    return pair.parser == "hermes" and inside and not pair.calls


def _end_closes_the_tag(pair: Both) -> bool:
    """SGLang's qwen3_coder drops a last call without ``</tool_call>`` where others have one, and makes it where none has."""
    open_at_end = pair.text.rfind("<tool_call>") > pair.text.rfind("</tool_call>")
    first = pair.made[: len(pair.calls or [])] == pair.calls
    return pair.parser == "qwen3_coder" and not pair.ours.malformed and open_at_end and first


def _no_json_for_it(pair: Both) -> bool:
    """SGLang's qwen3_coder makes infinities of ``inf`` and no call at all of Python literals that JSON has no word for."""
    texts = [value for _, arguments in pair.made for value in arguments.values() if isinstance(value, str)]
    return pair.parser == "qwen3_coder" and any(text in ("inf", "nan") or _is_set(text) for text in texts)


def _is_set(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), set | bytes)
    except (ValueError, SyntaxError):
        return False


def _separator_is_eaten(pair: Both) -> bool:
    """SGLang's llama3 drops one character after each object, be it a separator or the brace of the next."""
    rest = iter(without_space(pair.text))
    first = pair.made[: len(pair.calls or [])] == pair.calls
    return pair.parser == "llama3" and not pair.ours.malformed and first and all(letter in rest for letter in without_space(pair.content))


def _json_is_an_answer(pair: Both) -> bool:
    """SGLang's llama3 takes any answer that begins with a brace for calls, and its text is gone."""
    untagged = pair.parser == "llama3" and "<|python_tag|>" not in pair.text and pair.text.startswith("{")
    return untagged and not pair.ours.malformed and not pair.made and pair.ours.content == pair.text


def _objects_after_text(pair: Both) -> bool:
    """SGLang's llama3 takes any JSON object in what follows for a call, even one that names none."""
    named = [call for call in pair.calls or [] if call[0]]
    return pair.parser == "llama3" and pair.made == named


def _unfinished_marker(pair: Both) -> bool:
    """SGLang's mistral takes ``[TOOL_CALLS`` without its bracket for the marker."""
    return pair.parser == "mistral" and re.search(r"\[TOOL_CALLS(?!\])", pair.text) is not None


def _list_without_space(pair: Both) -> bool:
    """SGLang's mistral knows a list only after exactly one space."""
    return (
        pair.parser == "mistral"
        and re.search(r"\[TOOL_CALLS\](?! \[)\s*\[", pair.text) is not None
        and len(pair.made) > len(pair.calls or [])
    )


DIFFERENCES: dict[str, Callable[[Both], bool]] = {
    "a broken call is not dropped": _broken_call_is_dropped,
    "no call of a broken answer is made": _other_calls_are_made,
    "sglang raises": _raises,
    "newlines in the tags are layout": _newlines_are_layout,
    "a tag inside a string is text": _tag_inside_a_string,
    "qwen3_coder: the end of the answer closes the tag": _end_closes_the_tag,
    "qwen3_coder: what JSON has no word for stays a string": _no_json_for_it,
    "llama3: no character is eaten": _separator_is_eaten,
    "llama3: an answer in JSON is an answer": _json_is_an_answer,
    "llama3: an object without a name is no call": _objects_after_text,
    "mistral: an unfinished marker is text": _unfinished_marker,
    "mistral: white space before the list is layout": _list_without_space,
}

_SECTIONS = {
    "deepseekv3": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>"),
    "deepseekv31": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>"),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_calls_section_end|>"),
}
_CALL_IN_SECTION = {
    "deepseekv3": r"function<｜tool▁sep｜>[\w.-]+\n```json\n(.*)\n```<｜tool▁call▁end｜>\s*",
    "deepseekv31": r"[\w.-]+<｜tool▁sep｜>(.*)<｜tool▁call▁end｜>\s*",
    "kimi_k2": r"\s*[\w.-]+:\d+\s*<\|tool_call_argument_begin\|>(.*)<\|tool_call_end\|>\s*",
}
_NAME = r"""[^\n<>\[\]{}"]+"""
_CODER_VALUE = r"(?:(?!</?tool_call>|</?parameter|</?function).)*"
_CODER_FUNCTION = rf"<function={_NAME}>\s*(?:<parameter={_NAME}>{_CODER_VALUE}</parameter>\s*)*</function>\s*"
_CODER_BLOCK = re.compile(rf"\s*(?:{_CODER_FUNCTION})+</tool_call>.*", re.DOTALL)


def whole(parser: str, text: str) -> bool:
    """A second opinion, by plain patterns as a textbook would give them: whether all that begins like a call is a call."""
    if parser in ("qwen", "qwen25", "hermes"):
        return all(_is_call(block.partition("</tool_call>")) for block in text.split("<tool_call>")[1:])
    if parser == "qwen3_coder":
        return all(_CODER_BLOCK.fullmatch(block) for block in text.split("<tool_call>")[1:])
    if parser == "llama3":
        objects = text.partition("<|python_tag|>")[2] or text
        return _are_calls("[" + re.sub(r"\}\s*;\s*\{", "},{", objects) + "]")
    if parser == "mistral":
        return all(_is_mistral(block) for block in text.split("[TOOL_CALLS]")[1:])
    opens, begins, closes = _SECTIONS[parser]
    before, *blocks = text.partition(opens)[2].partition(closes)[0].split(begins)
    found = [re.fullmatch(_CALL_IN_SECTION[parser], block, re.DOTALL) for block in blocks]
    return bool(found) and not before.strip() and all(call is not None and _is_object(call.group(1)) for call in found)


def _is_call(block: tuple[str, str, str]) -> bool:
    body, closed, _ = block
    return bool(closed) and _are_calls(f"[{body}]")


def _is_mistral(block: str) -> bool:
    name, compact, arguments = block.partition("[ARGS]")
    return _is_object(arguments) and re.fullmatch(r"\s*[\w.-]+\s*", name) is not None if compact else _are_calls(block)


def _are_calls(text: str) -> bool:
    values = _json(text)
    return isinstance(values, list) and bool(values) and all(_names_a_function(value) for value in values)


def _names_a_function(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    return isinstance(value.get("parameters") or value.get("arguments", {}), dict)


def _is_object(text: str) -> bool:
    return isinstance(_json(text), dict)


def _json(text: str) -> Any:
    """The value, if it is JSON that can be written again in UTF-8; else None."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return None
    return value
