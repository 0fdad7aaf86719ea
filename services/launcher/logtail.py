"""Owns showing the end of a log file to a person: JSON lines become readable, everything else stays as it is."""

from pathlib import Path
from typing import Any

import orjson

TAIL_BYTES = 64 * 1024


def tail(log: Path, lines: int = 20) -> str:
    """The last ``lines`` lines of ``log``, "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    readable = "\n".join(_readable(line) for line in text.splitlines())
    return "\n".join(readable.splitlines()[-lines:])


def _readable(line: str) -> str:
    try:
        record: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    if not isinstance(record, dict) or "msg" not in record:
        return line
    text = f"{record.get('level', '')} {record.get('logger', '')}: {record['msg']}"  # pyright: ignore[reportUnknownMemberType]
    return f"{text}\n{record['exc']}" if "exc" in record else text
