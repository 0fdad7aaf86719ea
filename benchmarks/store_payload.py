"""The trajectory that the store benchmarks move: 30 turns, 20,000 tokens, as every contender wants it.

Token ids are drawn from a Zipf law over Qwen's vocabulary and texts from a small one, so that they compress about as well as real ones do.
Every body carries the placeholder `MARK` where the episode id belongs; ids of the same length are put in its place, which costs the
client next to nothing.
"""

from typing import Any

import msgspec
import numpy as np
import orjson

from services.common.wire.calls import CallRecord, encode_call, rows_of
from services.common.wire.rollouts import (
    Kind,
    RewardInfo,
    RolloutRequest,
    Sampling,
    Status,
    TaskRef,
    TaskStamp,
    Timings,
    Trajectory,
)
from services.common.wire.store import WholeTrajectory

TURNS, PREFIX, PROMPT, OUTPUT = 30, 6000, 350, 117
MARK = "EPISODE-00000000"
VOCABULARY = 151_643


def episode_id(number: int) -> str:
    """As long as `MARK`."""
    return f"e{number:015d}"


def with_id(body: bytes, name: str) -> bytes:
    """The body of one episode."""
    return body.replace(MARK.encode(), name.encode())


class Payload:
    """One trajectory in all its forms."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._words = ["".join(map(chr, self._rng.integers(97, 123, self._rng.integers(2, 10)))) for _ in range(2000)]
        self.calls = [self._call(turn) for turn in range(TURNS)]
        self.rows = rows_of(self.calls)
        self.n_tokens = sum(len(call.prompt) + len(call.output) for call in self.calls) // 4
        self.trajectory = self._trajectory()

    def _ids(self, count: int) -> bytes:
        drawn = self._rng.zipf(1.15, count * 3)
        return drawn[drawn < VOCABULARY][:count].astype("<i4").tobytes()

    def _text(self, words: int) -> str:
        picks = np.minimum(self._rng.zipf(1.3, words), len(self._words) - 1)
        return " ".join(self._words[pick] for pick in picks)

    def _call(self, turn: int) -> CallRecord:
        logprobs = -self._rng.gamma(0.2, 1.0, OUTPUT)
        return CallRecord(
            call_id=f"{MARK}.a1-call{turn}",
            session_id=f"{MARK}.a1",
            ordinal=turn,
            parent=f"{MARK}.a1-call{turn - 1}" if turn else None,
            prompt=self._ids(PROMPT if turn else PREFIX),
            output=self._ids(OUTPUT),
            logprobs=logprobs.astype("<f4").tobytes(),
            versions=[(3, OUTPUT)],
            finish_reason="stop",
            digest=self._rng.bytes(16).hex(),
            response={"choices": [{"index": 0, "message": {"role": "assistant", "content": self._text(80)}, "finish_reason": "stop"}]},
            started_at=1.7e9 + turn,
            ended_at=1.7e9 + turn + 0.5,
        )

    def _trajectory(self) -> Trajectory:
        messages: list[dict[str, Any]] = []
        for call in self.calls:
            messages += [{"role": "user", "content": self._text(60)}, call.response["choices"][0]["message"]]
        request = self.request()
        return Trajectory(
            episode_id=MARK,
            group_id=MARK,
            kind=Kind.TRAIN,
            task=request.task,
            stamp=TaskStamp(source="benchmark", digest="0"),
            status=Status.SCORED,
            reward=1.0,
            reward_info=RewardInfo(reward=1.0, basis=["ENV_ASSERTION"]),
            termination_reason="agent_stop",
            messages=messages,
            n_turns=TURNS,
            session_id=f"{MARK}.a1",
            policy_versions=[3],
            sampling=Sampling(),
            timings=Timings(started_at=1.7e9, total_s=30.0),
        )

    def request(self) -> RolloutRequest:
        """The rollout request of the episode."""
        return RolloutRequest(episode_id=MARK, group_id=MARK, task=TaskRef(task_id="[mms_issue]airplane_mode_on|bad_network_preference"))

    def without_content(self) -> bytes:
        """JSON `Trajectory` without messages and session."""
        return json_bytes(self.trajectory.model_copy(update={"messages": [], "session_id": None}).model_dump(mode="json"))

    def encoded_calls(self) -> list[tuple[str, bytes]]:
        """(id, msgpack `CallRecord`) of each call."""
        return [(call.call_id, encode_call(call)) for call in self.calls]

    def whole(self) -> bytes:
        """msgpack `WholeTrajectory`."""
        calls = [encode_call(call) for call in self.calls]
        return msgspec.msgpack.encode(WholeTrajectory(trajectory=self.trajectory.model_dump(mode="json"), calls=calls))

    def model_requests(self) -> list[dict[str, Any]]:
        """One OpenAI response a call with its full prompt ids, output ids and logprobs: what a gateway without a token tree records."""
        found: list[dict[str, Any]] = []
        for call, row in zip(self.calls, self.rows, strict=True):
            prompt = row.ids[: len(row.ids) - row.n_output].tolist()
            logprobs = call.output_logprobs()
            assert logprobs is not None
            choice = {
                **call.response["choices"][0],
                "token_ids": call.output_ids().tolist(),
                "logprobs": {"content": [{"logprob": round(float(value), 6)} for value in logprobs]},
            }
            found.append({"model": "policy", "response": {"prompt_token_ids": prompt, "choices": [choice]}, "server": {"version": 3}})
        return found

    def readable_calls(self) -> list[dict[str, Any]]:
        """The token tree as JSON numbers: the same content as `whole`, for a contender that speaks only JSON."""
        return [
            {
                "call_id": call.call_id,
                "parent": call.parent,
                "prompt": call.prompt_ids().tolist(),
                "output": call.output_ids().tolist(),
                "logprobs": [round(float(value), 6) for value in call.output_logprobs()],
                "response": call.response,
            }
            for call in self.calls
        ]

    def individual_rows_bytes(self) -> int:
        """Bytes of AReaL's individual export: one row a turn, padded to nothing, in its dtypes.

        input_ids, loss_mask, versions int64, logprobs float32, turn_ids int32, attention_mask bool, two rewards float32.
        """
        per_token = 8 + 8 + 8 + 4 + 4 + 1
        return sum(len(row.ids) * per_token + 8 for row in self.rows)


def json_bytes(value: Any) -> bytes:
    """JSON."""
    return orjson.dumps(value)
