"""The OpenAPI document: what is committed is what the code says, and what it says is true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.api.app import create_app
from gateway.config import Settings

COMMITTED = Path(__file__).parents[2] / "openapi" / "gateway.json"


@pytest.fixture(scope="module")
def document():
    return create_app(Settings()).openapi()


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
        "/v1/content/{etag}/data",
        "/v1/artifacts/{digest}",
        "/v1/cache",
        "/v1/stats",
        "/livez",
        "/readyz",
    } <= set(document["paths"])


def test_the_data_endpoint_declares_its_request_fields(document):
    for path, place in (("/v1/devices/{name}/data", "name"), ("/v1/content/{etag}/data", "etag")):
        for method in ("get", "head"):
            parameters = document["paths"][path][method]["parameters"]
            assert [p["name"] for p in parameters if p["in"] == "path"] == [place]
            assert {"Range", "If-Range", "If-Match", "If-None-Match"} == {
                p["name"] for p in parameters if p["in"] == "header"
            }


async def test_the_data_endpoint_declares_the_fields_that_its_answers_have(document, gateway):
    device = await gateway.layer()
    for path in ("/v1/devices/{name}/data", "/v1/content/{etag}/data"):
        url = path.format(name="base", etag=device["etag"].strip('"'))
        for method in ("get", "head"):
            sent = (await gateway.client.request(method, url)).headers
            declared = document["paths"][path][method]["responses"]["200"]["headers"]
            assert {name.lower() for name in declared} == set(sent) - {"content-type"}


def test_the_two_data_routes_fail_in_their_own_ways(document):
    def codes(path):
        answers = document["paths"][path]["get"]["responses"].values()
        return {code for answer in answers for code in answer["description"].split("`")[1::2]}

    named, content = codes("/v1/devices/{name}/data"), codes("/v1/content/{etag}/data")
    assert named - content == {
        "device_not_found",
        "device_failed",
        "device_quarantined",
        "device_not_ready",
        "newer_format",
    }
    assert content - named == {"content_not_found"}
    assert {"index_being_made", "storage", "span_mismatch"} <= content


def test_lists_declare_their_query(document):
    parameters = document["paths"]["/v1/devices"]["get"]["parameters"]
    assert {p["name"] for p in parameters if p["in"] == "query"} == {"limit", "cursor", "state", "name"}
    schemas = document["components"]["schemas"]
    assert "segments" not in schemas["DeviceSummaryView"]["properties"]
    assert {"segments", "contents", "image_config"} <= set(schemas["DeviceDetail"]["properties"])
    assert schemas["State"]["enum"] == ["indexing", "ready", "failed", "quarantined"]


def test_every_failure_is_documented_as_a_problem_with_its_codes(document):
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")) and not name.startswith(("HEAD", "GET /readyz")):
                assert "application/problem+json" in answer["content"], (name, status)
                assert "`" in answer["description"], (name, status)


def test_every_503_documents_when_to_come_back(document):
    for name, operation in operations(document):
        answer = operation["responses"].get("503")
        if answer and not name.startswith("HEAD"):
            assert answer["headers"]["Retry-After"]["schema"] == {"type": "integer"}, name


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
