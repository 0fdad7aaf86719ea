"""Owns the one route of the user simulator."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from prometheus_client import Counter

from services.common.wire.users import UserTurnBody, UserTurnReply

router = APIRouter(prefix="/v1", tags=["users"])

Turn = Callable[[UserTurnBody], Awaitable[UserTurnReply]]


@router.post("/turns")
async def user_turn(request: Request, body: UserTurnBody) -> UserTurnReply:
    """The simulated customer's next message, tool calls or stop, with a fault label. Nothing is kept between turns."""
    turn: Turn = request.app.state.turn
    labels: Counter = request.app.state.turns_total
    reply = await turn(body)
    labels.labels(reply.fault.value).inc()
    return reply
