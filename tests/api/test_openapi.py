"""The OpenAPI document: what is committed is what the code says, and what it says is true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.api.app import create_app, schema
from gateway.config import Settings

COMMITTED = Path(__file__).parents[2] / "openapi" / "gateway.json"


@pytest.fixture(scope="module")
def document():
    return schema(create_app(Settings()))


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_committed_document_is_what_the_code_says(document):
    assert json.loads(COMMITTED.read_text()) == json.loads(json.dumps(document))


def test_the_contract_is_all_there(document):
    assert {
        "/v1/devices",
        "/v1/devices/{name}",
        "/v1/devices/{name}/events",
        "/v1/devices/{name}/data",
        "/v1/artifacts/{digest}",
        "/v1/cache",
        "/v1/stats",
        "/livez",
        "/readyz",
    } <= set(document["paths"])


def test_the_data_endpoint_declares_its_request_fields(document):
    for method in ("get", "head"):
        parameters = document["paths"]["/v1/devices/{name}/data"][method]["parameters"]
        assert {"Range", "If-Range", "If-Match", "If-None-Match"} <= {
            p["name"] for p in parameters if p["in"] == "header"
        }


def test_every_failure_is_documented_as_a_problem_with_its_codes(document):
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")) and not name.startswith(("HEAD", "GET /readyz")):
                assert "application/problem+json" in answer["content"], (name, status)
                assert "`" in answer["description"], (name, status)


def test_no_operation_documents_the_frameworks_own_validation_answer(document):
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_operation_has_a_name_of_its_own(document):
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(names) == len(set(names))


def test_every_reference_leads_somewhere(document):
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for part in text.split("#/components/schemas/")[1:]:
        assert part.partition('"')[0] in schemas
