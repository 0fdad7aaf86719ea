"""Owns NL assertions: asking a model whether the conversation shows them, over an OpenAI-compatible server or litellm.

Asked like upstream's judge: the whole conversation and all assertions in one question, answers as JSON, temperature 0. Stricter in the
reading: an answer that does not decide every assertion is none. Refuses to guess a verdict: a judge that cannot be had or read is
`JudgeFailed`, which is nobody's reward.
"""

import asyncio
import hashlib
import importlib
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import orjson

from services.agent_runner.conversation.messages import Json, Message, spoken
from services.common.config.experiment import EnvConfig
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.rollouts import Check

API_KEY_ENV = "FRONTDESK_JUDGE_LLM_API_KEY"
ATTEMPTS = 3
"""Questions asked until an answer can be read; even at temperature 0 a served model does not answer the same every time."""
ATTEMPT_SHARE = 0.5
"""Of the judge's deadline for one question, so that a stalled one can be asked again."""
IN_FLIGHT = 64

INSTRUCTION = """\
You grade a conversation between a customer service agent and a customer.
You are given the conversation and a list of expected outcomes. Decide for each of them, on its own, whether the agent met it.

Answer with one JSON object and nothing else:
{"results": [{"expectedOutcome": "<the expected outcome as given>", "reasoning": "<why, in short>", "metExpectation": true or false}, ...]}
Give one result for each expected outcome, in their order."""

Complete = Callable[[list[Json]], Awaitable[str]]
"""Messages -> the text of the model's answer. Raises `JudgeFailed`."""


class JudgeFailed(Exception):
    """The judge could not be asked, or its answer could not be read."""


def transcript(messages: Sequence[Message]) -> str:
    """The conversation as the judge reads it: one line a message, tool traffic included, reasoning left out."""
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


class Judge:
    """One model that decides assertions. Remembers what it decided by (model and arguments, conversation, assertions)."""

    def __init__(self, name: str, complete: Complete, *, timeout_s: float, close: Callable[[], Awaitable[None]] | None = None) -> None:
        self._name = name
        self._complete = complete
        self._timeout_s = timeout_s
        self._close = close
        self._decided: OrderedDict[str, list[Check]] = OrderedDict()
        self._remembered = 8192
        self._slots = asyncio.Semaphore(IN_FLIGHT)

    async def close(self) -> None:
        """Closes the connections."""
        if self._close is not None:
            await self._close()

    async def decide(self, messages: Sequence[Message], assertions: Sequence[str]) -> list[Check]:
        """One check an assertion, in their order. Raises `JudgeFailed`."""
        said = transcript(messages)
        key = hashlib.sha256(orjson.dumps([self._name, said, list(assertions)])).hexdigest()
        if key not in self._decided:
            try:
                async with asyncio.timeout(self._timeout_s):
                    self._decided[key] = await self._asked(said, assertions)
            except TimeoutError:
                raise JudgeFailed(f"no verdict of {self._name} within {self._timeout_s:g} s") from None
            if len(self._decided) > self._remembered:
                self._decided.popitem(last=False)
        return self._decided[key]

    async def _asked(self, said: str, assertions: Sequence[str]) -> list[Check]:
        question = f"conversation:\n{said}\n\nexpectedOutcomes:\n{orjson.dumps(list(assertions)).decode()}"
        messages: list[Json] = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
        async with self._slots:
            for attempt in range(ATTEMPTS):
                answer = await self._complete(messages)
                try:
                    return read_verdicts(answer, assertions)
                except JudgeFailed:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("the last attempt returns or raises")


def read_verdicts(answer: str, assertions: Sequence[str]) -> list[Check]:
    """The checks in a judge's answer; a Markdown fence and reasoning around it are allowed. Raises `JudgeFailed` for any other flaw."""
    try:
        value: Any = orjson.loads(_unfenced(spoken(answer)))
    except orjson.JSONDecodeError as error:
        raise JudgeFailed(f"the judge's answer is not valid JSON: {error}: {answer[:200]!r}") from error
    results: Any = cast("Json", value).get("results") if isinstance(value, dict) else None
    if not isinstance(results, list):
        raise JudgeFailed(f"the judge's answer has no list of results: {answer[:200]!r}")
    verdicts = cast("list[Any]", results)
    if len(verdicts) != len(assertions):
        raise JudgeFailed(f"the judge decided {len(verdicts)} of {len(assertions)} assertions")
    return [_check(verdict, assertion) for verdict, assertion in zip(verdicts, assertions, strict=True)]


def _check(verdict: Any, assertion: str) -> Check:
    met: Any = cast("Json", verdict).get("metExpectation") if isinstance(verdict, dict) else None
    if not isinstance(met, bool):
        raise JudgeFailed(f"the judge's verdict on {assertion!r} is neither true nor false")
    return Check(name="nl_assertion", passed=met, detail=f"{assertion}: {verdict.get('reasoning', '')}"[:1000], kind="NL_ASSERTION")


def _unfenced(text: str) -> str:
    inner = text.strip()
    if inner.startswith("```"):
        inner = inner.removeprefix("```").removeprefix("json").removesuffix("```")
    return inner


def open_judge(config: EnvConfig) -> Judge | None:
    """The configured judge, or None. ``judge_llm_base_url`` makes it an OpenAI-compatible server, otherwise litellm is asked."""
    if not config.judge_llm:
        return None
    arguments: Json = {"temperature": 0.0, **config.judge_llm_args}
    name = f"{config.judge_llm} {orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()}"
    if not config.judge_llm_base_url:
        return Judge(name, _litellm(config, arguments), timeout_s=config.judge_timeout_s)
    headers = {"Authorization": f"Bearer {os.environ.get(API_KEY_ENV, 'none')}"}
    attempt_s = config.judge_timeout_s * ATTEMPT_SHARE
    client = ServiceClient("judge", config.judge_llm_base_url, timeout_s=attempt_s, retry_s=config.judge_timeout_s, headers=headers)
    # litellm's provider prefix is no part of the model's name on its server.
    complete = _served(client, {"model": config.judge_llm.removeprefix("openai/"), **arguments})
    return Judge(name, complete, timeout_s=config.judge_timeout_s, close=client.close)


def _served(client: ServiceClient, constant: Json) -> Complete:
    async def complete(messages: list[Json]) -> str:
        try:
            return _text(await client.post("/chat/completions", {**constant, "messages": messages}))
        except RemoteError as error:
            raise JudgeFailed(str(error)) from error

    return complete


def _litellm(config: EnvConfig, arguments: Json) -> Complete:
    async def complete(messages: list[Json]) -> str:
        # Here and not above: it takes seconds and 200 MB, and most experiments have no use for it.
        try:
            library: Any = await asyncio.to_thread(importlib.import_module, "litellm")
        except ImportError as error:
            raise JudgeFailed(f"litellm is not installed; install it, or set econfig.judge_llm_base_url ({error})") from error
        try:
            answer = await library.acompletion(model=config.judge_llm, messages=messages, num_retries=ATTEMPTS, **arguments)
        except Exception as error:
            raise JudgeFailed(f"litellm: {type(error).__name__}: {error}") from error
        return _text(answer.model_dump())

    return complete


def _text(answer: Any) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise JudgeFailed(f"the judge's answer is no chat completion: {error!r}") from error
    if not isinstance(text, str):
        raise JudgeFailed("the judge's answer has no text")
    return text
