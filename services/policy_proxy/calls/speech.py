"""Owns reading tokens as an OpenAI message: at once, or piece by piece as they come.

Both ways read the same text: without the end-of-turn token, and cut before the first stop string. Refuses to change what the policy
said: where an answer is not what the request allows, it stays text, flagged, with the problem.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import orjson
from msgspec.structs import replace

from services.policy_proxy.calls.generation import Piece
from services.policy_proxy.chat import Json
from services.policy_proxy.chat.answer import Part, token_logprobs
from services.policy_proxy.parsing import AnswerReader, CallDelta, ContentDelta, Delta, Reading, ReasoningDelta, Said, ToolCall, read_answer
from services.policy_proxy.prompts.rendering import Renderer

UNFINISHED = "\ufffd"
"""What the bytes of a character that has not come to its end are decoded to."""


class Form(msgspec.Struct, frozen=True):
    """How the tokens of one answer are to be read."""

    reading: Reading
    stop: tuple[str, ...] = ()
    forced: bool = False
    """The answer is a JSON array of calls (see `Shaping.forced`)."""

    @property
    def is_incremental(self) -> bool:
        """Whether parts may leave before the whole answer is known."""
        return not self.forced


def read_text(text: str, form: Form) -> Said:
    """An answer in parts. ``text`` is without its end-of-turn token and stop string."""
    return read_forced(text, form.reading) if form.forced else read_answer(text, form.reading)


def read_forced(text: str, reading: Reading) -> Said:
    """An answer that had to be a JSON array of calls, after its reasoning."""
    if not text.lstrip().startswith("["):
        said = read_answer(text, replace(reading, with_tools=False))
    else:
        said = Said(text, None, (), malformed=False)
    calls = _calls_of(said.content)
    if calls:
        return replace(said, content="", tool_calls=calls)
    return replace(said, malformed=True, problem='the answer is not a JSON array of {"name": …, "parameters": {…}} objects')


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` before the first of the stop strings in it."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _calls_of(text: str) -> tuple[ToolCall, ...]:
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ()
    items = cast("list[Any]", value) if isinstance(value, list) else []
    calls = [cast("Json", item) for item in items if isinstance(item, dict)]
    if len(calls) != len(items) or not all(isinstance(call.get("name"), str) for call in calls):
        return ()
    arguments = [call.get("parameters", {}) for call in calls]
    if not all(isinstance(argument, dict) for argument in arguments):
        return ()
    return tuple(ToolCall(call["name"], json.dumps(argument, ensure_ascii=False)) for call, argument in zip(calls, arguments, strict=True))


class Detokenizer:
    """Token ids to text, a whole character at a time. All it gives together is the text of all ids (byte-level tokenizers)."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pending: list[int] = []

    def feed(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text that is certain with these ids; with ``last`` whatever there is."""
        self._pending += ids
        text = self._decode(self._pending) if self._pending else ""
        if text.endswith(UNFINISHED) and not last:
            return ""
        self._pending.clear()
        return text


class StopCutter:
    """Lets text through up to the first stop string, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self._cut = False

    def feed(self, text: str, *, last: bool = False) -> str:
        """The text that is certain not to belong to a stop string; with ``last`` all that is left."""
        if not self._stops:
            return text
        if self._cut:
            return ""
        whole = self._held + text
        let = cut_at_stop(whole, self._stops)
        self._cut = len(let) < len(whole)
        if self._cut or last:
            self._held = ""
            return let
        kept = max(_overlap(whole, stop) for stop in self._stops)
        self._held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that is a beginning of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Speech:
    """One choice as it is being said: a `Listener` that puts parts."""

    def __init__(self, index: int, form: Form, renderer: Renderer, put: Callable[[list[Part]], None], *, with_logprobs: bool) -> None:
        self._index = index
        self._eos_id = renderer.eos_id
        self._bytes_of = renderer.token_bytes
        self._put = put
        self._with_logprobs = with_logprobs
        self._logprobs: list[Json] = []
        self._detokenizer = Detokenizer(renderer.decode)
        self._cutter = StopCutter(form.stop)
        self._reader = AnswerReader(form.reading)

    def hear(self, piece: Piece) -> None:
        """Takes in the next tokens."""
        if self._with_logprobs:
            self._logprobs += token_logprobs(piece.ids, piece.logprobs, piece.top, self._bytes_of)
        ids = piece.ids[:-1] if piece.ids[-1:] == [self._eos_id] else piece.ids
        text = self._cutter.feed(self._detokenizer.feed(ids))
        if text:
            self._say(self._reader.feed(text))

    def finish(self) -> Said:
        """The whole answer; what was held back is put. Tool calls are not: they must not leave before they are recorded."""
        rest = self._cutter.feed(self._detokenizer.feed([], last=True), last=True)
        deltas = self._reader.feed(rest) if rest else []
        last, said = self._reader.finish()
        self._say([*deltas, *last])
        if self._logprobs:
            self._put([Part(self._index, {}, self._taken())])
        return said

    def _say(self, deltas: Sequence[Delta]) -> None:
        texts = [_as_json(delta) for delta in deltas if not isinstance(delta, CallDelta)]
        if texts:
            logprobs = self._taken()
            self._put([Part(self._index, text, logprobs if number == 0 else ()) for number, text in enumerate(texts)])

    def _taken(self) -> list[Json]:
        taken, self._logprobs = self._logprobs, []
        return taken


def _as_json(delta: ReasoningDelta | ContentDelta) -> Json:
    return {"reasoning_content" if isinstance(delta, ReasoningDelta) else "content": delta.text}
