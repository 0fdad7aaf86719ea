"""Owns the course of one experiment: from phase to phase, resumable at each, with its view for `/v1/experiment` and the store.

Tells failures apart: what may pass is waited out and tried again, what never will ends the experiment with its reason.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import orjson

from services.common.config import ExperimentConfig
from services.common.config.datasets import DatasetRef
from services.common.config.paths import checkpoints_dir, initial_model_dir, results_file, trial_dir
from services.common.errors import RemoteError
from services.trainer.checks import ExperimentFailed, check_config, config_digest
from services.trainer.engine import ComputeThread, Engine, OpenEngine, set_threads
from services.trainer.evaluation import eval_metrics, evaluate
from services.trainer.feeder import Feeder
from services.trainer.files import write_atomic
from services.trainer.mixing import TaskMix
from services.trainer.phases import Phase, move, next_phase
from services.trainer.proxy_client import ProxyClient
from services.trainer.publisher import Publisher
from services.trainer.recorder import Recorder
from services.trainer.results import results, scores
from services.trainer.rl import RlLoop, RlParts, drop_unused
from services.trainer.runner_client import RunnerClient
from services.trainer.sampler import TaskSet, demonstrations
from services.trainer.sft import SftLoop, collect, sft_optimizer
from services.trainer.sources import admit_tasks
from services.trainer.state import Checkpoints, Report, State, StateError
from services.trainer.store_client import StoreClient

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""Failures in a row without a phase or step done in between after which the experiment is given up."""
PAUSE_S = 2.0
BEFORE_VERSION_0 = (Phase.SETUP, Phase.SFT, Phase.PUBLISH)
UNUSED_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Clients:
    """The services that the trainer talks to."""

    store: StoreClient
    proxy: ProxyClient
    runner: RunnerClient


@dataclass(slots=True)
class View:
    """What the experiment says of itself."""

    phase: Phase = Phase.SETUP
    detail: str = ""
    """How far the phase is; why it failed where it did."""


