"""Owns the question "is this port free, and if not, who has it". Reads /proc, needs no package and no privilege.

Refuses to free a port: it names the holder and the config key, and the person decides.
"""

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTEN = "0A"
"""The socket state column of /proc/net/tcp (TCP_LISTEN in <net/tcp_states.h>)."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that listens on a port."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port that a process of the launch is going to listen on, and the config key that sets it."""

    name: str
    host: str
    port: int
    key: str


def listening_inodes(table: str, port: int) -> frozenset[str]:
    """Socket inodes that listen on ``port`` in the text of /proc/net/tcp or tcp6. Lines of any other shape are skipped."""
    found: set[str] = set()
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 10 or columns[3] != LISTEN:
            continue
        _, _, local_port = columns[1].rpartition(":")
        try:
            if int(local_port, 16) == port:
                found.add(columns[9])
        except ValueError:
            continue
    return frozenset(found)


def holders(port: int) -> list[Holder]:
    """Processes that listen on ``port``. Empty where /proc does not tell: another user's process, or no /proc at all."""
    inodes: set[str] = set()
    for name in ("tcp", "tcp6"):
        try:
            inodes |= listening_inodes((PROC / "net" / name).read_text(), port)
        except OSError:
            continue
    links = {f"socket:[{inode}]" for inode in inodes}
    return [Holder(pid, _command(pid)) for pid in _pids() if links and _has_descriptor(pid, links)]


def is_busy(host: str, port: int) -> bool:
    """Whether a server could not listen on ``host:port`` now. Raises OSError where the host is not an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return True
            raise
    return False


def problems(wanted: list[Wanted]) -> list[str]:
    """One line for each port that cannot be used: which, by whom it is held, and how to choose another."""
    lines = [_busy(item) for item in wanted if is_busy(item.host, item.port)]
    return lines + [_shared(names, port) for port, names in _twice(wanted).items()]


def _busy(item: Wanted) -> str:
    by = ", ".join(f"pid {holder.pid} ({holder.command})" for holder in holders(item.port))
    whom = by or "a process of another user, or one that this user may not look into"
    return f"port {item.port} for {item.name} is in use by {whom}; stop it, or choose another port with {item.key}=PORT"


def _twice(wanted: list[Wanted]) -> Mapping[int, list[Wanted]]:
    by_port: dict[int, list[Wanted]] = {}
    for item in wanted:
        by_port.setdefault(item.port, []).append(item)
    return {port: items for port, items in by_port.items() if len(items) > 1}


def _shared(items: list[Wanted], port: int) -> str:
    names = " and ".join(item.name for item in items)
    return f"port {port} is asked for by {names}; choose another port with {items[-1].key}=PORT"


def _pids() -> list[int]:
    try:
        return sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    except OSError:
        return []


def _has_descriptor(pid: int, links: set[str]) -> bool:
    try:
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            if os.readlink(descriptor) in links:
                return True
    except OSError:  # it ended meanwhile, or belongs to someone else
        return False
    return False


def _command(pid: int) -> str:
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return "?"
    return " ".join(part for part in raw.decode(errors="replace").split("\0") if part) or "?"
