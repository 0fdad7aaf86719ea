"""Owns how a dataset is named in the config: ``domain/split``, or ``domain:FILE`` for a task file of one's own.

Refuses to know which domains and splits there are: that is the agent runner's to say.
"""

import re
from dataclasses import dataclass

_PATTERN = re.compile(r"(?P<domain>[A-Za-z0-9_-]+)(?:/(?P<split>[A-Za-z0-9_-]+)|:(?P<file>.+\.jsonl?))")


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A set of tasks."""

    domain: str
    split: str
    """A split of the domain, or the path of a task file as the agent runner sees it; a `TaskRef` carries it as it is."""

    @classmethod
    def parse(cls, name: str) -> "DatasetRef":
        """The dataset that ``name`` names. Raises ValueError."""
        found = _PATTERN.fullmatch(name)
        if found is None:
            raise ValueError(
                f"dataset {name!r}: write it as domain/split, such as telecom/small, "
                "or as domain:FILE, such as retail:/data/tasks.jsonl, for a task file (.json or .jsonl)"
            )
        return cls(found["domain"], found["split"] or found["file"])

    @property
    def is_file(self) -> bool:
        """Whether the tasks come from a file. No name of a split ends like one."""
        return self.split.endswith((".json", ".jsonl"))

    def __str__(self) -> str:
        return f"{self.domain}:{self.split}" if self.is_file else f"{self.domain}/{self.split}"
