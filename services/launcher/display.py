"""Owns how a running experiment is shown: a live table on a terminal, one plain line now and then anywhere else."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from services.launcher.lifecycle import State
from services.launcher.progress import Snapshot
from services.launcher.report import evaluation_text

PLAIN_EVERY_S = 10.0


class Display(Protocol):
    """A place where progress is shown; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None: ...

    def note(self, line: str) -> None:
        """Says one thing that happened."""
        ...

    def show(self, snapshot: Snapshot, states: Mapping[str, State], restarts: int) -> None:
        """Shows the state."""
        ...


def display_for(console: Console) -> Display:
    """The live table on a terminal, plain lines on anything else."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class PlainDisplay:
    """Lines for logs and pipes: at once where the phase or step changes, else every `PLAIN_EVERY_S` seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: tuple[str, int] | None = None
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def note(self, line: str) -> None:
        """Says one thing that happened."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def show(self, snapshot: Snapshot, states: Mapping[str, State], restarts: int) -> None:
        """Shows the state, where it is time to."""
        key, now = (snapshot.phase, snapshot.step), time.monotonic()
        if key == self._shown and now - self._shown_at < PLAIN_EVERY_S:
            return
        self._shown, self._shown_at = key, now
        self.note(plain_line(snapshot, restarts))


class LiveDisplay:
    """A table that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.__exit__(kind, error, tb)

    def note(self, line: str) -> None:
        """Says one thing that happened, above the table."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def show(self, snapshot: Snapshot, states: Mapping[str, State], restarts: int) -> None:
        """Redraws the table."""
        self._live.update(progress_table(snapshot, states, restarts), refresh=True)


def fields_of(snapshot: Snapshot, restarts: int) -> dict[str, str]:
    """What both displays show, by label."""
    return {
        "phase": snapshot.phase + (f" ({snapshot.detail})" if snapshot.detail else ""),
        "step": f"{snapshot.step}/{snapshot.total_steps}",
        "reward": "-" if snapshot.reward is None else f"{snapshot.reward:.3f}",
        **{f"evaluation {name}": evaluation_text(found) for name, found in snapshot.evaluations.items()},
        "policy version": str(snapshot.policy_version) if snapshot.policy_version >= 0 else "-",
        "episodes": f"{snapshot.episodes} ({snapshot.episodes_per_s:.2f}/s)",
        "tokens/s": f"{snapshot.tokens_per_s:.0f}",
        "queued/running/ready groups": f"{snapshot.queued}/{snapshot.running}/{snapshot.ready_groups}",
        "trained/dropped": f"{snapshot.trained}/{snapshot.dropped}",
        "restarts": str(restarts),
    }


def plain_line(snapshot: Snapshot, restarts: int) -> str:
    """One line that says it all."""
    return " | ".join(f"{label} {value}" for label, value in fields_of(snapshot, restarts).items())


def progress_table(snapshot: Snapshot, states: Mapping[str, State], restarts: int) -> Table:
    """The live table, with the processes that are not healthy in its caption."""
    ill = [f"{name} {state}" for name, state in states.items() if state is not State.HEALTHY]
    table = Table(title="frontdesk", caption=", ".join(ill) or "all processes healthy", show_header=False)
    for label, value in fields_of(snapshot, restarts).items():
        table.add_row(label, value)
    return table
