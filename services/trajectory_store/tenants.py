"""Owns which trials this process serves: the config's own at ``/v1``, any other at ``/t/{experiment}/{trial}/v1``.

A trial exists from its first write on, for every store over the same Redis. Refuses more than ``max_trials``.
"""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from services.common.config import ExperimentConfig
from services.common.errors import BadRequest, Busy, NotFound
from services.trajectory_store.redis_store.database import Server
from services.trajectory_store.store import Store, build_store, redis_url, trial_of

TRIAL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,79}/[A-Za-z0-9][A-Za-z0-9._\-]{0,79}")
PREFIX = "/t/"


class Tenants:
    """The stores of this process, one a trial, over one Redis."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._config = config
        self.server = Server(redis_url(config))
        self.own = build_store(config, self.server)
        self._stores: dict[str, Store] = {self.own.trial: self.own}
        self._registered: set[str] = set()

    @property
    def stores(self) -> list[Store]:
        """All stores in use."""
        return list(self._stores.values())

    async def of(self, trial: str | None, *, writes: bool) -> Store:
        """The store of a trial. A write makes the trial exist; a read of one that does not is `NotFound`."""
        name = trial or self.own.trial
        if writes and name not in self._registered:
            self._check(name)
            await self.server.register(name)
            self._registered.add(name)
        elif name not in self._stores and name not in await self.server.trials():
            raise NotFound(f"trial {name} has nothing in this store", code="no_trial")
        return self._of(name)

    async def all(self, wanted: Iterable[str]) -> list[Store]:
        """The stores of named trials that exist; ``*`` is all. Their order turns with every call, so that ties hurt nobody for long."""
        names = list(dict.fromkeys(wanted))
        known = set(await self.server.trials())
        chosen = sorted(known) if "*" in names else [name for name in names if name in known]
        return [self._of(name) for name in chosen]

    async def discover(self) -> None:
        """Takes up trials that other stores over the same Redis registered. One that Redis lost is registered again by its next write."""
        self._registered.clear()
        for name in await self.server.trials():
            if len(self._stores) < self._config.services.trajectory_store.max_trials:
                self._of(name)

    def _of(self, name: str) -> Store:
        if name not in self._stores:
            self._check(name)
            self._stores[name] = build_store(self._config, self.server, name)
        return self._stores[name]

    def _check(self, name: str) -> None:
        limit = self._config.services.trajectory_store.max_trials
        if name != self.own.trial and TRIAL_PATTERN.fullmatch(name) is None:
            raise BadRequest(f"trial: {name!r} is not experiment/trial; use letters, digits and . _ -", param="trial")
        if name not in self._stores and len(self._stores) >= limit:
            raise Busy(f"this store serves {limit} trials already (services.trajectory_store.max_trials)", code="too_many_trials")


class TrialPath:
    """ASGI middleware: takes ``/t/{experiment}/{trial}`` off the path and notes it, so that a base URL alone names the trial."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(PREFIX):
            experiment, _, rest = scope["path"][len(PREFIX) :].partition("/")
            trial, _, path = rest.partition("/")
            state = {**scope.get("state", {}), "trial": f"{experiment}/{trial}"}
            scope = {**scope, "path": f"/{path}", "raw_path": f"/{path}".encode(), "state": state}
        await self._app(scope, receive, send)


def check_own_name(config: ExperimentConfig) -> None:
    """Raises ValueError where the config's own names cannot be part of a key or a URL."""
    if "/" in config.experiment_name or "{" in trial_of(config) or "}" in trial_of(config):
        raise ValueError(f"experiment_name, trial_name: {trial_of(config)!r} may not contain / {{ or }}")
