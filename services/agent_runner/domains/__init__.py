"""tau2 domains behind one interface. Importing this is cheap; `open_backend` loads the package behind a domain on first use."""

import importlib
from functools import cache
from typing import Any

from services.agent_runner.domains.base import (
    STOP_TOOL,
    Action,
    DomainBackend,
    EnvCall,
    Requestor,
    Session,
    TaskSpec,
    ToolResult,
    UnknownDomain,
    UnknownSplit,
)

__all__ = [
    "DOMAINS",
    "STOP_TOOL",
    "Action",
    "DomainBackend",
    "EnvCall",
    "Requestor",
    "Session",
    "TaskSpec",
    "ToolResult",
    "UnknownDomain",
    "UnknownSplit",
    "open_backend",
]

DOMAINS: dict[str, str] = {"telecom": "services.agent_runner.domains.inspect_evals:TelecomBackend"}
"""Domain -> where its back end is; loaded by `open_backend`, because the packages behind take seconds to import."""


@cache
def open_backend(domain: str) -> DomainBackend:
    """The back end of a domain, one per process. Raises `UnknownDomain`."""
    if domain not in DOMAINS:
        raise UnknownDomain(f"domain: no back end for {domain!r}; known: {', '.join(DOMAINS)}")
    module, _, name = DOMAINS[domain].partition(":")
    loaded: Any = importlib.import_module(module)
    return getattr(loaded, name)()
