"""Schemas, policies and guidelines are upstream's to the character, whichever back end runs. Digests only: the texts are not ours.

Taken once from upstream's release 1.0.1: its own `Tool.openai_schema`s, `Environment.policy` and guideline files.
"""

import hashlib
import json
from typing import Any

import pytest

from services.agent_runner.domains import open_backend

SCHEMAS = {
    "airline": "fa7f73a65e9d2fe01da616bbc89406a53dfcfad9fc6c5b7c93eb3b93e5ad23f5",
    "retail": "a8e48e8fb0ffa276346429216d1df8d441e6b05ea4f4fc36ce74bfdf6153341d",
    "telecom": "64a7c7accf0e3cdefbb357ec56209d2d16f820eca469433eb854a762ce555e9e",
}
"""Without ``additionalProperties: true``, which some versions of pydantic say and others leave out."""
POLICIES = {
    ("airline", False): "10dc0525421521208be39cee235bba84a16e2bcba9899eb93d92cd81d2f62fc4",
    ("retail", False): "2c9652afbce57d6e087768d37cda64d31c53d50b3e3225cfdb791bac66466467",
    ("telecom", False): "065b48503bf780153fc671455cdfddb85b4c6ffb11e2ea93bd940233d804c3e9",
    ("telecom", True): "71b10d43f320b7929746bd867281322bb0b692086f155c2105191d64a04d0fd5",
    ("telecom-workflow", False): "4713ad7b8c70d1767f29352410dc0a1eeec46b62ef218987e06afec276b75fdb",
    ("telecom-workflow", True): "9425f99b3392be03808fe9a8f45edd4885103ab90efc384e68f94695cfb74589",
}
GUIDELINES = {
    "airline": "740a29dfa64d7bc08eea3bf7493575b914a63f744acbaf7f199ee07eddaf72d3",
    "retail": "740a29dfa64d7bc08eea3bf7493575b914a63f744acbaf7f199ee07eddaf72d3",
    "telecom": "cbf3d8a4d8642fd04e559862f1afef55d7dd4e6a7e727ca49e239023c599de0c",
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def without_additional(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: without_additional(value) for key, value in schema.items() if (key, value) != ("additionalProperties", True)}
    return [without_additional(item) for item in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("domain", SCHEMAS)
def test_schemas_are_upstreams_to_the_order_of_keys(domain: str):
    backend = open_backend(domain, "inspect_evals")
    task = backend.tasks("base")[0]
    schemas = [*backend.tool_schemas(task, solo=False), *backend.user_tool_schemas(task)]
    assert digest(json.dumps(without_additional(schemas))) == SCHEMAS[domain]


@pytest.mark.parametrize(("domain", "solo"), POLICIES)
def test_policies_are_upstreams(domain: str, solo: bool):
    backend = open_backend(domain, "inspect_evals")
    assert digest(backend.policy(backend.tasks("base")[0], solo=solo)) == POLICIES[domain, solo]


@pytest.mark.parametrize("domain", GUIDELINES)
def test_guidelines_are_upstreams_in_the_variant_for_the_users_tools(domain: str):
    backend = open_backend(domain, "inspect_evals")
    assert digest(backend.user_guidelines(backend.tasks("base")[0])) == GUIDELINES[domain]
