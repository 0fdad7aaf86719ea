"""The back end on upstream tau2-bench where that is not installed. Where it is, tests/upstream compares it with upstream itself."""

import pytest

from services.agent_runner.domains import UnknownDomain, open_backend
from services.agent_runner.domains.tau2 import tau2_available

pytestmark = pytest.mark.skipif(tau2_available(), reason="upstream tau2-bench is installed")


def test_asking_for_it_says_what_is_missing() -> None:
    with pytest.raises(UnknownDomain, match=r"econfig\.backend: upstream tau2-bench is not installed here.*docs/upstream\.md"):
        open_backend("telecom", backend="tau2")


def test_auto_takes_the_other_one() -> None:
    assert open_backend("mock", backend="auto").source.startswith("inspect-evals ")
