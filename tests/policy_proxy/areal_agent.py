"""An agent with AReaL's contract, and one episode of it the way AReaL's proxy workflow plays it: plain HTTP, no code of ours in between."""

import base64
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from openai import AsyncOpenAI

Json = dict[str, Any]
DTYPES = {"torch.int64": "<i8", "torch.int32": "<i4", "torch.float32": "<f4", "torch.bool": "?"}


class TalkativeAgent:
    """Says so many things in a row; returns one reward, or one for each completion where ``dense``."""

    def __init__(self, turns: int, *, dense: bool = False) -> None:
        self.turns, self.dense = turns, dense

    async def run(self, data: Json, **extra: Any) -> float | dict[str, float]:
        client = AsyncOpenAI(base_url=extra["base_url"], api_key=extra["api_key"], http_client=extra["http_client"], max_retries=0)
        messages = list(data["messages"])
        rewards: dict[str, float] = {}
        for turn in range(self.turns):
            completion = await client.chat.completions.create(model="default", messages=messages, temperature=1.0, max_tokens=64)
            messages += [completion.choices[0].message.model_dump(), {"role": "user", "content": f"and {turn}?"}]
            rewards[completion.id] = float(turn)
        return rewards if self.dense else 1.0


@dataclass
class ArealClient:
    """What AReaL's OpenAIProxyClient and OpenAIProxyWorkflow send."""

    http: httpx.AsyncClient
    admin: dict[str, str]

    async def start(self, task_id: str, **extra: Any) -> httpx.Response:
        return await self.http.post("/rl/start_session", json={"task_id": task_id, "api_key": None, **extra}, headers=self.admin)

    async def set_reward(self, key: str, interaction_id: str | None, reward: float) -> httpx.Response:
        return await self.http.post("/rl/set_reward", json={"interaction_id": interaction_id, "reward": reward}, headers=bearer(key))

    async def end(self, key: str) -> httpx.Response:
        return await self.http.post("/rl/end_session", json={}, headers=bearer(key))

    async def export(self, session_id: str, **extra: Any) -> httpx.Response:
        body = {"session_id": session_id, "discount": 1.0, "style": "individual", "drop_retry_orphans": False, **extra}
        return await self.http.post("/export_trajectories", json=body, headers=self.admin)

    async def episode(self, agent: Any, task_id: str, data: Json, **export: Any) -> tuple[str, dict[str, Json]]:
        """The session's id, and its interactions with their tensors as arrays."""
        (await self.http.post("/grant_capacity", headers=self.admin)).raise_for_status()
        started = (await self.start(task_id)).raise_for_status().json()
        key = started["api_key"]
        rewards = await agent.run(data, base_url=str(self.http.base_url), api_key=key, http_client=self.http)
        for interaction_id, reward in rewards.items() if isinstance(rewards, dict) else [(None, rewards)]:
            assert (await self.set_reward(key, interaction_id, reward)).json() == {"message": "success"}
        assert (await self.end(key)).json() == {"message": "success", "interaction_count": agent.turns}
        answer = (await self.export(started["session_id"], **export)).raise_for_status().json()
        return started["session_id"], {name: arrays_of(item) for name, item in answer["interactions"].items()}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def arrays_of(interaction: Json) -> Json:
    """An interaction with its tensors as arrays, read as AReaL's ``SerializedTensor.to_tensor`` reads them."""
    tensors = {}
    for name, tensor in interaction["tensor_dict"].items():
        assert tensor["type"] == "tensor"
        tensors[name] = np.frombuffer(base64.b64decode(tensor["data"]), DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return {**interaction, "tensor_dict": tensors}
