"""Owns the end of an experiment: what the launcher adds to the results, the summary table, the reward plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.launcher.files import read_json, write_json
from services.launcher.trial import Facts

PLOT_NAME = "rewards.png"
HEADLINE = (
    "reward_before",
    "reward_after",
    "greedy_before",
    "greedy_after",
    "ppo_steps",
    "wall_s",
    "trajectories_in",
    "trained",
    "dropped",
    "lost",
    "duplicated",
)
"""Keys of the results that the summary shows, in this order."""


def complete_results(path: Path, facts: Facts, rewards: Mapping[int, float]) -> dict[str, Any]:
    """Adds to the trainer's results what only the launcher knows: the wall time of the launches and the restarts. Returns all of it.

    Raises FileNotFoundError where the trainer left no results.
    """
    results = read_json(path)
    if not results:
        raise FileNotFoundError(path)
    results.setdefault("trainer_wall_s", results.get("wall_s"))
    results.setdefault("rollout_rewards", [rewards[step] for step in sorted(rewards)])
    results["wall_s"] = round(facts.wall_s, 3)
    results["restarts"] = facts.restarts
    write_json(path, results)
    return results


def draw(results: Mapping[str, Any], rewards: Mapping[int, float], title: str, directory: Path) -> Path:
    """Writes the reward plot beside the results and returns its path."""
    # Here and not at the top: matplotlib takes a second to import, and only the end of a run needs it.
    from services.launcher.plot import plot_rewards

    path = directory / PLOT_NAME
    plot_rewards(rewards, results.get("reward_before"), results.get("reward_after"), title, path)
    return path


def print_summary(console: Console, results: Mapping[str, Any]) -> None:
    """The table at the end."""
    table = Table(title="results", show_header=False)
    for key in HEADLINE:
        value = results.get(key)
        if value is not None:
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    restarts: Mapping[str, int] = results.get("restarts", {})
    table.add_row("restarts", ", ".join(f"{name} {count}" for name, count in restarts.items()) or "none")
    console.print(table)
