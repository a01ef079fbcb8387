"""Debian's chromium, driven by Playwright, without a network."""

import contextlib
from collections.abc import Iterator

from playwright.sync_api import Browser, Playwright

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
