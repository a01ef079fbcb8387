"""Debian's chromium, driven by Playwright, without a network."""

import contextlib
import json
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, Playwright, expect

from tests.support.processes import require_program


@contextlib.contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """One browser process for the block."""
    browser = playwright.chromium.launch(
        executable_path=require_program("chromium"),
        args=[
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--no-proxy-server",
        ],
    )
    try:
        yield browser
    finally:
        browser.close()


def shown_statistics(page: Page) -> dict:
    """The next statistics that the page asks for, once they are on the page. They stay: what is compared later is they."""
    page.unroute("**/v1/stats")
    with page.expect_response("**/v1/stats") as response:
        pass
    body = response.value.body()
    page.route("**/v1/stats", lambda route: route.fulfill(body=body, content_type="application/json"))
    statistics = json.loads(body)
    expect(page.locator("html")).to_have_attribute("data-generated-at", statistics["generated_at"])
    return statistics
