"""Owns what is sent to a policy server for one generation: SGLang's ``/generate`` by ids, or its chat completions with ``input_ids``.

Refuses nothing itself. Both forms ask for ids and logprobs of every token, and both answers come out in the form of ``/generate``.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec
import orjson

from services.common.wire.calls import Ids
from services.policy_proxy.calls.sampling import Sampling
from services.policy_proxy.servers.outputs import Answer, bad_answer, read_answer, read_object

Json = dict[str, Any]
ServerApi = Literal["generate", "chat"]
ROUTING_HEADER = "X-SMG-Routing-Key"
"""sglang-router sends requests with the same key to the same worker."""


def _never() -> bool:
    return False


class Submission(msgspec.Struct, frozen=True):
    """One request to a policy server. ``pinned``: the version the server was known to have when the request left."""

    rid: str
    input_ids: Ids
    sampling: Sampling
    pinned: int
    n_top: int = 0
    mixed: Callable[[], bool] = _never
    """Whether an update has let running requests go on, so that one output may be of several versions; asked when the answer is there."""
    cache_key: str = ""
    """Keys and values are shared only among requests with the same one."""
    routing_key: str = ""
    trace_id: str = ""

    def headers(self) -> Mapping[str, str]:
        """The routing key for a router, and the trace that the request belongs to, in which it is a span of its own."""
        headers = {ROUTING_HEADER: self.routing_key} if self.routing_key else {}
        if self.trace_id:
            span = hashlib.blake2b(self.rid.encode(), digest_size=8).hexdigest()
            headers["traceparent"] = f"00-{self.trace_id}-{span}-01"
        return headers


class Api(Protocol):
    """How a generation is asked for and answered."""

    path: str
    streams: bool
    """Whether tokens can be had as they come."""

    def body(self, submission: Submission, *, stream: bool) -> bytes:
        """The request."""
        ...

    def answer(self, submission: Submission, body: bytes) -> Answer:
        """The answer in the form of ``/generate``. Raises `RemoteError`."""
        ...


class GenerateApi:
    """``POST /generate``."""

    path = "/generate"
    streams = True

    def body(self, submission: Submission, *, stream: bool) -> bytes:
        """SGLang's GenerateReqInput."""
        body: Json = {
            "rid": submission.rid,
            "input_ids": submission.input_ids,
            "sampling_params": submission.sampling.as_json(),
            "return_logprob": True,
            "stream": stream,
        }
        return _encoded(body, submission, top_name="top_logprobs_num")

    def answer(self, submission: Submission, body: bytes) -> Answer:
        """As it is."""
        return read_answer(body)


class ChatApi:
    """``POST /v1/chat/completions`` of SGLang with the prompt as ``input_ids``; the messages are then not rendered.

    Only whole answers: SGLang refuses ``return_token_ids`` and ``return_meta_info`` with ``stream``. Parameters that the server would
    otherwise take from the model's generation_config are always sent.
    """

    path = "/v1/chat/completions"
    streams = False

    def body(self, submission: Submission, *, stream: bool) -> bytes:
        """SGLang's ChatCompletionRequest."""
        body: Json = {
            "rid": submission.rid,
            "messages": [{"role": "user", "content": ""}],
            "input_ids": submission.input_ids,
            "stream": stream,
            "logprobs": True,
            "return_token_ids": True,
            "return_prompt_token_ids": True,
            "return_meta_info": True,
            "separate_reasoning": False,
            **_chat_sampling(submission.sampling),
        }
        return _encoded(body, submission, top_name="top_logprobs")

    def answer(self, submission: Submission, body: bytes) -> Answer:
        """The only choice. Raises `RemoteError` where the server has generated after another prompt."""
        answer = read_object(body)
        try:
            choice: Json = answer["choices"][0]
            if choice["prompt_token_ids"] != submission.input_ids.tolist():
                raise ValueError("prompt_token_ids are not the input_ids that were sent")
            return Answer(choice["meta_info"], choice["response_token_ids"])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise bad_answer(f"chat completions: {error!r}") from error


def _encoded(body: Json, submission: Submission, *, top_name: str) -> bytes:
    """``body`` with what is sent only where it is asked for; ``top_name`` is how the route calls the number of top logprobs."""
    if submission.n_top:
        body[top_name] = submission.n_top
    if submission.cache_key:
        body["extra_key"] = submission.cache_key
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _chat_sampling(sampling: Sampling) -> Json:
    fields: Json = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "max_completion_tokens": sampling.max_new_tokens,
        "stop_token_ids": [sampling.stop_token_id],
        "skip_special_tokens": False,
        "ignore_eos": sampling.ignore_eos,
    }
    optional = {"seed": sampling.seed, "stop": list(sampling.stop) or None, "regex": sampling.regex, "ebnf": sampling.ebnf}
    optional |= {"logit_bias": sampling.logit_bias, "response_format": _response_format(sampling)}
    return fields | {name: value for name, value in optional.items() if value is not None}


def _response_format(sampling: Sampling) -> Json | None:
    if sampling.json_schema is not None:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": orjson.loads(sampling.json_schema)}}
    if sampling.structural_tag is not None:
        return {**orjson.loads(sampling.structural_tag), "type": "structural_tag"}
    return None


APIS: Mapping[ServerApi, Api] = {"generate": GenerateApi(), "chat": ChatApi()}
