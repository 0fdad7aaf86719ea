"""Owns what a trainer that was killed needs to go on: the experiment's state and the engine's checkpoints.

One file, ``state.json``, is replaced atomically and names the engine checkpoint that belongs to it: its rename is the moment at which a
step counts. An engine checkpoint that no state names never happened.
"""

import shutil
from pathlib import Path

import msgspec

from services.common.passk import Estimate
from services.common.wire.store import AckBatchBody
from services.trainer.engine import Engine, read_engine_state, write_engine_state
from services.trainer.files import write_atomic, write_folder
from services.trainer.phases import Phase

STATE_VERSION = 2
ENGINE_FILE = "engine.pt"


class PendingAck(msgspec.Struct, kw_only=True):
    """What a step did with one leased batch. It stays in the state until the next step, because the ack may be lost."""

    batch_id: str
    trained: list[str]
    dropped: dict[str, str]
    """episode id -> reason."""

    def body(self, step: int) -> AckBatchBody:
        """On the wire. Policy version n is the outcome of step n."""
        return AckBatchBody(trained=self.trained, dropped=self.dropped, step=step, policy_version=step)


class Report(msgspec.Struct, kw_only=True):
    """One line of metrics that has to be written even if the trainer dies before it could."""

    step: int
    phase: str
    values: dict[str, float]
    at: float = 0.0


class Score(msgspec.Struct, kw_only=True):
    """The figures of an evaluation pass, of one dataset or of all."""

    reward: Estimate
    """Mean over tasks of the mean reward of the task's sampled episodes."""
    greedy: Estimate | None
    pass_hat: dict[str, Estimate]
    """k -> pass^k of the sampled episodes."""
    floor: float | None
    """Mean reward of an agent that does nothing; None where it is not known."""
    n_tasks: int
    left_out: int
    """Tasks without any reward. They are in none of the means."""
    n_episodes: int
    """Sampled episodes with a reward."""
    failed: dict[str, int]
    """Who failed -> sampled episodes without a reward. They are in none of the means."""
    truncated: dict[str, int]
    """What cut them short -> sampled episodes. They are in the means, with the reward that tau2 gives them."""


class Evaluation(msgspec.Struct, kw_only=True):
    """The outcome of one evaluation pass."""

    version: int
    total: Score
    """Over all datasets, each with its share."""
    datasets: dict[str, Score]
    per_task: dict[str, dict[str, float]]
    """Dataset -> task -> mean reward of its sampled episodes."""
    wall_s: float


class State(msgspec.Struct, kw_only=True):
    """The experiment between two steps."""

    state_version: int = STATE_VERSION
    phase: Phase = Phase.SETUP
    step: int = 0
    """PPO steps done; also the policy version that they led to."""
    sft_step: int = 0
    next_group: int = 0
    """Counter of the sampler."""
    engine: str = ""
    """Name of the engine checkpoint; empty where the phase starts from a model folder."""
    acks: list[PendingAck] = []
    sources: dict[str, str] = {}
    """Domain -> the source (back end and version) of its episodes; see services/trainer/sources.py."""
    datasets: dict[str, str] = {}
    """Dataset -> digest of the tasks that the run began with."""
    settled: dict[str, str] = {}
    """Episodes used ("") or dropped (reason) whose batch the store took back before the ack: acked, not trained, when they come again."""
    report: Report | None = None
    evaluations: dict[str, Evaluation] = {}
    started_at: float = 0.0
    """Unix time of the experiment's first start."""
    finished_at: float = 0.0
    config_digest: str = ""

    def known(self) -> dict[str, str]:
        """Episodes that were used ("") or dropped (reason) and may come again: what is `settled`, and all of the last step.

        The last step is in it even after its ack, because a Redis that was killed may forget the acks of its last second.
        """
        last = {episode_id: "" for ack in self.acks for episode_id in ack.trained}
        return self.settled | last | {episode_id: reason for ack in self.acks for episode_id, reason in ack.dropped.items()}


class StateError(ValueError):
    """``state.json`` is there but cannot be used."""


class Checkpoints:
    """The folder with ``state.json`` and the engine checkpoints."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._state_file = folder / "state.json"

    def load(self) -> State | None:
        """The state of an earlier process, None at the first start. Raises `StateError`."""
        if not self._state_file.exists():
            return None
        try:
            state = msgspec.json.decode(self._state_file.read_bytes(), type=State)
        except msgspec.MsgspecError as error:
            raise StateError(f"{self._state_file}: {error}; start a new trial, or restore the file") from error
        if state.state_version > STATE_VERSION:
            raise StateError(f"{self._state_file}: written by a newer version of this service")
        return state

    def save_engine(self, engine: Engine, name: str) -> None:
        """Writes an engine checkpoint. It counts from the `commit` of a state that names it."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)

        def fill(partial: Path) -> None:
            write_engine_state(engine, partial / ENGINE_FILE)

        write_folder(folder, fill)

    def restore_engine(self, engine: Engine, name: str) -> None:
        """Inverse of `save_engine`. Raises `StateError` where the checkpoint is not there."""
        file = self._folder / name / ENGINE_FILE
        if not file.exists():
            raise StateError(f"{file}: the state names this checkpoint, but it is not there; restore it, or start a new trial")
        read_engine_state(engine, file)

    def commit(self, state: State) -> None:
        """Makes ``state`` the one that a later process resumes from; removes engine checkpoints beyond ``saver.keep``."""
        write_atomic(self._state_file, msgspec.json.format(msgspec.json.encode(state), indent=1))
        prune(self._folder, "engine-", self._keep, self._folder / state.engine)


def engine_checkpoint(sft_step: int, step: int) -> str:
    """Name of the engine checkpoint after so many steps."""
    return f"engine-{sft_step + step}"


def prune(folder: Path, prefix: str, keep: int, needed: Path) -> None:
    """Removes all but the last ``keep`` folders named ``prefix<number>``, and never the ``needed`` one."""
    found = [path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    for old in sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))[:-keep]:
        if old != needed:
            shutil.rmtree(old, ignore_errors=True)