class Experiment:
    """One trial. `run` returns when it is done or has failed for good."""

    def __init__(self, config: ExperimentConfig, clients: Clients, compute: ComputeThread, opener: OpenEngine) -> None:
        self._config = config
        self._clients = clients
        self._compute = compute
        self._open = opener
        self._checkpoints = Checkpoints(checkpoints_dir(config), config.saver.keep)
        self.recorder = Recorder(trial_dir(config) / "metrics.jsonl", clients.store)
        self._publisher = Publisher(config, clients.store, clients.proxy, compute)
        self.state = State()
        self.view = View()

    async def run(self) -> None:
        """Runs to the end. Failures are tried again from the last checkpoint; the same one `ATTEMPTS` times in a row is final."""
        failures, reached = 0, (Phase.SETUP, 0, 0)
        while True:
            try:
                await self._run_once()
                return
            except ExperimentFailed as error:
                await self._fail(str(error))
                return
            except Exception as error:
                here = (self.state.phase, self.state.sft_step, self.state.step)
                failures = failures + 1 if here == reached else 1
                reached = here
                if failures >= ATTEMPTS and not passing(error):
                    await self._fail(f"{self.state.phase}: {error!r}, {failures} times in a row")
                    return
                log.exception("%s failed, again from the last checkpoint", self.state.phase)
            await asyncio.sleep(PAUSE_S)

    async def _run_once(self) -> None:
        check_config(self._config)
        self.state = self._load()
        while self.state.phase is not Phase.DONE:
            await self._show()
            await self._run_phase(self.state.phase)
            self.state.phase = next_phase(self.state.phase, self._config)
            self._checkpoints.commit(self.state)
        await self._show()

    def _load(self) -> State:
        try:
            state = self._checkpoints.load()
        except StateError as error:
            raise ExperimentFailed(str(error)) from error
        digest = config_digest(self._config)
        if state is None:
            return State(started_at=time.time(), config_digest=digest)
        if state.config_digest != digest:
            log.warning("the config of trial %s changed since its last start; it goes on with the new one", self._config.trial_name)
            state.config_digest = digest
        return state

    async def _run_phase(self, phase: Phase) -> None:
        match phase:
            case Phase.SETUP:
                self._checkpoints.commit(self.state)
            case Phase.SFT:
                await self._sft()
            case Phase.PUBLISH:
                await self._publish_initial()
            case Phase.EVAL_BEFORE:
                await self._evaluate("before")
            case Phase.RL:
                await self._rl()
            case Phase.EVAL_AFTER:
                await self._evaluate("after")
            case Phase.FINISH:
                await self._finish()
            case Phase.DONE | Phase.FAILED:
                raise ValueError(f"{phase} is an end, not something to run")

    # Phases

    async def _sft(self) -> None:
        config, ref = self._config, DatasetRef.parse(self._config.sft.dataset)
        excluded = {task.task_id for task in (await self._tasks(DatasetRef(ref.domain, config.sft.exclude_split))).tasks}
        given = (await self._tasks(ref)).without(excluded).up_to(config.sft.max_actions)
        if not given.tasks:
            limit = f" and has at most {config.sft.max_actions} actions (sft.max_actions)" if config.sft.max_actions else ""
            raise ExperimentFailed(f"sft.exclude_split: no task of {ref} is outside {config.sft.exclude_split}{limit}")
        progress = partial(self._progress, "demonstrations")
        data = await collect(config, self._clients.store, demonstrations(config, given), self.state, progress)
        engine = await self._sft_engine()
        progress = partial(self._progress, "sft steps")
        await SftLoop(config, engine, data, self.state, self._checkpoints, self.recorder, self._compute, progress).run()

    async def _sft_engine(self) -> Engine:
        sft, actor = self._config.sft, self._config.actor
        optimizer = sft_optimizer(sft, actor.optimizer)
        threads = self._config.services.trainer.warm_start_threads

        def work() -> Engine:
            set_threads(threads)
            engine = self._open(initial_model_dir(self._config), actor, optimizer, sft.steps)
            if self.state.engine:
                self._checkpoints.restore_engine(engine, self.state.engine)
            return engine

        return await self._compute.run(work)

    async def _publish_initial(self) -> None:
        engine = await self._sft_engine()
        await self._publisher.publish(engine, 0)
        self.state.engine = ""

    async def _evaluate(self, name: str) -> None:
        sets = [await self._tasks(ref) for ref in self._config.valid_dataset.shares()]
        # While the last episodes of the pass are awaited, the runner may begin with those of the first PPO step: the weights are the same.
        feeder = await self._feeder()
        between = partial(feeder.feed, self.state.step, 0)
        outcome = await evaluate(self._config, self._clients.store, sets, name, self.state, between, partial(self._progress, "episodes"))
        self.state.evaluations[name] = outcome
        for dataset, score in outcome.datasets.items():
            log.info("evaluation %s RL on %s: reward %s, greedy %s, floor %s", name, dataset, score.reward, score.greedy, score.floor)
        await self.recorder.write(Report(step=self.state.step, phase=f"eval_{name}", values=eval_metrics(outcome)))

    async def _rl(self) -> None:
        engine = await self._rl_engine()
        await RlLoop(self._parts(), engine, await self._feeder(), self.state, self._show).run()

    async def _rl_engine(self) -> Engine:
        actor = self._config.actor
        total = self._config.total_train_steps * actor.ppo_n_minibatches
        threads = self._config.services.trainer.threads

        def work() -> Engine:
            set_threads(threads)
            folder = initial_model_dir(self._config) if self.state.engine else self._publisher.folder(0)
            engine = self._open(folder, actor, actor.optimizer, total)
            if self.state.engine:
                self._checkpoints.restore_engine(engine, self.state.engine)
            return engine

        return await self._compute.run(work)

    async def _finish(self) -> None:
        unused = await drop_unused(self._parts(), self.state, UNUSED_TIMEOUT_S)
        log.info("%d episodes were rolled out and not needed", unused)
        self.state.finished_at = time.time()
        content = results(self._config, self.state, await self._clients.store.stats(), self.recorder.lines(Phase.RL))
        write_atomic(results_file(self._config), orjson.dumps(content, option=orjson.OPT_INDENT_2))
        log.info("results are in %s", results_file(self._config))

    # Helpers

    def _parts(self) -> RlParts:
        return RlParts(self._config, self._clients.store, self._publisher, self._checkpoints, self.recorder, self._compute)

    async def _feeder(self) -> Feeder:
        shares = self._config.train_dataset.shares()
        mix = TaskMix([await self._tasks(ref) for ref in shares], shares, self._config.seed)
        return Feeder(self._config, self._clients.store, mix, self.state)

    async def _tasks(self, ref: DatasetRef) -> TaskSet:
        given = await self._clients.runner.tasks(ref, solo=self._config.econfig.solo_mode)
        admit_tasks(self.state, given)
        return given

    async def _progress(self, what: str, done: int, total: int) -> None:
        self.view.detail = f"{what} {done} of {total}"
        await self._clients.store.put_document("experiment", self.describe())

    async def _show(self) -> None:
        self.view = View(phase=self.state.phase)
        await self._clients.store.put_document("experiment", self.describe())

    async def _fail(self, reason: str) -> None:
        log.error("the experiment failed: %s", reason)
        self.view = View(phase=move(self.state.phase, Phase.FAILED), detail=reason)
        try:
            await self._clients.store.put_document("experiment", self.describe())
        except RemoteError as error:
            log.error("the store did not hear of it: %s", error)

    def describe(self) -> dict[str, Any]:
        """The ``experiment`` document: phase, progress, versions, the last line of metrics, the evaluations so far."""
        state, last = self.state, self.recorder.last
        return {
            "experiment_name": self._config.experiment_name,
            "trial_name": self._config.trial_name,
            "phase": self.view.phase,
            "step": state.step,
            "total_steps": self._config.total_train_steps,
            "sft_step": state.sft_step,
            "sft_steps": self._config.sft.steps if self._config.sft.enabled else 0,
            "policy_version": -1 if state.phase in BEFORE_VERSION_0 else state.step,
            "detail": self.view.detail,
            "started_at": state.started_at,
            "finished_at": state.finished_at,
            "evaluations": {name: scores(outcome) for name, outcome in state.evaluations.items()},
            "last": {"phase": last.phase, "step": last.step, "values": last.values} if last else None,
            "results": str(results_file(self._config)) if self.view.phase is Phase.DONE else None,
        }


def passing(error: BaseException) -> bool:
    """Whether every part of a failure is one that may pass: a service that was away."""
    if isinstance(error, BaseExceptionGroup):
        return all(passing(part) for part in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    return isinstance(error, RemoteError) and error.retryable
