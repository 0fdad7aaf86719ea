"""Owns writing files so that a reader, or a start after a kill -9, sees the old content or the new one and never a part of it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def fsync(path: Path) -> None:
    """Forces a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the file ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    fsync(partial)
    os.replace(partial, path)
    fsync(path.parent)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes ``folder`` in one step from what ``fill`` writes into an empty one. A folder that is there already is complete and stays."""
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    for file in partial.iterdir():
        fsync(file)
    fsync(partial)
    os.rename(partial, folder)
    fsync(folder.parent)
