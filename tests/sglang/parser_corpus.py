"""Answers as policies give them: well formed, broken and adversarial, in every format that the proxy reads. Deterministic by seed."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]

PARAMETERS: dict[str, dict[str, Any]] = {
    "city": {"type": "string"},
    "count": {"type": "integer"},
    "exact": {"type": "boolean"},
    "ratio": {"type": "number"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "filter": {"type": "object"},
    "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "mode": {"enum": ["fast", "slow"]},
    "any": {},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
    for name, properties in (("look_up", PARAMETERS), ("fix.it", {"code": {"type": "string"}}), ("list_all", {}))
]
WORDS = ["Let", " me", " see", "\n", "\n\n", " ", "é", "日本", "🙂", "<", ">", "a<b", "{", "}", "[", "]", "\\", '"', "'", ";", ".", "1 < 2"]
STRINGS = [
    "",
    "Paris",
    "a b",
    'say "hi"',
    "back\\slash",
    "line\nbreak",
    "日本",
    "🙂",
    "null",
    "5",
    "<b>",
    "{x}",
    "[1]",
    ";",
    "</think>",
    "'",
]


@dataclass(frozen=True)
class Form:
    """How one format is written."""

    parsers: Sequence[str]
    write: Callable[[random.Random, list[Call]], str]
    fragments: Sequence[str]
    """What adversarial answers are put together from."""


@dataclass(frozen=True)
class Answer:
    """One entry of the corpus."""

    text: str
    tool_call_parser: str
    reasoning_parser: str
    in_reasoning: bool
    calls: list[Call] | None
    """What was meant; None where the text was broken after it was written."""


def corpus(seed: int, per_parser: int) -> Iterator[Answer]:
    """``per_parser`` answers for each name of a tool-call format: two fifths as meant, two fifths broken, one fifth soup."""
    rng = random.Random(seed)
    for form in FORMS:
        for parser in form.parsers:
            for number in range(per_parser):
                yield _answer(rng, form, parser, number % 5)


def thoughts(seed: int, number: int, tags: Sequence[str]) -> Iterator[str]:
    """Answers put together from think tags, words and ``tags``."""
    rng = random.Random(seed)
    parts = [*tags, *tags, "\n", " ", "text", "é", "<", "<think", "</", "<tool_call>", "</tool_call>", "a < b"]
    for _ in range(number):
        yield "".join(rng.choice(parts) for _ in range(rng.randint(0, 9)))


def _answer(rng: random.Random, form: Form, parser: str, kind: int) -> Answer:
    calls = [_call(rng) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
    reasoning_parser, in_reasoning, before = _reasoning(rng)
    text = before + _prose(rng, form) + (form.write(rng, calls) if calls else "")
    if kind >= 4:
        text = before + "".join(rng.choice(form.fragments) for _ in range(rng.randint(1, 12)))
    elif kind >= 2:
        for _ in range(rng.choice([1, 1, 2])):
            text = _broken(rng, text, form.fragments)
    return Answer(text, parser, reasoning_parser, in_reasoning, calls if kind < 2 else None)


def _reasoning(rng: random.Random) -> tuple[str, bool, str]:
    thought = "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 8)))
    gap = rng.choice(["", "\n", "\n\n"])
    return rng.choice(
        [
            ("", False, ""),
            ("", False, ""),
            ("qwen3", False, ""),
            ("qwen3", False, f"<think>{gap}{thought}{gap}</think>{gap}"),
            ("qwen3", True, f"{thought}{gap}</think>{gap}"),
            ("qwen3-thinking", False, f"{thought}{gap}</think>{gap}"),
            ("deepseek-r1", False, f"<think>{gap}{thought}</think>{gap}"),
            ("deepseek-r1", False, f"{thought}</think>{gap}"),
        ]
    )


def _prose(rng: random.Random, form: Form) -> str:
    """Text that is neither white space at its front nor a call."""
    if rng.random() < 0.5:
        return ""
    words = "I " + "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 6)))
    return words + rng.choice(["", " ", "\n"]) if form.parsers[0] != "llama3" else words


def _call(rng: random.Random) -> Call:
    name = rng.choice(["look_up", "look_up", "fix.it", "list_all", "no_such_tool"])
    if name == "look_up":
        keys = rng.sample(sorted(PARAMETERS), rng.randint(0, 4))
        return name, {key: _value(rng, key) for key in keys}
    if name == "fix.it":
        return name, {"code": rng.choice(STRINGS) + rng.choice(STRINGS)}
    return name, {}


def _value(rng: random.Random, key: str) -> Any:
    match key:
        case "city":
            return rng.choice(STRINGS)
        case "count":
            return rng.choice([0, 3, -7, 10**20])
        case "exact":
            return rng.random() < 0.5
        case "ratio":
            return rng.choice([0.5, -1.25, 3, 1e21])
        case "tags":
            return [rng.choice(STRINGS) for _ in range(rng.randint(0, 3))]
        case "filter":
            return {rng.choice("abc"): rng.choice([1, None, True, "x", [1, {"y": "z"}]]) for _ in range(rng.randint(0, 2))}
        case "limit":
            return rng.choice([None, 5])
        case "mode":
            return rng.choice(["fast", "slow"])
        case _:
            return rng.choice(["text", "more text"])


def _broken(rng: random.Random, text: str, fragments: Sequence[str]) -> str:
    at = rng.randint(0, len(text))
    to = min(len(text), at + rng.randint(1, 6))
    return rng.choice(
        [
            text[:at],
            text[:at],
            text[:at] + text[to:],
            text[:at] + rng.choice(fragments) + text[at:],
            text[:at] + text[at:to] + text[at:],
            text.replace("\n", "", rng.randint(1, 3)),
            text.replace('"', "'", rng.randint(1, 4)),
            text.replace("arguments", rng.choice(["parameters", "args"]), 1),
            text + rng.choice(fragments),
        ]
    )


def _json_call(call: Call, rng: random.Random, key: str = "arguments") -> str:
    indent = rng.choice([None, None, None, 2])
    return json.dumps({"name": call[0], key: call[1]}, ensure_ascii=rng.random() < 0.3, indent=indent)


def _tagged(rng: random.Random, calls: list[Call]) -> str:
    return "\n".join(f"<tool_call>\n{_json_call(call, rng)}\n</tool_call>" for call in calls)


def _coder(rng: random.Random, calls: list[Call]) -> str:
    def written(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def parameters(arguments: dict[str, Any]) -> str:
        return "".join(f"<parameter={key}>\n{written(value)}\n</parameter>\n" for key, value in arguments.items())

    return "\n".join(f"<tool_call>\n<function={name}>\n{parameters(arguments)}</function>\n</tool_call>" for name, arguments in calls)


def _llama(rng: random.Random, calls: list[Call]) -> str:
    return "<|python_tag|>" + ";".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in calls)


def _mistral_list(rng: random.Random, calls: list[Call]) -> str:
    return f"[TOOL_CALLS] [{', '.join(_json_call(call, rng) for call in calls)}]"


def _mistral_each(rng: random.Random, calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls)


def _mistral(rng: random.Random, calls: list[Call]) -> str:
    return rng.choice([_mistral_list, _mistral_each])(rng, calls)


DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")


def _deepseek_v3(rng: random.Random, calls: list[Call]) -> str:
    begin, call_begin, sep, call_end, end = DEEPSEEK
    each = [f"{call_begin}function{sep}{name}\n```json\n{json.dumps(arguments)}\n```{call_end}" for name, arguments in calls]
    return begin + "\n".join(each) + end


def _deepseek_v31(rng: random.Random, calls: list[Call]) -> str:
    begin, call_begin, sep, call_end, end = DEEPSEEK
    return begin + "".join(f"{call_begin}{name}{sep}{json.dumps(arguments)}{call_end}" for name, arguments in calls) + end


KIMI = (
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)


def _kimi(rng: random.Random, calls: list[Call]) -> str:
    begin, call_begin, argument, call_end, end = KIMI
    each = [
        f"{call_begin}functions.{name}:{number}{argument}{json.dumps(arguments)}{call_end}"
        for number, (name, arguments) in enumerate(calls)
    ]
    return begin + "".join(each) + end


JSON_PARTS = [*'{}[],":\\', "NaN", "1e999", "null", "\\ud800", '"\\ud800"', '"arguments": {"city": "Paris"}}', '{"name": "look_up"',
              '{"name": "look_up", "arguments": {}}', '{"name": 5, "arguments": {}}', '{"name": "look_up", "arguments": "x"}',
              '{"name": "a", "parameters": {"n": 1}}', "{'name': 'look_up', 'arguments': {}}"]  # fmt: skip
CODER_PARTS = ["<tool_call>", "</tool_call>", "<function=look_up>", "<function=", "</function>", "<parameter=city>", "<parameter=count>",
               "<parameter=", "</parameter>", "Paris", "5", "x > y", '{"a": 1}']  # fmt: skip
COMMON = ["\n", " ", "text", "<think>", "</think>", "é", "🙂", ";"]
FORMS = [
    Form(["qwen25", "hermes"], _tagged, ["<tool_call>", "<tool_call>\n", "</tool_call>", "\n</tool_call>", *JSON_PARTS, *COMMON]),
    Form(["qwen3_coder"], _coder, [*CODER_PARTS, *COMMON]),
    Form(["llama3"], _llama, ["<|python_tag|>", ";", "; ", *JSON_PARTS, *COMMON]),
    Form(["mistral"], _mistral, ["[TOOL_CALLS]", "[TOOL_CALLS] [", "[ARGS]", "look_up", *JSON_PARTS, *COMMON]),
    Form(["deepseekv3"], _deepseek_v3, [*DEEPSEEK, "function", "look_up", "\n```json\n", "\n```", *JSON_PARTS, *COMMON]),
    Form(["deepseekv31"], _deepseek_v31, [*DEEPSEEK, "look_up", *JSON_PARTS, *COMMON]),
    Form(["kimi_k2"], _kimi, [*KIMI, "functions.look_up:0", "look_up:1", "3", *JSON_PARTS, *COMMON]),
]
