"""Owns the reward plot: rollout reward by PPO step, the evaluations before and after as horizontal marks."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_rewards(rewards: Mapping[int, float], before: float | None, after: float | None, title: str, path: Path) -> None:
    """Writes a PNG. ``rewards`` is mean rollout reward by step; ``before``, ``after`` are the evaluations (None: not run)."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = sorted(rewards)
    axes.plot(steps, [rewards[step] for step in steps], marker="o", label="rollout reward (training samples)")
    for value, name, colour in ((before, "before", "tab:gray"), (after, "after", "tab:green")):
        if value is not None:
            axes.axhline(value, linestyle="--", color=colour, label=f"evaluation {name}: {value:.3f}")
    axes.set(xlabel="PPO step", ylabel="mean reward", title=title, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=120)
