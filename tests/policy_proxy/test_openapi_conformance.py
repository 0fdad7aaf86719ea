"""Generated requests at every route of ``/openapi.json``, as documented and not: no answer is a fault of ours, none has a status that
is not documented."""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from proxy_helpers import MakeProxy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import status_code_conformance

from services.policy_proxy.app import create_app

pytestmark = pytest.mark.filterwarnings("ignore:The .* attribute with value")
"""What pydantic hides while it builds routes, in a way that is not safe with threads."""
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "10"))
"""Of each kind, for each route."""


def generated(operation: Any, mode: GenerationMode) -> list[Any]:
    """Requests that follow the schema, or break it somewhere."""
    cases: list[Any] = []

    @seed(1)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        cases.append(case)

    try:
        collect()
    except Unsatisfiable:
        # Nothing can be wrong with a route that takes nothing.
        assert mode is GenerationMode.NEGATIVE
    return cases


@pytest.mark.timeout(300)
def test_every_route_answers_as_documented(store_url: str, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    proxy = make_proxy(start=False, areal_export_wait_s=0.1, untrue_logprobs="allow")
    schema = schemathesis.openapi.from_dict(create_app(proxy.config).openapi())
    schema.config.update(base_url=proxy.thread.url)
    # Before the proxy starts, because its threads draw random numbers and hypothesis objects to that.
    operations = [found.ok() for found in schema.get_all_operations()]
    cases = [case for operation in operations for mode in GenerationMode for case in generated(operation, mode)]
    proxy.start()
    session = proxy.open()
    assert len(cases) > 10 * len(operations)
    failures: dict[str, str] = {}
    for case in cases:
        if "sid" in (case.path_parameters or {}):
            case.path_parameters["sid"] = session.session_id
        if case.path == "/v1/admin/weights" and isinstance(case.body, dict):
            case.body["deadline_s"] = 1.0
        reply = case.call(headers={"Authorization": f"Bearer {session.api_key}"})
        try:
            case.validate_response(reply, checks=[not_a_server_error, status_code_conformance])
        except FailureGroup:
            failures.setdefault(f"{case.method} {case.path}: {reply.status_code} {reply.text}", case.as_curl_command())
    assert not failures, failures
