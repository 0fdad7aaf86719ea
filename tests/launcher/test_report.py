"""What is shown at the end of an experiment."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from services.launcher.display import plain_line
from services.launcher.progress import Snapshot
from services.launcher.report import draw, evaluation_tables, print_summary


def score(value: float, floor: float | None, **changes: Any) -> dict[str, Any]:
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
    base = {
        "reward": figure,
        "greedy": None,
        "pass_hat": {"1": figure, "2": {"value": value / 2, "low": 0.0, "high": 0.5}},
        "floor": floor,
        "n_tasks": 20,
        "left_out": 0,
        "n_episodes": 40,
        "failed": {},
        "truncated": {},
    }
    return base | changes


def run(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The results of a run with an evaluation of one dataset, or of several."""
    return {
        "reward_before": 0.3,
        "reward_after": 0.6,
        "eval_before": score(0.3, 0.4) | {"datasets": before},
        "eval_after": score(0.6, 0.4) | {"datasets": after},
        "restarts": {"trainer": 1},
    }


def shown(results: dict[str, Any]) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=120, markup=False, highlight=False), results)
    return out.getvalue()


def test_figures_come_with_their_interval_and_what_doing_nothing_scores() -> None:
    text = shown(run({"airline/test": score(0.3, 0.4)}, {"airline/test": score(0.6, 0.4, failed={"user": 2, "infra": 1})}))
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") >= 4}
    assert "evaluation on airline/test: mean over tasks [95 % interval]" in text
    assert "0.300 [0.200, 0.400]" in lines["reward"] and "0.600 [0.500, 0.700]" in lines["reward"]
    assert "0.400" in lines["reward of doing nothing"]
    assert "0.300 [0.000, 0.500]" in lines["pass^2"] and "infra 1, user 2" in lines["failed"]
    assert "trainer 1" in text


def test_several_datasets_have_a_table_each_and_one_together() -> None:
    before = {"airline/test": score(0.3, 0.4), "retail:/data/tasks.jsonl": score(0.2, None)}
    results = run(before, before)
    assert len(evaluation_tables(results)) == 3
    text = shown(results)
    assert "evaluation on retail:/data/tasks.jsonl" in text and "not known" in text and "all datasets, weighted" in text


def test_a_run_without_evaluation_has_none_to_show(tmp_path: Path) -> None:
    results = {"reward_before": None, "eval_before": None, "eval_after": None, "ppo_steps": 3}
    assert evaluation_tables(results) == [] and "ppo_steps" in shown(results)
    assert draw(results, {1: 0.1, 2: 0.2}, "e/t", tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_plot_takes_intervals_and_the_floor(tmp_path: Path) -> None:
    before = {"airline/test": score(0.3, 0.4)}
    assert draw(run(before, before), {1: 0.1, 2: 0.2}, "e/t", tmp_path).stat().st_size > 1000


def test_progress_shows_finished_evaluations() -> None:
    line = plain_line(Snapshot(phase="rl", evaluations={"before": score(0.3, None)}), 0)
    assert line.endswith("| restarts 0") and "evaluation before 0.300 [0.200, 0.400], doing nothing not known |" in line
