"""Owns what the runner's routes share: readiness of the domains, and asking the store for a trajectory."""

from fastapi import Request

from services.agent_runner.store import StoreClient
from services.common.errors import RemoteError, Unavailable
from services.common.wire.rollouts import Trajectory


async def domains_loaded(request: Request) -> None:
    """Refuses while the config's own domain is still being loaded: whoever asks now would wait for seconds."""
    if not request.app.state.loaded.is_set():
        raise Unavailable("the domains are still being loaded", retry_after_s=2)


async def stored(request: Request, episode_id: str) -> Trajectory | None:
    """A trajectory from the store, None where it has none. Raises `Unavailable` where the store cannot be asked."""
    store: StoreClient = request.app.state.store
    try:
        return await store.get(episode_id)
    except RemoteError as error:
        raise Unavailable(f"the trajectory store cannot be asked: {error}", retry_after_s=2) from error
