"""Owns session keys: ``fd-<session id>.<mac>``, where the mac is an HMAC of the id.

Derived, not stored, so that any proxy instance of the trial can check a key, also after a crash. Refuses keys it did not sign. Keys that a
client chose (``/rl/start_session``) are not signed: the store binds their digest to a session, and `access` looks it up.
"""

import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from services.common.config import ExperimentConfig
from services.common.config.paths import trial_dir
from services.common.errors import Unauthorized

PREFIX = "fd-"
MACS_KEPT = 4096


def is_derived(key: str) -> bool:
    """Whether a key claims to be one of ours."""
    return key.startswith(PREFIX)


def digest_of(key: str) -> str:
    """What the store is told of a key that a client chose: it can be recognised and not used."""
    return hashlib.sha256(key.encode()).hexdigest()


class SessionKeys:
    """Issues and checks session keys with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        # Every call of a session shows its key.
        self._mac = lru_cache(MACS_KEPT)(self._new_mac)

    def issue(self, session_id: str) -> str:
        """The key of a session; the same id always has the same key."""
        return f"{PREFIX}{session_id}.{self._mac(session_id)}"

    def session_of(self, key: str) -> str:
        """The session a key belongs to. Raises `Unauthorized` for no key or one that is not ours."""
        if not key:
            raise Unauthorized("this route needs the session key as a bearer token", code="missing_api_key")
        session_id, _, mac = key.removeprefix(PREFIX).rpartition(".")
        if not is_derived(key) or not hmac.compare_digest(mac.encode(), self._mac(session_id).encode()):
            raise Unauthorized("the session key is not valid; POST /v1/sessions hands one out", code="invalid_api_key")
        return session_id

    def _new_mac(self, session_id: str) -> str:
        return hmac.digest(self._secret, session_id.encode(), "sha256").hex()[:32]


def trial_secret(config: ExperimentConfig, admin_key: str) -> bytes:
    """The admin key where one is set, else a random secret kept in the trial's folder (made once, readable by its owner only)."""
    if admin_key:
        return admin_key.encode()
    file = trial_dir(config) / "proxy_secret"
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    if not file.exists():
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        _link_unless_exists(draft, file)
    return file.read_text().strip().encode()


def _link_unless_exists(draft: Path, file: Path) -> None:
    """Publishes a finished draft atomically; where another instance was first, its secret stands."""
    try:
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
