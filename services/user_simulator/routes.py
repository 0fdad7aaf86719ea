"""Owns the routes of the user simulator: a turn, and how many turns had which fault. Refuses turns beyond the configured bound."""

from typing import TYPE_CHECKING, cast

from fastapi import APIRouter, Request, Response

from services.common.errors import Busy
from services.common.wire.users import FaultsReply, UserTurnBody, UserTurnReply

if TYPE_CHECKING:
    from services.user_simulator.app import Simulator

router = APIRouter(prefix="/v1", tags=["users"])

RETRY_AFTER_S = 1.0


@router.post("/turns", response_model=UserTurnReply)
async def user_turn(request: Request, body: UserTurnBody) -> Response:
    """The simulated customer's next message, tool calls or stop, with a fault label. Nothing is kept between turns."""
    simulator: Simulator = request.app.state.simulator
    if simulator.inflight >= simulator.max_inflight:
        raise Busy(f"{simulator.inflight} turns are in flight, the limit of this user simulator", retry_after_s=RETRY_AFTER_S)
    simulator.inflight += 1
    try:
        reply = await simulator.turn(body)
    finally:
        simulator.inflight -= 1
    simulator.tally.turns[reply.fault] += 1
    # Written here: FastAPI would validate the reply a second time.
    return Response(reply.model_dump_json(), media_type="application/json")


@router.get("/faults")
async def faults(request: Request) -> FaultsReply:
    """How many turns of this process had which fault."""
    return cast("Simulator", request.app.state.simulator).tally.report()
