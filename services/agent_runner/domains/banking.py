"""Owns tau2's banking_knowledge domain: sessions on one database that agent and user share, and an agent that has to find its policy.

Tools and data are those of `inspect-evals`; how the agent gets at the bank's documents is a retrieval variant, chosen when the back end is
opened. Refuses solo mode, as upstream does.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from services.agent_runner.domains.banking_db import BankingData, TransactionalDB, forgetting
from services.agent_runner.domains.banking_retrieval import DEFAULT_VARIANT, Document, KnowledgeBase, search_tools, template, variant
from services.agent_runner.domains.banking_tools import USER_LOOK_UP, BankingCode
from services.agent_runner.domains.base import Requestor, Session, TaskSpec, ToolResult
from services.agent_runner.domains.data import override_data, read_bytes
from services.agent_runner.domains.initial import bring_about
from services.agent_runner.domains.inspect_evals import PortBackend
from services.agent_runner.domains.schemas import Schema, function_schema
from services.agent_runner.domains.sessions import Json, PortSession

FOLDER = "banking_knowledge"
UNTERMINATED = ("full_kb.md", "components/additional_instructions.md")
"""Prompts whose last line has no newline in upstream's data and one in the port's."""

Search = Mapping[str, Callable[..., Any]]


class BankingSession(PortSession):
    """One episode's bank. ``search`` are the retrieval variant's tools, ``logged_reads`` the look-ups that count for the end state."""

    def __init__(self, code: BankingCode, base: BankingData, search: Search, logged_reads: frozenset[str]) -> None:
        self._database = TransactionalDB(base)
        self._hidden = code.hidden
        self._search = search
        hosts: dict[Requestor, Any] = {
            "assistant": code.kits["assistant"].code(self._database, logged_reads),
            "user": code.kits["user"].code(self._database),
        }
        vars(hosts["assistant"]).update(search)
        super().__init__(code.kits, hosts, solo=False)

    def call(self, name: str, arguments: Json, requestor: Requestor = "assistant") -> ToolResult:
        """Runs one tool. Never raises."""
        # Upstream grades by making the calls of tools that write again. This one is not made again, so what it leaves must not stay.
        ungraded = name == USER_LOOK_UP and requestor == "user"
        with forgetting(self._database.records("user_discoverable_tool_calls")) if ungraded else nullcontext():
            return super().call(name, arguments, requestor)

    def _side(self, name: str, requestor: Requestor) -> Requestor:
        callable_here = name in self._hidden[requestor] or (requestor == "assistant" and name in self._search)
        return requestor if callable_here else super()._side(name, requestor)

    def changes_state(self, name: str) -> bool:
        """Whether a tool of either side has this name and can change the database."""
        return any(name in kit.writes for kit in self._kits.values())

    def merge(self, side: Requestor, data: Json) -> None:
        """Merges initialization data of either side into the one database. Raises ValueError."""
        self._database.merge(data)

    def fingerprint(self) -> tuple[str, str]:
        """tau2's hash of the database, for each side: records that nobody looked at are not read for it."""
        digest = self._database.sha256()
        return digest, digest

    def db_hashes(self) -> tuple[str | None, str | None]:
        """tau2's hash of the database, for each side."""
        return self.fingerprint()


class BankingBackend(PortBackend[BankingData]):
    """banking_knowledge in one retrieval variant. Raises `UnknownVariant`."""

    def __init__(self, domain: str, retrieval: str = DEFAULT_VARIANT) -> None:
        self._variant = variant(retrieval)
        self._code = banking_code()
        super().__init__(domain, FOLDER, self._code.kits["assistant"], self._code.kits["user"])
        # A search goes through 700 documents, and a policy may write a regular expression of any cost.
        self.inline = not (self._variant.search or self._variant.grep)

    def policy(self, task: TaskSpec, *, solo: bool) -> str:
        """The variant's prompt, with the task's documents where the variant quotes them. Raises ValueError for solo mode."""
        self._refuse(solo)
        if "{{required_documents}}" not in self._template:
            return self._template
        return self._template.replace("{{required_documents}}", self._knowledge.required(task.raw.get("required_documents") or ()))

    def tool_schemas(self, task: TaskSpec, *, solo: bool) -> list[Schema]:
        """The search tools, then the bank's 14. Raises ValueError for solo mode."""
        self._refuse(solo)
        return [*self._search_schemas, *super().tool_schemas(task, solo=False)]

    def new_session(self, task: TaskSpec, *, solo: bool) -> Session:
        """A fresh world in the task's initial state: a copy-on-write view, microseconds. Raises ValueError, also for solo mode."""
        self._refuse(solo)
        session = BankingSession(self._code, self._base(task), self._search, logged_reads(task))
        bring_about(session, task, solo=solo)
        return session

    def _refuse(self, solo: bool) -> None:
        if solo:
            raise ValueError("banking_knowledge domain does not support solo mode; set solo_mode=false")

    @cached_property
    def _knowledge(self) -> KnowledgeBase:
        files = self._listed("documents", "*.json")
        documents: list[Json] = [_read(file) for file in files] or _read(self._files.path("documents.json"))
        return KnowledgeBase(Document(document["id"], document["title"], document["content"]) for document in documents)

    @cached_property
    def _template(self) -> str:
        return template(self._variant.template, self._prompt, self._knowledge)

    @cached_property
    def _search(self) -> Search:
        return search_tools(self._variant, self._knowledge)

    @cached_property
    def _search_schemas(self) -> list[Schema]:
        return [function_schema(name, tool, tool.__doc__ or "") for name, tool in self._search.items()]

    def _prompt(self, name: str) -> str:
        text = self._files.path(f"prompts/{name}").read_text(encoding="utf-8")
        return text.removesuffix("\n") if name in UNTERMINATED else text

    def _read_base(self, snapshot: Path | None) -> BankingData:
        path = snapshot or self._files.path("db.json")
        try:
            return BankingData(_read(path))
        except ValueError as error:
            raise ValueError(f"{path}: not a database of this domain: {error}") from error

    def _load_tasks(self) -> tuple[Sequence[Json], Mapping[str, Sequence[str]]]:
        # Upstream has one file per task, the port one list of them, and both have a list that upstream does not read.
        files = self._listed("tasks", "task_*.json")
        tasks: list[Json] = [_read(file) for file in files] or _read(self._files.path("tasks.json"))
        return tasks, {"base": [task["id"] for task in tasks]}

    @staticmethod
    def _listed(folder: str, pattern: str) -> list[Path]:
        """Upstream's files of one kind in ``TAU2_DATA_DIR``, by name; none without it."""
        data = override_data(FOLDER)
        return [] if data is None else sorted((data / "domains" / FOLDER / folder).glob(pattern))


def _read(path: Path) -> Any:
    return json.loads(read_bytes(path))


@cache
def banking_code() -> BankingCode:
    """The port's banking classes, shared by all retrieval variants."""
    return BankingCode()


def logged_reads(task: TaskSpec) -> frozenset[str]:
    """The discoverable agent tools that the reference solution calls; of look-ups, only calls of these are put on record."""
    calls = (action.arguments.get("agent_tool_name") for action in task.actions if action.name == "call_discoverable_agent_tool")
    return frozenset(name for name in calls if name)


def open_banking(domain: str, retrieval: str = DEFAULT_VARIANT) -> BankingBackend:
    """The back end of banking_knowledge. Raises `UnknownVariant`, and ValueError for a wrong ``TAU2_DATA_DIR``."""
    return BankingBackend(domain, retrieval)
