"""Fixtures of the policy server's tests: two small policies, a real server, a client."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from policy_harness import save_model
from policy_http import make_config, serving, wait_until

from services.common.app import ADMIN_KEY_ENV


@pytest.fixture(scope="session", autouse=True)
def _no_outer_key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ADMIN_KEY_ENV, raising=False)
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the policies of version 0 and 1."""
    root = tmp_path_factory.mktemp("policies")
    return {version: save_model(root / version, int(version)) for version in ("0", "1")}


@pytest.fixture
def client(models: dict[str, Path], tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a fresh server that is ready."""
    with serving(make_config(models["0"], tmp_path)) as url, httpx.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200, "the server did not become ready")
        yield client
