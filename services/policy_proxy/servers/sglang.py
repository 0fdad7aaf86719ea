"""Owns SGLang's HTTP surface as the proxy uses it: generation, and everything that controls a server.

Turns answers into plain values. Every failure is a `RemoteError`, answers that make no sense included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.event_stream import event_data
from services.policy_proxy.servers.load import LoadFigures, read_loads
from services.policy_proxy.servers.outputs import (
    SERVICE,
    Piece,
    Segment,
    SegmentReader,
    bad_answer,
    read_object,
    read_segment,
    refuse_stale,
)
from services.policy_proxy.servers.requests import APIS, Api, Submission
from services.policy_proxy.servers.versions import Weights, disk_label

Json = dict[str, Any]
ServerPause = Literal["abort", "retract", "in_place"]
CONTROL_TIMEOUT_S = 10.0
"""Continue, labels, figures: none of them computes, but a busy engine may answer late."""
ABORT_TIMEOUT_S = 2.0
"""Whoever aborts is leaving and cannot wait long; a server that does not answer notices the closed connection by itself."""
BACKSTOP_S = 10.0
"""How much longer than its caller's deadline a request may take: the caller fires first and says whose deadline it was."""

SILENCE_S = 120.0
"""How long a streamed answer may say nothing: longer than a pause, or than a long prompt in a long queue."""


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """Headers with the keys of a server: of the routes that generate and report, and of those that change what is served."""

    data: Mapping[str, str]
    control: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that are broadcast together, in order: their names, dtypes (``bfloat16``) and shapes."""

    names: Sequence[str]
    dtypes: Sequence[str]
    shapes: Sequence[Sequence[int]]


class SglangServer:
    """One server's routes. ``silence_s``: how long a streamed answer may say nothing."""

    def __init__(self, url: str, keys: ServerKeys, api: Api = APIS["generate"], silence_s: float = SILENCE_S) -> None:
        self.url = url
        self._client = ServiceClient(SERVICE, url, timeout_s=CONTROL_TIMEOUT_S, headers=keys.data)
        self._control = {**keys.data, **keys.control}
        self._api = api
        self._silence_s = silence_s

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def generate(self, submission: Submission) -> Segment:
        """Generates after ``input_ids``. The deadline is the caller's."""
        body = self._api.body(submission, stream=False)
        raw = await self._client.request("POST", self._api.path, data=body, headers=submission.headers(), timeout_s=inf)
        answer = self._api.answer(submission, raw)
        return refuse_stale(read_segment(answer, submission.pinned, submission.n_top, mixed=submission.mixed()), submission.pinned)

    async def stream(self, submission: Submission, timeout_s: float, reader: SegmentReader, hear: Callable[[Piece], None]) -> Segment:
        """`generate` that hands each new piece to ``hear``. What came before a failure stays in ``reader``."""
        body, limit_s = self._api.body(submission, stream=True), timeout_s + BACKSTOP_S
        chunks = self._client.stream(
            "POST", self._api.path, data=body, headers=submission.headers(), timeout_s=limit_s, silence_s=self._silence_s
        )
        async with chunks as received:
            async for data in event_data(received):
                if (piece := reader.take(read_object(data))) is not None:
                    hear(piece)
        if reader.finished is None:
            raise bad_answer(f"the stream of {self.url} ended before the answer did, after {reader.n_tokens} tokens")
        return reader.finished

    async def weights(self) -> Weights:
        """The weights in use."""
        answer = read_object(await self._client.request("GET", "/model_info", timeout_s=CONTROL_TIMEOUT_S))
        return Weights(str(answer.get("weight_version")), str(answer.get("model_path")))

    async def load(self) -> LoadFigures | None:
        """Its load figures; None where it has no such route."""
        try:
            return read_loads(read_object(await self._client.request("GET", "/v1/loads?include=core", timeout_s=CONTROL_TIMEOUT_S)))
        except ValueError as error:
            raise bad_answer(f"/v1/loads: {error}") from error
        except RemoteError as error:
            if error.status in (404, 405):
                return None
            raise

    async def paused(self) -> bool:
        """Whether it takes no requests for now; False where it has no such route."""
        try:
            await self._client.request("GET", "/ready", timeout_s=CONTROL_TIMEOUT_S)
        except RemoteError as error:
            if error.status == 503:
                return True
            if error.status not in (404, 405):
                raise
        return False

    async def ranks(self) -> int:
        """Ranks that take part in a weight-update group: tensor- and pipeline-parallel ones of its only data-parallel replica."""
        answer = read_object(await self._client.request("GET", "/server_info", timeout_s=CONTROL_TIMEOUT_S))
        if int(answer.get("dp_size") or 1) != 1:
            raise bad_answer("server_info: dp_size must be 1, SGLang has no weight-update groups over data-parallel replicas")
        return int(answer.get("tp_size") or 1) * int(answer.get("pp_size") or 1)

    async def pause(self, mode: ServerPause, timeout_s: float) -> None:
        """Stops generation; requests in flight return what they have (abort), wait again (retract), or stand still (in_place).

        ``timeout_s`` is the caller's deadline, which the caller enforces.
        """
        await self._post("/pause_generation", {"mode": mode}, timeout_s + BACKSTOP_S)

    async def resume(self) -> None:
        """Lets generation go on; harmless where it was not paused."""
        await self._post("/continue_generation", {})

    async def abort(self, rid: str) -> None:
        """Ends a request whose answer nobody wants any more; harmless where it has ended."""
        await self._post("/abort_request", {"rid": rid}, ABORT_TIMEOUT_S)

    async def abort_all(self) -> None:
        """Ends every request; what they have is returned."""
        await self._post("/abort_request", {"abort_all": True})

    async def update(self, wanted: PolicyVersion, timeout_s: float, mode: ServerPause = "abort") -> None:
        """Loads the weights in ``wanted.path`` and labels them. ``timeout_s`` is the caller's deadline, which the caller enforces.

        Keys and values of the old weights are dropped; SGLang cannot do that while requests stand still (in_place).
        """
        body: Json = {"model_path": wanted.path, "weight_version": disk_label(wanted)}
        body |= {"abort_all_requests": mode == "abort", "flush_cache": mode != "in_place"}
        await self._do("/update_weights_from_disk", body, timeout_s + BACKSTOP_S)

    async def relabel(self, label: str) -> None:
        """Sets the label without touching weights."""
        await self._do("/update_weight_version", {"new_version": label, "abort_all_requests": False})

    async def join_group(self, body: Json, timeout_s: float) -> None:
        """``/init_weights_update_group``: returns when all ranks have joined."""
        await self._do("/init_weights_update_group", body, timeout_s + BACKSTOP_S)

    async def leave_group(self, group_name: str) -> None:
        """Leaves a group; harmless where it was in none."""
        await self._tolerant("/destroy_weights_update_group", {"group_name": group_name})

    async def begin_receiving(self) -> None:
        """Opens a weight-update session, ending one that a crash has left open; a server without that route needs none."""
        await self._tolerant("/end_weight_update", {})
        try:
            await self._do("/begin_weight_update", {})
        except RemoteError as error:
            if error.status not in (404, 405):
                raise

    async def receive(self, bucket: Bucket, group_name: str, timeout_s: float, *, flush: bool) -> None:
        """Receives the tensors of a bucket; returns when they are loaded. The trainer broadcasts them meanwhile."""
        body: Json = {"names": list(bucket.names), "dtypes": list(bucket.dtypes), "shapes": [list(shape) for shape in bucket.shapes]}
        body |= {"group_name": group_name, "flush_cache": flush, "abort_all_requests": False}
        await self._do("/update_weights_from_distributed", body, timeout_s + BACKSTOP_S)

    async def end_receiving(self) -> None:
        """Closes the session; harmless where none is open."""
        await self._tolerant("/end_weight_update", {})

    async def _post(self, path: str, body: Json, timeout_s: float = CONTROL_TIMEOUT_S) -> bytes:
        return await self._client.request("POST", path, json=body, headers=self._control, timeout_s=timeout_s)

    async def _do(self, path: str, body: Json, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        answer = read_object(await self._post(path, body, timeout_s))
        if answer.get("success") is not True:
            raise bad_answer(f"{path[1:]}: {answer.get('message')}")

    async def _tolerant(self, path: str, body: Json) -> None:
        try:
            await self._post(path, body)
        except RemoteError as error:
            if error.status not in (400, 404, 405):
                raise
