"""Owns that one run has one source of episodes a domain: the back end and version whose rewards it compares.

The first source and the first tasks seen are kept in the experiment's state, so that a resume with others is refused, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.trainer.batches import Delivered, Member, Origin
from services.trainer.checks import ExperimentFailed
from services.trainer.sampler import TaskSet
from services.trainer.state import State

OTHER_SOURCE = "other_source"
"""Reason of a drop."""


def admit_sources(state: State, origins: Iterable[Origin | None], where: str, remedy: str = "") -> None:
    """Remembers the first source of each domain. Raises `ExperimentFailed` for a second one, before anything is done with its episodes.

    ``where`` and ``remedy`` are for the message.
    """
    for domain, source in dict.fromkeys(origin for origin in origins if origin is not None):
        first = state.sources.setdefault(domain, source)
        if source != first:
            raise ExperimentFailed(
                f"{where}: {domain} episodes come from {source!r}, and those of this run from {first!r}; rewards of two sources "
                f"are not comparable. They were not trained on, and nothing is lost: {remedy}begin a new trial_name"
            )


def from_one_source(state: State, groups: Sequence[Delivered], where: str, *, drop: bool) -> list[Delivered]:
    """Training groups of the run's sources, remembered where they are the first.

    Members from another source are a failure (`admit_sources`), or with ``drop`` members with the problem ``other_source``.
    """
    if not drop:
        origins = [member.origin for group in groups for member in group.members]
        admit_sources(state, origins, where, "bring that source back and start again with recover.other_source=drop, or ")
        return list(groups)
    return [Delivered(group.group_id, [_marked(state, member) for member in group.members]) for group in groups]


def _marked(state: State, member: Member) -> Member:
    if member.origin is None:
        return member
    domain, source = member.origin
    return member if state.sources.setdefault(domain, source) == source else replace(member, problem=OTHER_SOURCE)


def admit_tasks(state: State, given: TaskSet) -> None:
    """Remembers the tasks of each dataset. Raises `ExperimentFailed` where they are not those that the run began with."""
    if state.datasets.setdefault(str(given.ref), given.digest) != given.digest:
        raise ExperimentFailed(
            f"dataset {given.ref}: its {len(given.tasks)} tasks are not those that this run began with (another task file, TAU2_DATA_DIR, "
            "back end or econfig.solo_mode); bring those back, or begin a new trial_name"
        )
