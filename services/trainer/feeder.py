"""Owns keeping the rollout queue filled: as many groups as the staleness rule allows, in the order of the mix."""

from services.common.config import ExperimentConfig
from services.common.wire.rollouts import Kind
from services.trainer.mixing import TaskMix
from services.trainer.sampler import task_ref, train_group
from services.trainer.staleness import Limits, capacity
from services.trainer.state import State
from services.trainer.store_client import StoreClient


class Feeder:
    """The trainer's side of the rollout queue. One caller at a time; the counter lives in the experiment's state."""

    def __init__(self, config: ExperimentConfig, store: StoreClient, tasks: TaskMix, state: State) -> None:
        self._config = config
        self._store = store
        self._tasks = tasks
        self._state = state
        self._limits = Limits.of(config)

    async def feed(self, published: int, in_hand: int) -> None:
        """Enqueues what may be enqueued at policy version ``published`` while the trainer has ``in_hand`` groups to train on."""
        ready, running = await self._store.groups(Kind.TRAIN)
        room = capacity(self._limits, version=published, running=running, waiting=ready + in_hand)
        while room > 0:
            number = self._state.next_group
            task = task_ref(self._config, *self._tasks.at(number))
            requests = train_group(self._config, task, number, published)
            self._state.next_group += 1
            # A group from before a crash is known to the store and in its counts already.
            room -= 1 if await self._store.enqueue(requests) else 0
