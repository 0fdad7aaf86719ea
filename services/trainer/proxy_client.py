"""Owns asking the policy proxy to put published weights on all policy servers."""

import logging
from pathlib import Path
from typing import Any, Self

from services.common.app import admin_headers
from services.common.errors import RemoteError
from services.common.http import ServiceClient
from services.trainer.checks import ExperimentFailed

log = logging.getLogger(__name__)

RETRY_S = 300.0
UPDATE_TIMEOUT_S = 180.0
"""Covers the pause, the load on every server and the resume."""


class ProxyClient:
    """A client of the proxy's weight updates."""

    def __init__(self, base_url: str, *, retry_s: float = RETRY_S) -> None:
        self._http = ServiceClient("policy_proxy", base_url, timeout_s=UPDATE_TIMEOUT_S, retry_s=retry_s, headers=admin_headers())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def update_weights(self, version: int, path: Path, deadline_s: float) -> int:
        """Puts ``path`` on the servers as ``version``; returns on how many. Idempotent.

        A server that did not take it is the proxy's to keep out of rotation until it has; it is logged here. Raises `ExperimentFailed`
        where the servers have a newer version than the one that is published, `RemoteError` where the proxy stays away.
        """
        body: dict[str, Any] = {"version": version, "path": str(path), "deadline_s": deadline_s}
        try:
            reply = await self._http.post("/v1/admin/weights", body)
        except RemoteError as error:
            if error.status == 409:
                raise ExperimentFailed(
                    f"the policy proxy refuses version {version}: {error.detail}; restart it, or use a new trial"
                ) from error
            raise
        servers = reply["servers"]
        for server in servers:
            if not server["ok"]:
                log.warning("policy server %s is not at version %d: %s", server["url"], version, server["detail"])
        return sum(1 for server in servers if server["ok"])
