"""Wire schemas of sessions: rewards given to their calls, and sessions that are opened once under a chosen name and key.

Rewards of a session are notes of its agent. What is trained on in an experiment is the reward of the trajectory.
"""

from typing import Annotated

from pydantic import Field

from services.common.wire.rollouts import Id, Wire

RewardName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\-]{0,63}$")]
KeyDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""sha256 of a session key, in hex."""


class Reward(Wire):
    """PUT /v1/sessions/{session_id}/rewards. The same call and name again takes the place of the one before."""

    call_id: Id | None = None
    """The call that earned it; None is the whole session."""
    name: RewardName = "reward"
    """Several rewards of one call are told apart by it."""
    value: float | None = Field(allow_inf_nan=False)
    """None: it was asked for and nobody could tell, or it is taken back. It counts like no reward."""
    source: str = Field(default="", max_length=200)
    """Who gave it, for people."""
    whole: bool = False
    """It was earned by everything up to ``call_id``, not by that call alone."""


class RewardsReply(Wire):
    """GET /v1/sessions/{session_id}/rewards."""

    items: list[Reward]


class OpenSessionBody(Wire):
    """PUT /v1/sessions/{session_id}. Empty: opens the session, or finds it."""

    opener: Id | None = None
    """Where it is given the session must be new, unless the same opener made it (a repeat after a lost answer)."""
    key_digest: KeyDigest | None = None
    """A key that from now on names this session; refused while it names another one that is not sealed."""
    grants: int | None = Field(default=None, ge=0)
    """Where it is given a new session takes one grant; so many there are before the first one is granted or taken."""


class IntentsReply(Wire):
    """GET /v1/sessions/{session_id}/intents: calls begun and not recorded."""

    items: dict[str, str]
    """Call id -> digest of the request body."""


class SessionKeyReply(Wire):
    """GET /v1/session_keys/{digest}."""

    session_id: Id


class GrantBody(Wire):
    """POST /v1/grants: lets one more session begin."""

    initial: int = Field(default=0, ge=0)
    """Grants there are before the first one is granted or taken."""


class GrantReply(Wire):
    capacity: int
    """Sessions that may begin."""
