"""kill -9 of a proxy in each phase of an update, while another proxy uses the same server: that one takes over."""

import asyncio
import os
import sys
from pathlib import Path

from fake_sglang import FakeSglang
from server_rig import Rig, server_rig, until

from services.common.wire.store import PolicyVersion
from services.policy_proxy.servers.sglang import Bucket
from services.policy_proxy.weights.group import GroupSpec
from services.policy_proxy.weights.steps import Broadcast

PHASES = {
    "pausing": ("disk", "/pause_generation"),
    "updating": ("disk", "/update_weights_from_disk"),
    "resuming": ("disk", "/continue_generation"),
    "labelled for the broadcast": ("distributed", "/begin_weight_update"),
    "receiving": ("distributed", "/update_weights_from_distributed"),
    "received": ("distributed", "/end_weight_update"),
}
"""Phase -> how the weights come, and the request during which the proxy is killed."""
BUCKETS = [Bucket(["a"], ["float32"], [[1]])]
REPO = Path(__file__).parents[2]
CHILD_S = 100.0
"""For six processes to start on a busy machine."""


async def killed_at(engine: FakeSglang, url: str, method: str, route: str) -> None:
    """Runs an update in a process of its own until it has sent its request to ``route``, and kills it before the answer."""
    # Both are also called before the phase that is meant: before a session begins, and at the first look at a server.
    late = {"/end_weight_update": lambda: engine.session_open, "/continue_generation": lambda: engine.version == "1"}
    engine.stall_if = late.get(route, lambda: True)
    engine.stall_control = route
    command = [sys.executable, str(Path(__file__).with_name("crash_child.py")), url, method]
    child = await asyncio.create_subprocess_exec(*command, env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"})
    try:
        await until(lambda: engine.stalled == route, f"the request to {route}", CHILD_S)
    finally:
        child.kill()
        await child.wait()
        engine.stall_control = ""


async def crash(phase: str) -> None:
    method, route = PHASES[phase]
    async with server_rig(says=400, pause_deadline_s=CHILD_S, timeout_s=CHILD_S) as rig:
        (engine,) = rig.engines
        engine.token_delay_s = 0.01
        call = rig.start("before")
        await until(lambda: len(rig.heard) > 2, "a call under way")
        await killed_at(engine, rig.threads[0].url, method, route)
        engine.token_delay_s = 0.0
        rig.skip_s = 2 * CHILD_S
        await taken_over(rig, engine)
        rig.assert_true(await call, "before")
        if method == "distributed":
            # Whatever session the dead proxy has left open there.
            await rig.group.form(GroupSpec("127.0.0.1", 1, 2), CHILD_S)
            assert await rig.update(2, deadline_s=CHILD_S, broadcast=Broadcast("weight_update_group", BUCKETS)) == [True]
            assert not engine.session_open


async def taken_over(rig: Rig, engine: FakeSglang) -> None:
    """What the follower of versions does once the trainer's publication is seen; calls go on, nobody is left paused."""
    newest = PolicyVersion(version=1, path="/weights/v1")
    await rig.updates.follow(newest, 10.0)
    await rig.all_up()
    assert not engine.paused and rig.pool.policy_version == 1
    done = await rig.start("after", stream=False)
    rig.assert_true(done, "after", streamed=False)
    assert done.versions == [(1, len(done.ids))]


async def test_another_proxy_takes_over_in_every_phase() -> None:
    await asyncio.gather(*(crash(phase) for phase in PHASES))
