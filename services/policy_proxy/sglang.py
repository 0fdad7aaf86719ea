"""Owns SGLang's HTTP surface as the proxy uses it: generate, pause, continue, update, and the version a server says it has.

Turns answers into plain values and refuses what cannot be trained on: missing logprobs, ids that disagree, versions that do not cover
the output. Every failure is a `RemoteError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.calls import Ids
from services.common.wire.store import PolicyVersion

Json = dict[str, Any]
CONTROL_TIMEOUT_S = 10.0
"""Pause, continue and model_info: none of them computes, but a busy engine may answer late."""

ABORT_TIMEOUT_S = 2.0
"""Whoever aborts is leaving and cannot wait long; a server that does not answer notices the closed connection by itself."""
BACKSTOP_S = 10.0
"""How much longer than its caller's deadline a request may take. The caller must fire first: aiohttp turns a cancellation that meets its
own timeout into that timeout, and the caller's would be lost."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What goes into ``sampling_params``."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_token_id: int
    seed: int | None = None

    def as_json(self) -> Json:
        params: Json = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "stop_token_ids": [self.stop_token_id],
            "skip_special_tokens": False,
        }
        return params if self.seed is None else params | {"sampling_seed": self.seed}


@dataclass(frozen=True, slots=True)
class Segment:
    """What one ``/generate`` returned. ``versions``: run-length (policy version, tokens); ``finish``: stop, length or abort."""

    ids: list[int]
    logprobs: list[float]
    versions: list[tuple[int, int]]
    finish: str


@dataclass(frozen=True, slots=True)
class Weights:
    """What a server says it has loaded."""

    label: str
    """Its ``weight_version``: a policy version where we set it."""
    path: str


class SglangServer:
    """One server's routes. ``control_headers`` carry the key of those that change what is served."""

    def __init__(self, url: str, control_headers: Mapping[str, str]) -> None:
        self.url = url
        self._client = ServiceClient("policy_server", url, timeout_s=CONTROL_TIMEOUT_S)
        self._control_headers = control_headers

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def generate(self, rid: str, input_ids: Ids, sampling: Sampling, pinned: int, timeout_s: float) -> Segment:
        """Generates after ``input_ids``. ``pinned`` is the version this server was known to have when the request left.

        ``timeout_s`` is the caller's deadline, which the caller enforces.
        """
        body = {"rid": rid, "input_ids": input_ids, "sampling_params": sampling.as_json(), "return_logprob": True, "stream": False}
        payload = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        answer = self._read(await self._client.request("POST", "/generate", data=payload, timeout_s=timeout_s + BACKSTOP_S))
        return read_segment(answer, pinned)

    async def weights(self) -> Weights:
        """The weights in use."""
        answer = self._read(await self._client.request("GET", "/model_info", timeout_s=CONTROL_TIMEOUT_S))
        return Weights(str(answer.get("weight_version")), str(answer.get("model_path")))

    async def pause(self) -> None:
        """Stops generation; requests in flight return what they have."""
        await self._client.request("POST", "/pause_generation", json={"mode": "abort"}, headers=self._control_headers)

    async def resume(self) -> None:
        """Lets generation go on; harmless where it was not paused."""
        await self._client.request("POST", "/continue_generation", json={}, headers=self._control_headers)

    async def abort(self, rid: str) -> None:
        """Ends a request whose answer nobody wants any more; harmless where it has ended."""
        path, headers = "/abort_request", self._control_headers
        await self._client.request("POST", path, json={"rid": rid}, headers=headers, timeout_s=ABORT_TIMEOUT_S)

    async def update(self, wanted: PolicyVersion, timeout_s: float) -> None:
        """Loads the weights in ``wanted.path`` and labels them. ``timeout_s`` is the caller's deadline, which the caller enforces."""
        body = {"model_path": wanted.path, "weight_version": str(wanted.version), "abort_all_requests": True, "flush_cache": True}
        path, headers = "/update_weights_from_disk", self._control_headers
        answer = self._read(await self._client.request("POST", path, json=body, headers=headers, timeout_s=timeout_s + BACKSTOP_S))
        if answer.get("success") is not True:
            raise _bad_answer(f"update_weights_from_disk: {answer.get('message')}")

    def _read(self, body: bytes) -> Json:
        try:
            answer: Any = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise _bad_answer(f"not JSON: {body[:200]!r}") from error
        if not isinstance(answer, dict):
            raise _bad_answer(f"not a JSON object: {body[:200]!r}")
        return cast("Json", answer)


def read_segment(answer: Json, pinned: int) -> Segment:
    """The tokens of a ``/generate`` answer. Raises `RemoteError` where they cannot be trusted."""
    try:
        meta: Json = answer["meta_info"]
        entries: list[Any] = meta.get("output_token_logprobs") or []
        finish = str(meta["finish_reason"]["type"])
        logprobs = [float(entry[0]) for entry in entries]
        ids = [int(entry[1]) for entry in entries]
        output_ids = answer.get("output_ids")
        versions = read_versions(meta, len(ids), pinned, aborted=finish == "abort")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _bad_answer(f"generate: {error!r}") from error
    if finish not in ("stop", "length", "abort"):
        raise _bad_answer(f"generate: finish_reason {finish!r}")
    if output_ids is not None and output_ids != ids:
        raise _bad_answer(f"generate: {len(ids)} logprobs for other ids than the {len(output_ids)} in output_ids")
    return Segment(ids, logprobs, versions, finish)


def read_versions(meta: Json, n_output: int, pinned: int, *, aborted: bool) -> list[tuple[int, int]]:
    """Run-length versions of an output: the server's own spans, else its label, else the version pinned before the request left.

    Without spans an aborted output is from before the update that aborted it, while the label is already the new one.
    """
    if n_output == 0:
        return []
    spans = meta.get("weight_versions")
    if not spans:
        label = meta.get("weight_version")
        return [(pinned if aborted or label is None else int(label), n_output)]
    runs: list[tuple[int, int]] = []
    at = 0
    for span in spans:
        end = min(int(span["end"]), n_output)
        if int(span["start"]) != at:
            raise ValueError(f"weight_versions: a span starts at {span['start']}, the one before ends at {at}")
        if end > at:
            runs.append((int(span["version"]), end - at))
        at = max(at, end)
    if at != n_output:
        raise ValueError(f"weight_versions: they cover {at} of {n_output} tokens")
    return runs


def _bad_answer(detail: str) -> RemoteError:
    return RemoteError("policy_server", 200, "bad_answer", detail)
