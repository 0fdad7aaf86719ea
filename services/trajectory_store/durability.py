"""Owns the judgement whether a Redis keeps what it acknowledged: pure functions over what Redis says about itself.

A risk does not stop the store: somebody who tries it out on a laptop may want no disk. It is logged, named in ``/readyz``, and a metric.
"""

from collections.abc import Mapping
from typing import Any

OLDEST = (6, 2)
"""Redis versions below have no ``ZRANGESTORE``-era semantics the scripts rely on (effects replication, exclusive stream ranges)."""

EVERYSEC_NOTE = "with appendfsync everysec a power cut can lose the last second, and where the disk is slow any death the last two"
"""Redis puts off writing its log, not only syncing it, while the last fsync is under way (aof.c, flushAppendOnlyFile)."""


def version_of(info: Mapping[str, Any]) -> tuple[int, int]:
    """(major, minor) of the server; Valkey answers with the Redis version it stands for."""
    major, minor, *_ = [*str(info.get("redis_version", "0.0")).split("."), "0"]
    return int(major), int(minor)


def refusal(info: Mapping[str, Any]) -> str:
    """Why this Redis cannot be used at all, "" where it can."""
    if version_of(info) < OLDEST:
        return f"redis {info.get('redis_version')} is too old; the store needs {OLDEST[0]}.{OLDEST[1]} or Valkey"
    if info.get("loading"):
        return "redis is loading its data"
    if info.get("role") == "slave":
        return "this redis is a replica and takes no writes; name the primary, or use a redis+sentinel:// URL"
    return ""


def risks(info: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, str]:
    """Name -> how this Redis could lose acknowledged data and what to do. ``settings`` is CONFIG GET, empty where that is forbidden."""
    found: dict[str, str] = {}
    if not info.get("aof_enabled"):
        found["appendonly"] = "appendonly is off: what was written since the last snapshot is lost in a crash; set appendonly yes"
    elif settings.get("appendfsync") == "no":
        found["appendfsync"] = "appendfsync is no: up to 30 s are lost in a power cut; set everysec or always"
    policy = settings.get("maxmemory-policy") or info.get("maxmemory_policy") or "noeviction"
    if policy != "noeviction":
        found["eviction"] = f"maxmemory-policy is {policy}: a full Redis would throw trajectories away; set noeviction"
    if info.get("aof_last_write_status", "ok") != "ok":
        found["aof_write"] = "the last write of the append-only file failed; look at the disk of Redis"
    return found
