"""Owns tau2's mock domain: a handful of tasks on a task list, small enough to try out every part of the protocol.

Tasks, policies and the agent's database come with `inspect-evals`, the tools are ours (`mock_tools`). The package has no user's database,
which is empty then. Refuses nothing: mock can be played solo.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.agent_runner.domains.base import Requestor, Session, TaskSpec
from services.agent_runner.domains.cow import canonical, isolated, merged
from services.agent_runner.domains.data import read_database
from services.agent_runner.domains.initial import bring_about
from services.agent_runner.domains.inspect_evals import PortBackend
from services.agent_runner.domains.mock_tools import MockDB, MockTools, MockUserDB, MockUserTools, toolkits
from services.agent_runner.domains.port import Toolkit
from services.agent_runner.domains.sessions import Json, PortSession


@dataclass(frozen=True, slots=True)
class MockBase:
    """The two databases as they are read. Never written to after this."""

    agent: MockDB
    user: MockUserDB


class MockSession(PortSession):
    """One episode's task list and inbox."""

    def __init__(self, kits: Mapping[Requestor, Toolkit], base: MockBase, *, solo: bool) -> None:
        # Annotated loosely because of `merge`: either side may come to hold the other's database.
        self._agent: Any = MockTools(isolated(base.agent))
        self._user: Any = MockUserTools(isolated(base.user))
        super().__init__(kits, {"assistant": self._agent, "user": self._user}, solo=solo)

    def merge(self, side: Requestor, data: Json) -> None:
        """Merges initialization data into the database of its side. Raises ValueError (pydantic's).

        Both sides hold that one database then. It is a slip of upstream's that makes the other side's tools fail, but it is part of the
        end states that upstream compares.
        """
        database: Any = self._hosts[side].db
        self._agent.db = self._user.db = database.model_validate(merged(database.model_dump(), data))

    def fingerprint(self) -> tuple[str, str]:
        """sha256 of the agent's and of the user's database."""
        agent, user = (hashlib.sha256(canonical(host.db).encode()).hexdigest() for host in (self._agent, self._user))
        return agent, user

    def db_hashes(self) -> tuple[str | None, str | None]:
        """tau2's hashes of both databases."""
        return self.fingerprint()


class MockBackend(PortBackend[MockBase]):
    """mock."""

    def __init__(self, domain: str) -> None:
        self._kits = toolkits()
        super().__init__(domain, domain, self._kits["assistant"], self._kits["user"])

    def policy(self, task: TaskSpec, *, solo: bool) -> str:
        """The policy file."""
        return self._files.text("policy_solo.md" if solo else "policy.md")

    def new_session(self, task: TaskSpec, *, solo: bool) -> Session:
        """A fresh world in the task's initial state. Raises ValueError, or what an initialization action raises."""
        session = MockSession(self._kits, self._base(task), solo=solo)
        bring_about(session, task, solo=solo)
        return session

    def _read_base(self, snapshot: Path | None) -> MockBase:
        agent = read_database(snapshot or self._files.path("db.json"), MockDB)
        return MockBase(agent, self._user_database())

    def _user_database(self) -> MockUserDB:
        try:
            path = self._files.path("user_db.json")
        except FileNotFoundError:
            return MockUserDB()
        return read_database(path, MockUserDB)


def open_mock(domain: str) -> MockBackend:
    """The back end of mock. Raises ValueError for a wrong ``TAU2_DATA_DIR``."""
    return MockBackend(domain)
