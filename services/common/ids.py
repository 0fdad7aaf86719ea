"""Owns the identifiers that travel between services. Refuses to look inside them: an id is opaque to everyone but its maker."""

import re
import secrets

ID_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:\-]{0,159}$")
"""Ids end up in URLs, Redis keys and file names, so only characters that are safe in all three."""


def new_id(prefix: str) -> str:
    """A fresh random id such as ``call-1f0c…``."""
    return f"{prefix}-{secrets.token_hex(16)}"


def session_id(episode_id: str, attempt: int) -> str:
    """The proxy session of one attempt at an episode. A new attempt never writes into the session of the one before."""
    return f"{episode_id}.a{attempt}"


def is_valid_id(value: str) -> bool:
    """Whether ``value`` may be used as an id on the wire."""
    return ID_PATTERN.fullmatch(value) is not None
