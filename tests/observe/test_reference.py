"""The API's reference at /docs, in a real Chromium: all that the OpenAPI document has, and nothing from elsewhere."""

import json

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.browser import chromium
from tests.support.gateway import Gateway
from tests.support.inprocess import TOKENS, token_entries

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    settings = {"tokens": json.dumps(token_entries(**TOKENS))}
    with Gateway(tmp_path_factory.mktemp("gateway"), settings=settings) as gateway:
        yield gateway


@pytest.fixture
def page(gateway):
    with sync_playwright() as playwright, chromium(playwright) as browser:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{gateway.url}/docs")
        yield page
        assert all(url.startswith(f"{gateway.url}/") for url in asked)


def sign_in(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_role("textbox", name="Token").fill(TOKENS["admin"])
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#token-dialog")).to_be_hidden()


def test_every_operation_and_document_is_there(page, gateway):
    expect(page.locator("#problem")).to_have_text(
        "A token is needed: give it to the dashboard, then come back in the same tab."
    )
    sign_in(page, gateway.url)
    page.get_by_role("link", name="API").click()
    expect(page.locator("#schemas")).to_be_visible()
    told = page.evaluate(
        "fetch('/openapi.json', {headers: {authorization: 'Bearer ' + sessionStorage.getItem('blockgate-token')}})"
        ".then((answer) => answer.json())"
    )
    shown = page.locator("#operations summary").all_inner_texts()
    wanted = {
        (method.upper(), path, operation["summary"])
        for path, operations in told["paths"].items()
        for method, operation in operations.items()
    }
    assert {tuple(text.split("\n")) for text in shown} == wanted
    assert page.locator("#schemas summary").all_inner_texts() == list(told["components"]["schemas"])

    register = page.locator('details[id="put-/v1/devices/{name}"]')
    register.locator("summary").click()
    expect(register).to_contain_text("409")
    expect(register).to_contain_text("device_exists")
    register.get_by_role("link", name="DeviceSpec").click()
    document = page.locator("details#DeviceSpec")
    expect(document).to_have_attribute("open", "")
    fields = told["components"]["schemas"]["DeviceSpec"]["properties"]
    assert document.locator("th code").all_inner_texts() == list(fields)


def test_it_fits_a_phone(page, gateway):
    sign_in(page, gateway.url)
    page.set_viewport_size({"width": 320, "height": 700})
    page.goto(f"{gateway.url}/docs")
    expect(page.locator("#schemas")).to_be_visible()
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
