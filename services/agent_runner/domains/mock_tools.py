"""Owns the toolkit of tau2's mock domain: a task list for the agent, an inbox of notifications for the user.

No package on PyPI has this code, so it is ours. What the tools are called, what their schemas say, what they return and how they fail is
upstream's, because agents see all of it. Refuses nothing that upstream accepts: a status outside the enum is stored as it came.
"""

import json
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from services.agent_runner.domains.base import Requestor
from services.agent_runner.domains.port import Toolkit
from services.agent_runner.domains.schemas import function_schema

TaskStatus = Literal["pending", "completed"]
NotificationStatus = Literal["unread", "read"]

MODELS = ("create_task", "get_users", "update_task_status", "check_notifications")
"""Tools that return records."""


class Task(BaseModel):
    """An entry of the task list."""

    task_id: str
    title: str
    description: str | None = None
    status: TaskStatus


class User(BaseModel):
    """Somebody with tasks."""

    user_id: str
    name: str
    tasks: list[str]


class MockDB(BaseModel):
    """The agent's database."""

    model_config = ConfigDict(extra="forbid")

    tasks: dict[str, Task]
    users: dict[str, User]


class Notification(BaseModel):
    """A message in the user's inbox."""

    model_config = ConfigDict(extra="forbid")

    notification_id: str
    message: str
    status: NotificationStatus = "unread"
    task_id: str | None = None


class MockUserDB(BaseModel):
    """The user's database; empty where the data has none."""

    model_config = ConfigDict(extra="forbid")

    notifications: dict[str, Notification] = Field(default_factory=dict[str, Notification])


NO_TEXT = cast("str", None)
"""A default that upstream's schema does not count among the types of its parameter."""

# The docstrings of the tools are what agents and users read as descriptions, and the class names show in the text of a TypeError.


class MockTools:
    """The agent's side. Methods that are no tools are there for initialization and assertions."""

    def __init__(self, db: MockDB) -> None:
        self.db = db

    def create_task(self, user_id: str, title: str, description: str = NO_TEXT) -> Task:
        """Create a new task for a user.

        Args:
            user_id: The ID of the user creating the task
            title: The title of the task
            description: Optional description of the task
        """
        if user_id not in self.db.users:
            raise ValueError(f"User {user_id} not found")
        task_id = f"task_{len(self.db.tasks) + 1}"
        task = Task(task_id=task_id, title=title, description=description, status="pending")
        self.db.tasks[task_id] = task
        self.db.users[user_id].tasks.append(task_id)
        return task

    def get_users(self) -> list[User]:
        """Get all users in the database."""
        return list(self.db.users.values())

    def update_task_status(self, task_id: str, status: TaskStatus) -> Task:
        """Update the status of a task.

        Args:
            task_id: The ID of the task to update
            status: The new status of the task
        """
        task = self._task(task_id)
        task.status = status
        return task

    def transfer_to_human_agents(self, summary: str) -> str:
        """
        Transfer the user to a human agent, with a summary of the user's issue.
        Only transfer if
         -  the user explicitly asks for a human agent
         -  given the policy and the available tools, you cannot solve the user's issue.

        Args:
            summary: A summary of the user's issue.
        """
        return "Transfer successful"

    def assert_number_of_tasks(self, user_id: str, expected_number: int) -> bool:
        """Whether a user has so many tasks. Raises ValueError for an unknown user."""
        if user_id not in self.db.users:
            raise ValueError(f"User {user_id} not found")
        return len(self.db.users[user_id].tasks) == expected_number

    def assert_task_status(self, task_id: str, expected_status: TaskStatus) -> bool:
        """Whether a task is in that state. Raises ValueError for an unknown task."""
        return self._task(task_id).status == expected_status

    def _task(self, task_id: str) -> Task:
        if task_id not in self.db.tasks:
            raise ValueError(f"Task {task_id} not found")
        return self.db.tasks[task_id]


class MockUserTools:
    """The user's side. Methods that are no tools are there for initialization and assertions."""

    def __init__(self, db: MockUserDB) -> None:
        self.db = db

    def check_notifications(self) -> list[Notification]:
        """Check all notifications in the user's inbox."""
        return list(self.db.notifications.values())

    def dismiss_notification(self, notification_id: str) -> str:
        """Dismiss (mark as read) a notification.

        Args:
            notification_id: The ID of the notification to dismiss.
        """
        self._notification(notification_id).status = "read"
        return f"Notification {notification_id} dismissed"

    def add_notification(self, notification_id: str, message: str, task_id: str | None = None) -> Notification:
        """Puts an unread notification into the inbox."""
        notification = Notification(notification_id=notification_id, message=message, task_id=task_id)
        self.db.notifications[notification_id] = notification
        return notification

    def assert_notification_status(self, notification_id: str, expected_status: str) -> bool:
        """Whether a notification is in that state. Raises ValueError for an unknown notification."""
        return self._notification(notification_id).status == expected_status

    def _notification(self, notification_id: str) -> Notification:
        if notification_id not in self.db.notifications:
            raise ValueError(f"Notification {notification_id} not found")
        return self.db.notifications[notification_id]


def _text(value: BaseModel | list[BaseModel]) -> str:
    # Upstream warns about a value that a tool stored unchecked, and sends it all the same.
    dumped = [record.model_dump(warnings=False) for record in value] if isinstance(value, list) else value.model_dump(warnings=False)
    return json.dumps(dumped, default=str)


def _toolkit(code: type, tools: tuple[str, ...], writes: frozenset[str]) -> Toolkit:
    schemas = {name: function_schema(name, getattr(code, name), getattr(code, name).__doc__) for name in tools}
    return Toolkit(code, schemas, writes, dict.fromkeys(MODELS, _text))


def toolkits() -> dict[Requestor, Toolkit]:
    """Both sides' tools, in upstream's order."""
    agent = ("create_task", "get_users", "update_task_status", "transfer_to_human_agents")
    user = ("check_notifications", "dismiss_notification")
    return {
        "assistant": _toolkit(MockTools, agent, frozenset({"create_task", "update_task_status"})),
        "user": _toolkit(MockUserTools, user, frozenset({"dismiss_notification"})),
    }
