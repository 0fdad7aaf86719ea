"""Generated requests at every route of ``/openapi.json``: no answer is a fault of ours, none has a status that is not documented."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from proxy_helpers import MakeProxy
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from services.policy_proxy.app import create_app

pytestmark = pytest.mark.filterwarnings("ignore:The .* attribute with value")
"""What pydantic hides while it builds routes, in a way that is not safe with threads."""
EXAMPLES = 2


def generated(operation: Any) -> list[Any]:
    """A few requests."""
    cases: list[Any] = []

    @seed(1)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def collect(case: Any) -> None:
        cases.append(case)

    collect()
    return cases


@pytest.mark.timeout(300)
def test_every_route_answers_as_documented(store_url: str, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_TRAJECTORY_STORE_URL", store_url)
    proxy = make_proxy(start=False, areal_export_wait_s=0.1, untrue_logprobs="allow")
    schema = schemathesis.openapi.from_dict(create_app(proxy.config).openapi())
    schema.config.update(base_url=proxy.thread.url)
    # Before the proxy starts, because its threads draw random numbers and hypothesis objects to that.
    cases = [case for found in schema.get_all_operations() for case in generated(found.ok())]
    proxy.start()
    session = proxy.open()
    assert len(cases) > 40
    for case in cases:
        if "sid" in (case.path_parameters or {}):
            case.path_parameters["sid"] = session.session_id
        if case.path == "/v1/admin/weights":
            case.body["deadline_s"] = 1.0
        reply = case.call(headers={"Authorization": f"Bearer {session.api_key}"})
        case.validate_response(reply, checks=[not_a_server_error, status_code_conformance])
