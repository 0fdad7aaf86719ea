"""Our parsers and SGLang's own on the same answers: equal, but for the differences that docs/parsers.md lists."""

from collections import Counter
from itertools import combinations, product

import pytest
from parser_agreement import (
    DIFFERENCES,
    Both,
    agree,
    both,
    difference,
    our_reasoning,
    sglang_reasoning,
    whole,
    without_space,
)
from parser_corpus import TOOLS, Answer, corpus, thoughts
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.parser.reasoning_parser import ReasoningParser

from services.policy_proxy.parsing import Reading, read_answer
from services.policy_proxy.parsing.registry import FORMATS, THINKING, check_parsers


def coder(parameter: str, value: str) -> str:
    return f"<tool_call><function=look_up><parameter={parameter}>{value}</parameter></function></tool_call>"


SEED, PER_PARSER = 20260101, 400
KIMI_WITHOUT_NAME = "<|tool_calls_section_begin|><|tool_call_begin|>3<|tool_call_argument_begin|>{}<|tool_call_end|>"
NAMES = sorted(name for name in THINKING if name)
CALL = '<tool_call>\n{"name": "list_all", "arguments": {}}\n</tool_call>'
CODER = "<tool_call><function=list_all></function>"
EXAMPLES = [
    ("a broken call is not dropped", "qwen25", '<tool_call>\n{"name": "look_up", "arguments": {\n</tool_call>'),
    ("a broken call is not dropped", "qwen25", CALL.removesuffix("</tool_call>")),
    ("no call of a broken answer is made", "qwen25", f"{CALL}\n<tool_call>\n{{"),
    ("no call of a broken answer is made", "qwen25", '<tool_call>\n{"name": "look_up", "arguments": {"ratio": NaN}}\n</tool_call>'),
    ("no call of a broken answer is made", "qwen25", '<tool_call>\n{"name": "look_up", "arguments": {"city": "\\ud800"}}\n</tool_call>'),
    ("no call of a broken answer is made", "qwen25", '<tool_call>\n{"name": "look_up", "arguments": "{}"}\n</tool_call>'),
    ("no call of a broken answer is made", "qwen3_coder", "<tool_call><function=look_up><parameter=city>Par"),
    ("no call of a broken answer is made", "qwen3_coder", '<tool_call><function=look_up>{"city": "Paris"}</function></tool_call>'),
    ("no call of a broken answer is made", "kimi_k2", KIMI_WITHOUT_NAME),
    ("sglang raises", "llama3", '<|python_tag|>{"name": "list_all", "parameters": {}}{"name": "list_all", "parameters": {}}'),
    ("newlines in the tags are layout", "qwen25", '<tool_call>{"name": "list_all"}</tool_call>'),
    ("a tag inside a string is text", "hermes", '<tool_call>{"name": "look_up", "arguments": {"city": "</tool_call>"}}</tool_call>'),
    ("qwen3_coder: the end of the answer closes the tag", "qwen3_coder", f"{CODER}</tool_call>{CODER}"),
    ("qwen3_coder: what JSON has no word for stays a string", "qwen3_coder", coder("ratio", "inf")),
    ("qwen3_coder: what JSON has no word for stays a string", "qwen3_coder", coder("tags", "{1, 2}")),
    ("llama3: no character is eaten", "llama3", '<|python_tag|>{"name": "list_all", "parameters": {}}!'),
    ("llama3: an answer in JSON is an answer", "llama3", '{"answer": 5}'),
    ("llama3: an object without a name is no call", "llama3", '<|python_tag|>{"name": "list_all", "parameters": {}}[ {}}'),
    ("mistral: an unfinished marker is text", "mistral", "[TOOL_CALLSlist_all[ARGS]{}"),
    ("mistral: white space before the list is layout", "mistral", '[TOOL_CALLS][{"name": "list_all"}]'),
]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Answer, Both]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_FORWARD_UNKNOWN_TOOLS", "1")
        return [(answer, both(answer)) for answer in corpus(SEED, PER_PARSER)]


def test_every_difference_is_a_listed_one(pairs: list[tuple[Answer, Both]]) -> None:
    counts = Counter("agree" if agree(pair) else difference(pair) for _, pair in pairs)
    print("\n" + "\n".join(f"{count:6} {name}" for name, count in counts.most_common()))
    unlisted = [pair for _, pair in pairs if not agree(pair) and difference(pair) is None]
    assert not unlisted, f"{len(unlisted)} of {len(pairs)}, first: {unlisted[0]}"
    assert len(pairs) >= 2000
    assert counts["agree"] > 0.6 * len(pairs)


