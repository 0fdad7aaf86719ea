"""Owns the HTTP form of what there is to play: domains, task lists, single tasks."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from services.agent_runner.catalog import Catalog
from services.agent_runner.domains import TaskSpec
from services.agent_runner.routes.common import domains_loaded
from services.common.config import ExperimentConfig
from services.common.wire.rollouts import TaskRef, Wire

router = APIRouter(prefix="/v1", tags=["tasks"], dependencies=[Depends(domains_loaded)])


class DomainView(Wire):
    """One domain of a listing."""

    domain: str
    source: str
    """Package, version and where the data comes from."""
    splits: dict[str, int]
    """Name -> tasks, the domain's default first."""
    problem: str = ""
    """Why it cannot be had here."""


class DomainList(Wire):
    """GET /v1/domains."""

    items: list[DomainView]


class TaskView(Wire):
    """One task of a listing."""

    task_id: str
    digest: str
    scenario: str
    """Equal for tasks that tell the agent the same."""
    reward_basis: list[str]
    solo: bool
    """Whether it can be played solo."""
    n_actions: int
    """Reference actions."""


class TaskList(Wire):
    """GET /v1/tasks."""

    domain: str
    split: str
    source: str
    n_tasks: int
    floor: float | None
    """Mean reward of doing nothing over all tasks of the split that can be played this way; null where there are none."""
    tasks: list[TaskView]
    next: int | None = None
    """What to give as ``after`` for the rest."""


class TaskDetail(Wire):
    """GET /v1/tasks/{task_id}."""

    domain: str
    split: str
    source: str
    task: TaskView
    floor: float
    """Reward of doing nothing."""
    raw: dict[str, Any]
    """The task in tau2's own schema."""


@router.get("/domains")
async def list_domains(request: Request) -> DomainList:
    """Every domain with its splits and their sizes. The first time it loads all of them, which takes seconds."""
    catalog: Catalog = request.app.state.catalog
    views = [DomainView(domain=one.domain, source=one.source, splits=one.splits, problem=one.problem) for one in await catalog.domains()]
    return DomainList(items=views)


@router.get("/tasks")
async def list_tasks(
    request: Request,
    domain: str | None = None,
    split: str | None = None,
    solo: bool | None = None,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int | None, Query(ge=1)] = None,
) -> TaskList:
    """The tasks of a split or of a configured task file, in file order. ``solo`` says in which mode the floor is played."""
    catalog: Catalog = request.app.state.catalog
    domain, split = await _names(request, domain, split)
    found = await catalog.tasks(domain, split)
    config: ExperimentConfig = request.app.state.config
    floor = await catalog.floor(found, solo=config.econfig.solo_mode if solo is None else solo)
    stop = len(found.tasks) if limit is None else min(after + limit, len(found.tasks))
    return TaskList(
        domain=domain,
        split=split,
        source=found.backend.source,
        n_tasks=len(found.tasks),
        floor=floor.mean,
        tasks=[_view(task) for task in found.tasks[after:stop]],
        next=stop if stop < len(found.tasks) else None,
    )


@router.get("/tasks/{task_id:path}")
async def get_task(
    request: Request, task_id: str, domain: str | None = None, split: str | None = None, solo: bool | None = None
) -> TaskDetail:
    """One task as it stands in the data."""
    catalog: Catalog = request.app.state.catalog
    domain, split = await _names(request, domain, split)
    backend, task = await catalog.task(domain, split, task_id)
    plays_solo = task.ticket is not None if solo is None else solo
    floor = await catalog.task_floor(TaskRef(domain=domain, split=split, task_id=task_id, solo_mode=plays_solo))
    return TaskDetail(domain=domain, split=split, source=backend.source, task=_view(task), floor=floor, raw=task.raw)


async def _names(request: Request, domain: str | None, split: str | None) -> tuple[str, str]:
    catalog: Catalog = request.app.state.catalog
    config: ExperimentConfig = request.app.state.config
    domain = domain or config.econfig.domain
    return domain, split or await catalog.default_split(domain)


def _view(task: TaskSpec) -> TaskView:
    return TaskView(
        task_id=task.task_id,
        digest=task.digest,
        scenario=task.scenario,
        reward_basis=list(task.reward_basis),
        solo=task.ticket is not None,
        n_actions=len(task.actions),
    )
