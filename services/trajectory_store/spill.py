"""Owns where bodies (messages, token trees) lie: in Redis, or, above a size, in files or an object store named by an fsspec URL.

What Redis holds of a spilled body is a reference: ``@`` and the path below the URL. A body is written before its reference and deleted
after it, so a crash leaves at most a file nobody names. Refuses to look inside a body.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from services.common.errors import ServiceError, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

MARK = b"@"
"""First byte of a reference; no body starts with it (they are msgpack arrays, JSON arrays or zstd frames)."""
DEADLINE_S = 30.0


class BodyLost(ServiceError):
    """A reference names a file that is not there."""

    status, code, title = 500, "body_lost", "Body lost"


class Bodies:
    """Bodies of one trial. Without a ``url`` everything stays in Redis."""

    def __init__(self, url: str | None, over_bytes: int, trial: str) -> None:
        self._over = over_bytes
        self._trial = trial
        self._folder = open_folder(url) if url else None

    async def keep(self, name: str, body: bytes) -> bytes:
        """What Redis is to hold: the body, or a reference after the body was written. Raises `Unavailable` where it cannot be written."""
        if self._folder is None or len(body) <= self._over:
            return body
        digest = hashlib.blake2b(body, digest_size=6).hexdigest()
        path = f"{self._trial}/{digest[:2]}/{name}.{digest}"
        await self._do("written", path, lambda folder: folder.write(path, body))
        return MARK + path.encode()

    async def load(self, held: bytes) -> bytes:
        """The body that Redis holds or names. Raises `Unavailable` where it cannot be read, `BodyLost` where it is gone."""
        if not held.startswith(MARK):
            return held
        path = held[1:].decode()
        return await self._do("read", path, lambda folder: folder.read(path))

    async def delete(self, references: Iterable[str]) -> None:
        """Removes spilled bodies. One that cannot be removed is logged and left."""
        for reference in references:
            path = reference.removeprefix(MARK.decode())
            try:
                await self._do("deleted", path, lambda folder, path=path: folder.delete(path))
            except ServiceError as error:
                log.warning("%s", error.detail)

    async def _do(self, verb: str, path: str, work: Callable[["Folder"], T]) -> T:
        if self._folder is None:
            raise Unavailable(
                f"the body {path} was spilled to files; set services.trajectory_store.spill_url to where they are", code="spill_unset"
            )
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await asyncio.to_thread(work, self._folder)
        except FileNotFoundError as error:
            raise BodyLost(f"the spilled body {path} is not there: {error}") from error
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"no answer within {DEADLINE_S:g} s"
            raise Unavailable(f"the body {path} cannot be {verb}: {reason}", code="spill_failed", retry_after_s=5) from error


def references_in(*held: bytes) -> list[str]:
    """The references among what Redis holds."""
    return [value.decode() for value in held if value.startswith(MARK)]


class Folder:
    """A folder of an object store, by fsspec."""

    def __init__(self, files: Any, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    def write(self, path: str, body: bytes) -> None:
        """Object stores write whole objects or nothing."""
        self._files.pipe_file(f"{self._root}/{path}", body)

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        return self._files.cat_file(f"{self._root}/{path}")

    def delete(self, path: str) -> None:
        """A file that is gone already is no error."""
        if self._files.exists(f"{self._root}/{path}"):
            self._files.rm_file(f"{self._root}/{path}")


class LocalFolder(Folder):
    """A folder of this machine (or of a shared file system): written aside, synced and renamed, so that no reader sees half a body."""

    def __init__(self, root: str) -> None:
        super().__init__(None, root)
        self._path = Path(root)

    def write(self, path: str, body: bytes) -> None:
        target = self._path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with aside.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    def read(self, path: str) -> bytes:
        return (self._path / path).read_bytes()

    def delete(self, path: str) -> None:
        (self._path / path).unlink(missing_ok=True)


def open_folder(url: str) -> Folder:
    """The folder an fsspec URL names. Raises ValueError where the URL or the package for it is missing."""
    if "://" not in url or url.startswith("file://"):
        return LocalFolder(url.removeprefix("file://"))
    # Here and not at the top: most stores spill to files or not at all, and need no fsspec.
    try:
        opened: Any = import_module("fsspec.core").url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"services.trajectory_store.spill_url: {url} cannot be opened: {error}") from error
    return Folder(opened[0], str(opened[1]))