def test_answers_as_they_are_meant_are_read_the_same(pairs: list[tuple[Answer, Both]]) -> None:
    intact = [(answer, pair) for answer, pair in pairs if answer.calls is not None]
    assert len(intact) > 1000
    for answer, pair in intact:
        assert agree(pair) and not pair.ours.malformed, answer


def test_nothing_is_called_malformed_that_plain_patterns_can_read(pairs: list[tuple[Answer, Both]]) -> None:
    flagged = [pair for _, pair in pairs if pair.ours.malformed]
    assert len(flagged) > 500
    for pair in flagged:
        assert not whole(pair.parser, pair.text), pair


@pytest.mark.parametrize(("name", "parser", "text"), EXAMPLES)
def test_each_listed_difference_shows_in_its_example(name: str, parser: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_FORWARD_UNKNOWN_TOOLS", "1")
    pair = both(Answer(text, parser, "", False, None))
    assert not agree(pair)
    assert difference(pair) == name, pair


def test_every_listed_difference_has_an_example() -> None:
    assert {name for name, _, _ in EXAMPLES} == set(DIFFERENCES)


# SGLang's kimi never begins inside reasoning.
@pytest.mark.parametrize(("name", "in_reasoning"), [pair for pair in product(NAMES, (False, True)) if pair != ("kimi", True)])
def test_reasoning_is_read_the_same(name: str, in_reasoning: bool) -> None:
    thinking = THINKING[name]
    assert thinking is not None
    tags = [thinking.opens, thinking.closes, *([thinking.call_tag] if thinking.call_tag else [])]
    for text in thoughts(SEED, 400, tags):
        ours = our_reasoning(name, text, in_reasoning=in_reasoning)
        theirs = sglang_reasoning(name, text, in_reasoning=in_reasoning)
        begins_inside = in_reasoning or thinking.always
        if not begins_inside and thinking.opens in text and not text.startswith(thinking.opens):
            # The listed difference: reasoning begins at the front of the answer, white space aside, or not at all.
            if not text.lstrip().startswith(thinking.opens):
                assert ours == ("", text)
        else:
            assert ours[0] == theirs[0].strip(), text
            assert ours[1] in (theirs[1], theirs[1].lstrip()), text


def test_names_mean_the_same() -> None:
    assert set(FORMATS) <= set(FunctionCallParser.ToolCallParserEnum)
    assert set(NAMES) <= set(ReasoningParser.DetectorMap)
    table = FunctionCallParser.ToolCallParserEnum
    for one, other in combinations(FORMATS, 2):
        assert (FORMATS[one] is FORMATS[other]) == (table[one] is table[other]), (one, other)


def test_unknown_tools_are_forwarded_where_sglang_drops_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_FORWARD_UNKNOWN_TOOLS", raising=False)
    known = {tool["function"]["name"] for tool in TOOLS}
    dropped = 0
    for answer in corpus(SEED + 1, 60):
        if answer.calls is None:
            continue
        pair = both(answer)
        if answer.tool_call_parser in ("qwen3_coder", "kimi_k2"):
            assert pair.calls == pair.made
        else:
            assert pair.calls == [call for call in pair.made if call[0] in known]
            dropped += len(pair.made) - len(pair.calls)
    assert dropped > 20


@pytest.mark.parametrize("name", ["glm45", "pythonic", "kimi_k3", "minimax-m2"])
def test_names_that_only_sglang_knows_are_read_by_its_own_code(name: str) -> None:
    check_parsers(tool_call_parser=name, reasoning_parser="hunyuan")
    texts = {
        "glm45": "I see.\n<tool_call>look_up\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        "pythonic": '[look_up(city="Paris")]',
    }
    text = texts.get(name, "plain")
    said = read_answer(f"<think>so</think>{text}", Reading("hunyuan", name, False, True, TOOLS))
    assert said.reasoning == "so"
    assert not said.malformed
    if name in texts:
        assert [(call.name, call.arguments) for call in said.tool_calls] == [("look_up", '{"city": "Paris"}')]
    else:
        assert without_space(said.content) == text


def test_a_name_that_nobody_knows_lists_all_names() -> None:
    with pytest.raises(ValueError, match=r"'glm45'.*'pythonic'.*'qwen25'"):
        check_parsers(tool_call_parser="qwen99", reasoning_parser="qwen3")
