"""Everything the proxy sends to a policy server is a request of SGLang's own classes, with nothing in it that SGLang would ignore."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_stack import ServerThread
from sglang_requests import CHAT, CLASSES, GENERATE, accepted, sampled_with
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.common.wire.store import PolicyVersion
from services.policy_proxy.calls.sampling import Sampling
from services.policy_proxy.servers.requests import APIS, Submission
from services.policy_proxy.servers.sglang import Bucket, ServerKeys, SglangServer

Json = dict[str, Any]
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
TAG = json.dumps(
    {"structures": [{"begin": "<tool_call>", "schema": {"type": "object"}, "end": "</tool_call>"}], "triggers": ["<tool_call>"]}
)
CONSTRAINTS: list[Json] = [{}, {"json_schema": SCHEMA}, {"regex": "a+"}, {"ebnf": 'root ::= "a"'}, {"structural_tag": TAG}]
FINITE = {"allow_nan": False, "allow_infinity": False}
PENALTY = st.one_of(st.just(0.0), st.floats(-2, 2, **FINITE))


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Within the ranges that the proxy's API admits."""
    return Sampling(
        temperature=draw(st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 2, **FINITE))),
        top_p=draw(st.one_of(st.just(1.0), st.floats(0.01, 1, **FINITE))),
        max_new_tokens=draw(st.integers(1, 4096)),
        stop_token_id=draw(st.integers(0, 1023)),
        seed=draw(st.one_of(st.none(), st.integers(0, 2**31 - 1))),
        stop=tuple(draw(st.lists(st.text(min_size=1, max_size=8), max_size=4))),
        top_k=draw(st.one_of(st.just(-1), st.integers(1, 1000))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0, 1, **FINITE))),
        frequency_penalty=draw(PENALTY),
        presence_penalty=draw(PENALTY),
        repetition_penalty=draw(st.one_of(st.just(1.0), st.floats(0.01, 2, **FINITE))),
        logit_bias=draw(st.one_of(st.none(), st.dictionaries(st.integers(0, 1023).map(str), st.floats(-100, 100, **FINITE), min_size=1))),
        ignore_eos=draw(st.booleans()),
        **draw(st.sampled_from(CONSTRAINTS)),
    )


submissions = st.builds(
    Submission,
    rid=st.just("call-1.0"),
    input_ids=st.lists(st.integers(0, 1023), min_size=1, max_size=30).map(lambda ids: np.asarray(ids, "<i4")),
    sampling=samplings(),
    pinned=st.just(3),
    n_top=st.integers(0, 20),
    cache_key=st.sampled_from(["", "v3"]),
)


@given(submission=submissions, stream=st.booleans())
@settings(max_examples=200, deadline=None)
def test_generations(submission: Submission, stream: bool) -> None:
    body = orjson.loads(APIS["generate"].body(submission, stream=stream))
    read = accepted(GENERATE, body)
    assert (read.stream, read.return_logprob, read.input_ids) == (stream, True, submission.input_ids.tolist())
    assert_same_sampling(submission.sampling, sampled_with(body["sampling_params"]))


@given(submission=submissions)
@settings(max_examples=100, deadline=None)
def test_generations_by_chat_completions(submission: Submission) -> None:
    body = orjson.loads(APIS["chat"].body(submission, stream=False))
    read = accepted(CHAT, body)
    assert read.input_ids == submission.input_ids.tolist()
    assert (read.logprobs, read.return_token_ids, read.return_meta_info) == (True, True, True)
    params = read.to_sampling_params(
        stop=read.stop or [], model_generation_config={"top_k": 5, "temperature": 0.3}, tool_call_constraint=None
    )
    assert_same_sampling(submission.sampling, sampled_with(params))


def assert_same_sampling(ours: Sampling, theirs: Any) -> None:
    """SGLang understood what was meant: its object has our values, and its defaults are the ones that `Sampling` leaves out."""
    greedy = ours.temperature < 1e-6
    assert theirs.temperature == (1.0 if greedy else ours.temperature)
    assert theirs.top_k == (1 if greedy else ours.top_k if ours.top_k != -1 else sampled_with({}).top_k)
    for name in ("top_p", "min_p", "max_new_tokens", "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.stop_token_ids == {ours.stop_token_id}
    assert theirs.sampling_seed == ours.seed
    assert list(theirs.stop_strs) == list(ours.stop)
    assert theirs.logit_bias == ours.logit_bias
    assert theirs.skip_special_tokens is False
    assert (theirs.regex, theirs.ebnf) == (ours.regex, ours.ebnf)
    for name in ("json_schema", "structural_tag"):
        mine, read = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (read is None), name
        assert mine is None or json.loads(mine).items() <= json.loads(read).items(), name


class Recorder:
    """Answers every control request with success and keeps it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Json]] = []

    def app(self) -> Starlette:
        async def answer(request: Request) -> JSONResponse:
            self.seen.append((request.url.path, await request.json()))
            return JSONResponse({"success": True, "message": "ok"})

        return Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    recorder = Recorder()
    with ServerThread(recorder.app) as thread:
        yield recorder, thread.url


def test_control_requests(recorder: tuple[Recorder, str]) -> None:
    recorded, url = recorder

    async def everything() -> None:
        server = SglangServer(url, ServerKeys({}, {}))
        try:
            await every_control_request(server)
        finally:
            await server.close()

    asyncio.run(everything())
    for path, body in recorded.seen:
        accepted(path, body)
    assert {path for path, _ in recorded.seen} == CLASSES.keys() - {GENERATE, CHAT}


async def every_control_request(server: SglangServer) -> None:
    """One of each kind, with every mode."""
    wanted = PolicyVersion(version=7, path="/weights/v7")
    for mode in ("abort", "retract", "in_place"):
        await server.pause(mode, 5)
        await server.update(wanted, 5, mode)
    await server.resume()
    await server.abort("call-1.0")
    await server.abort_all()
    await server.relabel("7+0badcafe")
    group = {"master_address": "10.0.0.1", "master_port": 29500, "world_size": 3, "rank_offset": 1, "group_name": "g", "backend": "nccl"}
    await server.join_group(group, 5)
    await server.begin_receiving()
    await server.receive(Bucket(["model.norm.weight"], ["bfloat16"], [[128]]), "g", 5, flush=True)
    await server.end_receiving()
    await server.leave_group("g")
