"""Owns what banking needs beyond other domains on upstream's code: the retrieval variant, built once per process, and its two odd tools.

Documents are in the order of their files' names; upstream leaves it to the file system, so its longest policies and equal search results
differ between machines. Refuses retrieval variants that need services: `banking_retrieval.variant` says which.
"""

import copy
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from services.agent_runner.domains.banking_db import forgetting
from services.agent_runner.domains.banking_retrieval import variant
from services.agent_runner.domains.banking_tools import USER_LOOK_UP
from services.agent_runner.domains.base import Requestor, TaskSpec, ToolResult

Modules = Callable[[str], Any]
"""Imports a module of upstream's by its name inside the package."""
FOLDER = "domains.banking_knowledge"
_TIMING = re.compile(r"\[Timing: [^\]]*\]\Z")


class Retrieval:
    """One retrieval variant. Raises `UnknownVariant`."""

    def __init__(self, name: str, folder: Path, modules: Modules) -> None:
        chosen = variant(name)
        self.inline = not (chosen.search or chosen.grep)
        self._name = name
        self._folder = folder
        self._modules = modules

    def tools(self, database: Any, task: TaskSpec | None) -> Any:
        """The agent's toolkit on a database. Look-ups that the reference solution makes are part of the end state, others must not be."""
        actions = task.actions if task else ()
        logged = {action.arguments.get("agent_tool_name") for action in actions if action.name == "call_discoverable_agent_tool"}
        # The index behind the search tools is the same for all; everything that an episode writes to is set by the initializer.
        toolkit = copy.copy(self._toolkit)
        self._modules(f"{FOLDER}.tools").KnowledgeTools.__init__(toolkit, database)
        toolkit.set_read_log_allowlist(logged - {None})
        return toolkit

    def policy(self, task: TaskSpec) -> str:
        """The variant's prompt, with the task's documents where it quotes them."""
        named = SimpleNamespace(required_documents=task.raw.get("required_documents"))
        return self._upstream.build_policy(self._variant, self._knowledge, named)

    @property
    def _upstream(self) -> Any:
        return self._modules(f"{FOLDER}.retrieval")

    @cached_property
    def _variant(self) -> Any:
        return self._upstream.resolve_variant(self._name)

    @cached_property
    def _toolkit(self) -> Any:
        return self._upstream.build_tools(self._variant, None, self._knowledge)

    @cached_property
    def _knowledge(self) -> Any:
        models = self._modules(f"{FOLDER}.data_model")
        files = sorted((self._folder / "documents").glob("*.json"))
        documents = [models.Document(**json.loads(file.read_bytes())) for file in files]
        return models.KnowledgeBase(documents={document.id: document for document in documents})


def called(database: Any, name: str, requestor: Requestor, call: Callable[[], ToolResult]) -> ToolResult:
    """Makes a tool call of an episode in the bank, and makes it repeatable.

    Upstream prints how long a search took, which no replay could reproduce. And it grades by making the calls of tools that write again:
    one tool of the user's counts as reading but writes, so what it leaves is no part of the end state there.
    """
    ungraded = name == USER_LOOK_UP and requestor == "user"
    with forgetting(database.user_discoverable_tool_calls.data) if ungraded else nullcontext():
        result = call()
    if name != "KB_search":
        return result
    return ToolResult(_TIMING.sub("[Timing: retrieval=0ms, total=0ms]", result.content), result.error)
