"""Owns the publication of weights: a complete Hugging Face folder a version, the store's version log, the policy servers."""

import logging
import shutil
import time
from pathlib import Path

from services.common.config import ExperimentConfig
from services.common.config.paths import initial_model_dir, weights_dir
from services.common.errors import RemoteError
from services.common.wire.store import PolicyVersion
from services.trainer.checks import ExperimentFailed
from services.trainer.engine import ComputeThread, Engine
from services.trainer.files import write_folder
from services.trainer.proxy_client import ProxyClient
from services.trainer.state import prune
from services.trainer.store_client import StoreClient

log = logging.getLogger(__name__)

BESIDE_WEIGHTS = ("tokenizer*", "*.jinja", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
"""What a servable folder has beside config and weights. Training changes none of it."""


class Publisher:
    """Publishes versions of one trial. Every part is idempotent, so publishing again after a crash is safe."""

    def __init__(self, config: ExperimentConfig, store: StoreClient, proxy: ProxyClient, compute: ComputeThread) -> None:
        self._config = config
        self._store = store
        self._proxy = proxy
        self._compute = compute

    def folder(self, version: int) -> Path:
        """Where the weights of a version lie."""
        return weights_dir(self._config) / f"v{version}"

    async def publish(self, engine: Engine, version: int) -> None:
        """Makes the engine's weights policy version ``version`` everywhere.

        Raises `ExperimentFailed` where that version was published from another place before.
        """
        folder = self.folder(version)
        await self._compute.run(lambda: write_folder(folder, lambda partial: self._fill(engine, partial)))
        try:
            await self._store.publish_version(PolicyVersion(version=version, path=str(folder), step=version, published_at=time.time()))
        except RemoteError as error:
            if error.status == 409:
                raise ExperimentFailed(f"policy version {version}: {error.detail}; use a new trial_name") from error
            raise
        servers = await self._proxy.update_weights(version, folder, self._config.services.policy_proxy.pause_deadline_s)
        log.info("policy version %d is on %d servers", version, servers)
        prune(weights_dir(self._config), "v", max(2, self._config.saver.keep), folder)

    def _fill(self, engine: Engine, folder: Path) -> None:
        engine.save_hf(folder)
        initial = initial_model_dir(self._config)
        for pattern in BESIDE_WEIGHTS:
            for file in initial.glob(pattern):
                shutil.copyfile(file, folder / file.name)
