"""Comparison with upstream tau2-bench. Collected only where it is installed: see `make test-upstream` and docs/upstream.md."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.agent_runner.domains.tau2 import tau2_available

collect_ignore_glob = [] if tau2_available() else ["*.py"]

COUNTS = ("episodes", "messages", "end_states", "mismatches", "deviations")
DETAILS = (*COUNTS, "raised")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how much was compared, and writes it to the file that UPSTREAM_REPORT names."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    ours = [report for report in reports if "tests/upstream/" in report.nodeid and report.user_properties]
    by_test = {report.nodeid.rpartition("::")[2]: dict(report.user_properties) for report in ours}
    if not by_test:
        return
    totals: Counter[str] = Counter()
    for counts in by_test.values():
        totals.update({name: counts.get(name, 0) for name in COUNTS})
    tasks = {task for counts in by_test.values() for task in counts.get("tasks", [])}
    summary = {"tasks": len(tasks), **totals}
    terminalreporter.write_line("upstream: " + ", ".join(f"{value} {name}" for name, value in summary.items()))
    if report_file := os.environ.get("UPSTREAM_REPORT"):
        detail = {test: {name: counts[name] for name in DETAILS if name in counts} for test, counts in by_test.items()}
        Path(report_file).write_text(json.dumps({"total": summary, "tests": detail}, indent=2) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def _outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRONTDESK_ADMIN_KEY", raising=False)
