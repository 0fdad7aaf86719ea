"""Owns small files of a trial that must never be seen half written."""

import json
import os
from pathlib import Path
from typing import Any, cast


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replaces ``path`` by a file with ``text``: written beside it, synced, renamed. A crash leaves the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`write_atomically` of an indented JSON object."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, {} where there is no such file. Raises ValueError for anything else."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return cast("dict[str, Any]", content)
