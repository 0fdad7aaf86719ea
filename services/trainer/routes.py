"""Owns the trainer's routes: reading the experiment. There is nothing to command here; the config says what happens."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from services.trainer.experiment import Experiment
from services.trainer.phases import Phase


def experiment_of(request: Request) -> Experiment:
    """The experiment of this process."""
    return request.app.state.experiment


ExperimentDep = Annotated[Experiment, Depends(experiment_of)]


def router() -> APIRouter:
    """``/v1/experiment`` and ``/v1/metrics/summary``."""
    routes = APIRouter(prefix="/v1", tags=["experiment"])
    routes.add_api_route("/experiment", experiment, methods=["GET"])
    routes.add_api_route("/metrics/summary", metrics_summary, methods=["GET"])
    return routes


async def experiment(experiment: ExperimentDep) -> dict[str, Any]:
    """Phase, step, versions and the last line of metrics."""
    return experiment.describe()


async def metrics_summary(experiment: ExperimentDep) -> Mapping[str, list[dict[str, Any]]]:
    """All lines of metrics, by phase."""
    phases = (Phase.SFT, Phase.EVAL_BEFORE, Phase.RL, Phase.EVAL_AFTER)
    return {
        phase: [{"step": line.step, "at": line.at, "values": line.values} for line in experiment.recorder.lines(phase)] for phase in phases
    }
