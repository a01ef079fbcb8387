"""Debian's chromium, driven by Playwright, without a network."""

import contextlib
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, Playwright, Route, expect

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
    """What the page shows, and shows on: from now on it is given the same statistics again and again."""
    page.unroute("**/v1/stats")
    kept = []

    def answer(route: Route) -> None:
        if not kept:
            kept.append(route.fetch())
        route.fulfill(response=kept[0])

    page.route("**/v1/stats", answer)
    while not kept:
        page.wait_for_event("response")
    told = kept[0].json()
    expect(page.locator("html")).to_have_attribute("data-generated-at", told["generated_at"])
    return told
