"""Owns the end of an experiment: what the launcher adds to the results, the summary table, the reward plot."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.launcher.files import read_json, write_json
from services.launcher.trial import Facts

PLOT_NAME = "rewards.png"
PASSES = ("before", "after")
"""Evaluations of a run: before RL and after it."""
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
    passes = passes_of(results)
    floor = next((found["floor"] for found in passes.values() if found["floor"] is not None), None)
    plot_rewards(rewards, {name: found["reward"] for name, found in passes.items()}, floor, title, path)
    return path


def passes_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The evaluations that were run, by `PASSES`. Results from before there were datasets in them have none to show."""
    found: dict[str, dict[str, Any]] = {name: results.get(f"eval_{name}") or {} for name in PASSES}
    return {name: content for name, content in found.items() if "datasets" in content}


def estimate_text(estimate: Mapping[str, float] | None) -> str:
    """A figure with its 95 % confidence interval."""
    return "-" if estimate is None else f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def evaluation_text(found: Mapping[str, Any]) -> str:
    """The mean reward of a pass with its interval, and what doing nothing scores."""
    return f"{estimate_text(found['reward'])}, doing nothing {floor_text(found['floor'])}"


def floor_text(floor: float | None) -> str:
    """What doing nothing scores."""
    return "not known" if floor is None else f"{floor:.3f}"


def evaluation_tables(results: Mapping[str, Any]) -> list[Table]:
    """A table a dataset, and one for all where there are several: a column a pass, with 95 % intervals and what doing nothing scores."""
    passes = passes_of(results)
    datasets: list[str] = list(dict.fromkeys(dataset for found in passes.values() for dataset in found["datasets"]))
    scores = {dataset: {name: found["datasets"][dataset] for name, found in passes.items()} for dataset in datasets}
    if len(datasets) > 1:
        scores["all datasets, weighted"] = passes
    return [_evaluation_table(title, by_pass) for title, by_pass in scores.items()]


def _evaluation_table(title: str, by_pass: Mapping[str, Any]) -> Table:
    table = Table(title=f"evaluation on {title}: mean over tasks [95 % interval]")
    for heading in ("", *by_pass):
        table.add_column(heading)
    for label, text in _rows(list(by_pass.values())):
        table.add_row(label, *map(text, by_pass.values()))
    return table


def _rows(scores: list[dict[str, Any]]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    ks = sorted({int(k) for score in scores for k in score["pass_hat"]})
    return [
        ("reward", lambda score: estimate_text(score["reward"])),
        ("reward of doing nothing", lambda score: floor_text(score["floor"])),
        ("greedy reward", lambda score: estimate_text(score["greedy"])),
        *((f"pass^{k}", partial(_pass_hat, str(k))) for k in ks),
        ("tasks (without a reward)", lambda score: f"{score['n_tasks']} ({score['left_out']})"),
        ("episodes", lambda score: str(score["n_episodes"])),
        ("truncated", lambda score: counts_text(score["truncated"])),
        ("failed", lambda score: counts_text(score["failed"])),
    ]


def _pass_hat(k: str, score: Mapping[str, Any]) -> str:
    return estimate_text(score["pass_hat"].get(k))


def counts_text(counts: Mapping[str, int]) -> str:
    """Such as ``infra 2, user 1``."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def print_summary(console: Console, results: Mapping[str, Any]) -> None:
    """The tables at the end."""
    for evaluated in evaluation_tables(results):
        console.print(evaluated)
    table = Table(title="results", show_header=False)
    for key in HEADLINE:
        value = results.get(key)
        if value is not None:
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    restarts: Mapping[str, int] = results.get("restarts", {})
    table.add_row("restarts", counts_text(restarts))
    console.print(table)
