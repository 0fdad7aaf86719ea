"""Owns the reward plot: rollout reward by PPO step; the evaluations and what doing nothing scores as horizontal marks."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"before": "tab:gray", "after": "tab:green"}


def plot_rewards(
    rewards: Mapping[int, float], evaluations: Mapping[str, Mapping[str, float]], floor: float | None, title: str, path: Path
) -> None:
    """Writes a PNG. ``rewards`` is mean rollout reward by step; ``evaluations`` are those that were run, ``{"value", "low", "high"}`` each.

    ``floor`` is what an agent that does nothing scores, None where that is not known.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = sorted(rewards)
    axes.plot(steps, [rewards[step] for step in steps], marker="o", label="rollout reward (training samples)")
    for name, found in evaluations.items():
        label = f"evaluation {name}: {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        axes.axhline(found["value"], linestyle="--", color=COLOURS[name], label=label)
    if floor is not None:
        axes.axhline(floor, linestyle=":", color="tab:red", label=f"doing nothing: {floor:.3f}")
    axes.set(xlabel="PPO step", ylabel="mean reward", title=title, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=120)
