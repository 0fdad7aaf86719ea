"""Owns asking the agent runner which tasks a dataset has."""

from typing import Any, Self, cast
from urllib.parse import urlencode

from services.common.config.datasets import DatasetRef
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.trainer.checks import ExperimentFailed
from services.trainer.sampler import Task, TaskSet

RETRY_S = 300.0


class RunnerClient:
    """A client of the runner's task listing."""

    def __init__(self, base_url: str, *, retry_s: float = RETRY_S) -> None:
        self._http = ServiceClient("agent_runner", base_url, timeout_s=60.0, retry_s=retry_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def tasks(self, ref: DatasetRef, *, solo: bool) -> TaskSet:
        """The tasks of a dataset; with ``solo`` those that can be played so.

        Raises `ExperimentFailed` where there is none, `RemoteError` where the runner stays away.
        """
        try:
            query = {"domain": ref.domain, "split": ref.split, "solo": str(solo).lower()}
            reply = await self._http.get(f"/v1/tasks?{urlencode(query)}")
        except RemoteError as error:
            if error.retryable:
                raise
            raise ExperimentFailed(f"dataset {ref}: {error.detail}") from error
        items = cast("list[dict[str, Any]]", reply["tasks"])
        tasks = [Task(item["task_id"], bool(item["solo"]), item["scenario"], item["digest"], int(item["n_actions"])) for item in items]
        chosen = sorted((task for task in tasks if task.solo or not solo), key=lambda task: task.task_id)
        if not chosen:
            raise ExperimentFailed(f"dataset {ref}: none of its {len(tasks)} tasks can be played" + (" in solo mode" if solo else ""))
        # The runner's floor is over the same tasks: with ``solo`` those that can be played so.
        return TaskSet(ref, chosen, reply.get("floor"))
