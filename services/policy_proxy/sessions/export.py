"""Owns the forms in which the calls of a session are handed out: for people to read, as training rows, and as AReaL's tensors.

``individual``: every call is a row and only its own output is trained on. ``concat``: only calls that no other extends are rows, and the
output of every call on the way is trained on, with its own logprobs and versions. Pure functions. Refuses to render anything anew: tokens
are those that the policy was sent and said.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.common.wire.calls import CallRecord
from services.common.wire.sessions import Reward
from services.policy_proxy.sessions.returns import leaves, returns, without_orphans

Json = dict[str, Any]
Style = Literal["individual", "concat"]
View = Literal["messages", "tokens", "rows"]
Decode = Callable[[Sequence[int]], str]

NOT_SAMPLED = -1
"""The version, and the turn, of tokens that no policy sampled."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A whole sequence from the root on; all arrays of one length."""

    ids: NDArray[np.int64]
    loss_mask: NDArray[np.int64]
    """1 where a token was generated."""
    logprobs: NDArray[np.float32]
    """0 where it was not, and in demonstrations."""
    versions: NDArray[np.int64]
    turn_ids: NDArray[np.int32]
    """0, 1, 2 … over the outputs of the sequence."""


@dataclass(frozen=True, slots=True)
class ExportedRow:
    """One training row."""

    call_id: str
    tokens: Tokens
    reward: float
    """The call's return (`returns`)."""


def rows(
    calls: Sequence[CallRecord],
    rewards: Sequence[Reward],
    *,
    discount: float = 1.0,
    style: Style = "individual",
    drop_orphans: bool = False,
) -> list[ExportedRow]:
    """The rows of a session, in the order in which their calls finished. Raises ValueError where a parent is missing."""
    calls = sorted(calls, key=lambda call: call.ordinal)
    if drop_orphans:
        kept = without_orphans(calls, {call.call_id: call.prompt for call in calls})
        calls = [call for call in calls if call.call_id in kept]
    worth = returns(calls, rewards, discount)
    wanted = leaves(calls) if style == "concat" else set(worth)
    whole = _sequences(calls)
    found: list[ExportedRow] = []
    for call in calls:
        if call.call_id in wanted:
            tokens = whole[call.call_id] if style == "concat" else _alone(whole[call.call_id], call)
            found.append(ExportedRow(call.call_id, tokens, worth[call.call_id]))
    return found


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the store has of a session."""

    calls: Sequence[CallRecord]
    rewards: Sequence[Reward]


def view_json(recorded: Recorded, view: View, decode: Decode, *, discount: float, style: Style, drop_orphans: bool) -> Json:
    """The rewards and the calls of a session in one of the views; ``discount``, ``style`` and ``drop_orphans`` are those of `rows`."""
    if view == "rows":
        exported = rows(recorded.calls, recorded.rewards, discount=discount, style=style, drop_orphans=drop_orphans)
        shown = [_row_json(row) for row in exported]
    elif view == "tokens":
        shown = [_call_json(call) | _tokens_json(call) for call in recorded.calls]
    else:
        shown = [_call_json(call) | {"new_prompt": decode(call.prompt_ids().tolist())} for call in recorded.calls]
    return {"rewards": [reward.model_dump() for reward in recorded.rewards], "calls": shown}


def _row_json(row: ExportedRow) -> Json:
    tokens = row.tokens
    return {
        "call_id": row.call_id,
        "ids": tokens.ids.tolist(),
        "loss_mask": tokens.loss_mask.tolist(),
        "logprobs": tokens.logprobs.tolist(),
        "versions": tokens.versions.tolist(),
        "turn_ids": tokens.turn_ids.tolist(),
        "reward": row.reward,
    }


def _call_json(record: CallRecord) -> Json:
    return {
        "call_id": record.call_id,
        "ordinal": record.ordinal,
        "parent": record.parent,
        "n_prompt": len(record.prompt) // 4,
        "n_output": len(record.output) // 4,
        "versions": record.versions,
        "finish_reason": record.finish_reason,
        "malformed_tool_call": record.malformed_tool_call,
        "temperature": record.temperature,
        "sampling": record.sampling,
        "message": record.response["choices"][0]["message"],
        "trace_id": record.trace_id,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "server_s": record.server_s,
    }


def _tokens_json(record: CallRecord) -> Json:
    logprobs = record.output_logprobs()
    return {
        "prompt_ids": record.prompt_ids().tolist(),
        "output_ids": record.output_ids().tolist(),
        "logprobs": None if logprobs is None else logprobs.tolist(),
    }


def areal_interactions(exported: Sequence[ExportedRow]) -> Json:
    """What ``/export_trajectories`` of AReaL answers, by interaction id: tensors with a leading batch dimension of 1.

    The form is that of areal/experimental/openai/proxy/server.py and areal/infra/rpc/serialization.py (v1.0.4 and later).
    """
    return {row.call_id: _areal_interaction(row) for row in exported}


def _areal_interaction(row: ExportedRow) -> Json:
    tokens, reward = row.tokens, np.asarray([row.reward], np.float32)
    columns: dict[str, NDArray[Any]] = {
        "input_ids": tokens.ids[None],
        "loss_mask": tokens.loss_mask[None],
        "logprobs": tokens.logprobs[None],
        "versions": tokens.versions[None],
        "turn_ids": tokens.turn_ids[None],
        "attention_mask": np.ones((1, len(tokens.ids)), np.bool_),
        "rewards": reward,
        "original_rewards": reward,
    }
    return {
        "tensor_dict": {name: _tensor(column) for name, column in columns.items()},
        "reward": row.reward,
        "interaction_id": row.call_id,
    }


def _tensor(array: NDArray[Any]) -> Json:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"type": "tensor", "data": data, "shape": list(array.shape), "dtype": f"torch.{array.dtype.name}"}


def _sequences(calls: Sequence[CallRecord]) -> dict[str, Tokens]:
    """Each call from the root to its last token, with the outputs of all calls on the way."""
    found: dict[str, Tokens] = {}
    for call in calls:
        if call.parent is not None and call.parent not in found:
            raise ValueError(f"parent: call {call.call_id} extends {call.parent}, which is not in the session")
        before = [] if call.parent is None else [found[call.parent]]
        turn = max((int(tokens.turn_ids.max(initial=NOT_SAMPLED)) + 1 for tokens in before), default=0)
        found[call.call_id] = _joined(*before, _prompt(call.prompt_ids()), _output(call, turn))
    return found


def _alone(whole: Tokens, call: CallRecord) -> Tokens:
    """The sequence of a call with its own output as the only one."""
    n_before = len(whole.ids) - len(call.output) // 4
    return _joined(_prompt(whole.ids[:n_before]), _output(call, 0))


def _prompt(ids: NDArray[Any]) -> Tokens:
    n = len(ids)
    nothing = np.full(n, NOT_SAMPLED, np.int64)
    return Tokens(ids.astype(np.int64), np.zeros(n, np.int64), np.zeros(n, np.float32), nothing, nothing.astype(np.int32))


def _output(call: CallRecord, turn: int) -> Tokens:
    ids, logprobs = call.output_ids().astype(np.int64), call.output_logprobs()
    return Tokens(
        ids,
        np.ones(len(ids), np.int64),
        np.zeros(len(ids), np.float32) if logprobs is None else logprobs,
        call.output_versions().astype(np.int64),
        np.full(len(ids), turn, np.int32),
    )


def _joined(*parts: Tokens) -> Tokens:
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.loss_mask for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.versions for part in parts]),
        np.concatenate([part.turn_ids for part in parts]),
    )
