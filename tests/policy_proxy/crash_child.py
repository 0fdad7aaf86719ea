"""A proxy's update of one policy server in a process of its own, to be killed with -9 in the middle of it.

``python crash_child.py URL METHOD``: brings the server at URL from version 0 to version 1, from disk or by broadcast.
"""

import asyncio
import sys

from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.pool import ServerPool
from services.policy_proxy.servers.sglang import Bucket
from services.policy_proxy.servers.watch import Watcher
from services.policy_proxy.weights.gate import Gate
from services.policy_proxy.weights.group import GroupSpec, WeightGroup
from services.policy_proxy.weights.steps import Broadcast, Plan
from services.policy_proxy.weights.updates import WeightUpdates


async def update(url: str, method: str) -> None:
    pool = ServerPool([url])
    group = WeightGroup(pool)
    updates = WeightUpdates(pool, Gate(), group)
    pool.commit(PolicyVersion(version=0, path="/weights/v0"))
    await Watcher(pool, 60.0).check(pool.servers[0])
    broadcast = None
    if method == "distributed":
        await group.form(GroupSpec("127.0.0.1", 1, 2), 30.0)
        broadcast = Broadcast("weight_update_group", [Bucket(["a"], ["float32"], [[1]])])
    await updates.update(Plan(PolicyVersion(version=1, path="/weights/v1"), 60.0, "retract", broadcast))
    await pool.close()


if __name__ == "__main__":
    asyncio.run(update(*sys.argv[1:]))
