"""tau2 domains behind one interface. Importing this is cheap; `open_backend` loads the package behind a domain on first use."""

import gc
import importlib
import threading
from functools import cache
from typing import Any, Literal

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
    UnknownTask,
)
from services.agent_runner.domains.taskfile import InvalidTaskFile, is_task_file

__all__ = [
    "DOMAINS",
    "STOP_TOOL",
    "Action",
    "BackendName",
    "DomainBackend",
    "EnvCall",
    "InvalidTaskFile",
    "Requestor",
    "Retrieval",
    "Session",
    "TaskSpec",
    "ToolResult",
    "UnknownDomain",
    "UnknownSplit",
    "UnknownTask",
    "is_task_file",
    "open_backend",
    "warm_up",
]

BackendName = Literal["auto", "tau2", "inspect_evals"]
Retrieval = Literal["no_knowledge", "full_kb", "golden_retrieval", "grep_only", "bm25", "bm25_grep"]

FOLDER = "services.agent_runner.domains"
PORT = f"{FOLDER}.inspect_evals:open_port"
UPSTREAM = f"{FOLDER}.tau2:open_tau2"

DOMAINS: dict[str, str] = {
    "airline": PORT,
    "retail": PORT,
    "telecom": PORT,
    "telecom-workflow": PORT,
    "banking_knowledge": f"{FOLDER}.banking:open_banking",
    "mock": f"{FOLDER}.mock:open_mock",
}
"""Domain -> what opens it on packages from PyPI; resolved by `open_backend`, because what is behind takes seconds to import."""

_OPENING = threading.Lock()


def open_backend(domain: str, backend: BackendName = "auto", *, retrieval: Retrieval = "grep_only") -> DomainBackend:
    """The back end of a domain, one per process; ``auto`` is upstream tau2 where that is installed, else inspect-evals.

    ``retrieval`` is how a banking agent gets at the bank's documents; other domains have none.

    The first call for a domain imports a package (seconds). Raises `UnknownDomain`; ValueError or FileNotFoundError for missing data.
    """
    if domain not in DOMAINS:
        raise UnknownDomain(f"domain: no back end for {domain!r}; known: {', '.join(DOMAINS)}")
    upstream = backend == "tau2" or (backend == "auto" and _resolve(f"{FOLDER}.tau2:tau2_available")())
    with _OPENING:
        options = (retrieval,) if domain == "banking_knowledge" else ()
        return _open(UPSTREAM if upstream else DOMAINS[domain], domain, *options)


@cache
def _open(opener: str, *arguments: str) -> DomainBackend:
    return _resolve(opener)(*arguments)


def _resolve(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def warm_up(backend: DomainBackend, split: str) -> None:
    """Parses what a first episode of a split would otherwise wait for (up to a second); call it in a thread before serving."""
    task = backend.tasks(split)[0]
    backend.task(split, task.task_id)
    backend.tool_schemas(task, solo=False)
    backend.new_session(task, solo=False)
    # Databases are hundreds of thousands of objects that live as long as the process. Each full collection would walk them (0.2 s).
    gc.collect()
    gc.freeze()
