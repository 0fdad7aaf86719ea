"""Owns asking the agent runner which tasks a dataset has."""

from typing import Any, Self, cast
from urllib.parse import urlencode

from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.trainer.checks import ExperimentFailed, dataset
from services.trainer.sampler import Task

RETRY_S = 300.0


class RunnerClient:
    """A client of the runner's task listing."""

    def __init__(self, base_url: str, *, retry_s: float = RETRY_S) -> None:
        self._http = ServiceClient("agent_runner", base_url, timeout_s=60.0, retry_s=retry_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def tasks(self, path: str, *, solo: bool) -> list[Task]:
        """The tasks of a ``domain/split``, sorted by id; with ``solo`` those that can be played so.

        Raises `ExperimentFailed` where there is none, `RemoteError` where the runner stays away.
        """
        domain, split = dataset(path)
        try:
            reply = await self._http.get(f"/v1/tasks?{urlencode({'domain': domain, 'split': split})}")
        except RemoteError as error:
            if error.retryable:
                raise
            raise ExperimentFailed(f"dataset {path}: {error.detail}") from error
        items = cast("list[dict[str, Any]]", reply["tasks"])
        tasks = [Task(task_id=item["task_id"], solo=bool(item["solo"]), scenario=item["scenario"]) for item in items]
        chosen = sorted((task for task in tasks if task.solo or not solo), key=lambda task: task.task_id)
        if not chosen:
            raise ExperimentFailed(f"dataset {path}: none of its {len(tasks)} tasks can be played" + (" in solo mode" if solo else ""))
        return chosen
