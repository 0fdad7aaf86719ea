"""Owns turning a Redis URL into a client: one server, TLS, Sentinel or Cluster. Refuses any URL it does not understand, by name.

- ``redis://[user:password@]host:port/db``, ``rediss://`` for TLS (``?ssl_ca_certs=FILE``), ``unix://path``
- ``redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`` (``?sentinel_password=…``); ``rediss+sentinel://`` for TLS
- ``redis+cluster://[user:password@]host:port``; ``rediss+cluster://`` for TLS

The keys of a trial share one hash tag, so every script and pipeline of the store stays on one node of a cluster.
"""

from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 256
RETRIES = 3
SENTINEL_PORT = 26379

Client = Any
"""`Redis` or `RedisCluster`: both run scripts, pipelines and plain commands, but share no type."""


class BadUrl(ValueError):
    """The URL names no Redis."""


def connect(url: str) -> Client:
    """A client that connects on first use and again after every failure. Raises `BadUrl`."""
    scheme = urlsplit(url).scheme
    try:
        if scheme in ("redis+sentinel", "rediss+sentinel"):
            return _sentinel(url)
        if scheme in ("redis+cluster", "rediss+cluster"):
            return RedisCluster.from_url(url.replace("+cluster", "", 1), retry=_retry(), **_timeouts())
        # A request waits for a free connection rather than being refused: what bounds the requests is in front of it.
        limits = {"max_connections": MAX_CONNECTIONS, "timeout": ANSWER_TIMEOUT_S}
        pool = BlockingConnectionPool.from_url(url, retry=_retry(), **limits, **_timeouts())
        return Redis.from_pool(pool)
    except (ValueError, TypeError) as error:
        raise BadUrl(f"redis_url: {without_secrets(url)} is not a Redis URL: {error}") from error


async def close(client: Client) -> None:
    """Closes all connections, those to the sentinels too."""
    await client.aclose()
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, SentinelConnectionPool):
        await pool.aclose()
        for sentinel in cast("Any", pool).sentinel_manager.sentinels:
            await sentinel.aclose()


def without_secrets(url: str) -> str:
    """The URL for logs: no user, no password, no query."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def _sentinel(url: str) -> Client:
    parts = urlsplit(url)
    credentials, _, addresses = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise BadUrl(f"redis_url: {without_secrets(url)} names no service; write redis+sentinel://host:port/service")
    options = dict(parse_qsl(parts.query))
    sentinel_options = {name.removeprefix("sentinel_"): options.pop(name) for name in list(options) if name.startswith("sentinel_")}
    tls: dict[str, Any] = {"ssl": True, **options} if parts.scheme == "rediss+sentinel" else {}
    if options and not tls:
        raise BadUrl(f"redis_url: {urlencode(options)} is not understood")
    sentinel = Sentinel([_address(item) for item in addresses.split(",")], sentinel_kwargs={**sentinel_options, **tls, **_timeouts()})
    return sentinel.master_for(
        service,
        username=unquote(user) or None,
        password=unquote(password) or None,
        db=int(db or 0),
        retry=_retry(),
        **tls,
        **_timeouts(),
    )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return (host, int(port)) if host else (text, SENTINEL_PORT)


def _timeouts() -> dict[str, Any]:
    return {"protocol": 2, "socket_timeout": ANSWER_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}


def _retry() -> Retry:
    # Only what fails at once is tried again: a server that does not answer would keep the caller for every attempt's deadline.
    return Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES, supported_errors=(RedisConnectionError,))
