"""Owns reading the part of the configuration and the environment that says how policy servers are reached."""

import os

from services.common.app import admin_headers
from services.common.config.services import ProxyService
from services.policy_proxy.servers.pool import PoolSettings
from services.policy_proxy.servers.sglang import ServerKeys

SERVER_KEY_ENV = "FRONTDESK_POLICY_SERVER_KEY"
"""SGLang's ``--api-key``, where its servers have one. The admin key of this service is their ``--admin-api-key``."""


def pool_settings(section: ProxyService) -> PoolSettings:
    """How all servers of the pool are used."""
    key = os.environ.get(SERVER_KEY_ENV, "")
    data = {"Authorization": f"Bearer {key}"} if key else {}
    return PoolSettings(
        keys=ServerKeys(data, admin_headers()),
        api=section.server_api,
        router_url=section.router_url,
        ceiling=section.max_inflight_per_server,
        max_waiting=section.max_waiting_calls,
        silence_s=section.stall_s,
    )
