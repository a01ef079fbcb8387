"""The dashboard as people see it: in a real Chromium, of a live gateway that is being read."""

import contextlib
import json
import random
import threading
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from tests.support.browser import chromium, shown_statistics
from tests.support.gateway import Gateway
from tests.support.inprocess import TOKENS, make_layout, token_entries

pytestmark = pytest.mark.real
expect.set_options(timeout=20_000)

HOSTILE = '<img src=x onerror="window.hacked = true">'
SHIFTS = """() => {
    window.shifts = 0;
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
    }).observe({ type: "layout-shift" });
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright, chromium(playwright) as browser:
        yield browser


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_layout(tmp_path_factory.mktemp("oci") / "images").folder


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, images):
    with Gateway(
        tmp_path_factory.mktemp("gateway"), oci_roots=[images.parent], settings={"span_size": 65536}
    ) as gateway:
        source = {"image": f"oci:{images}:image"}
        device = gateway.register("root", {"source": source})
        gateway.register("base", {"source": source, "layout": "tar", "layer": {"index": 0}})
        gateway.register("wrong", {"source": {"image": f"oci:{images}:nothing"}})
        with _reading(gateway.url, device["size"]):
            yield gateway


@contextlib.contextmanager
def _reading(url: str, size: int):
    """Clients that read while the page is looked at."""
    stop = threading.Event()

    def work() -> None:
        rng = random.Random(7)
        with httpx.Client(base_url=url, trust_env=False) as http:
            while not stop.wait(0.02):
                start = rng.randrange(size // 2 - 4096)
                http.get("/v1/devices/root/data", headers={"range": f"bytes={start}-{start + 4095}"})

    reader = threading.Thread(target=work)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()


@pytest.fixture
def page(browser, gateway):
    """The dashboard, open; whatever the console says fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    said: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        # A device may go between two looks at it; the browser itself remarks on the 404, the page copes with it.
        gone = "status of 404" in message.text and "/v1/devices/" in message.location["url"]
        if not gone:
            said.append(f"{message.type}: {message.text}")

    page.on("console", heard)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(gateway.url)
    expect(page.locator("#status")).to_have_attribute("data-level", "ok")
    yield page
    context.close()
    assert said == []


def new_statistics(page: Page) -> None:
    """Wait until the page shows other statistics than now."""
    html = page.locator("html")
    expect(html).not_to_have_attribute("data-generated-at", html.get_attribute("data-generated-at") or "")


def value(page: Page, selector: str) -> float | None:
    text = page.locator(selector).get_attribute("data-value")
    return float(text) if text else None


def row(page: Page, name: str):
    return page.locator(f'.devices tbody[data-key="{name}"]')


def kibibytes(count: int) -> str:
    shown = count / 1024
    # JavaScript rounds halves up.
    return (
        f"{int(shown + 0.5)} KiB"
        if shown >= 99.95
        else f"{shown:.1f} KiB"
        if shown >= 9.995
        else f"{shown:.2f} KiB"
    )


def test_what_is_shown_is_what_the_api_says(page):
    told = shown_statistics(page)
    assert told["traffic"]["per_second"] > 0
    assert page.locator("#status-reason").text_content() == told["status"]["reason"]
    assert page.locator("#version").text_content() == told["version"]
    for selector, expected in {
        "#reads": told["traffic"]["per_second"],
        "#p50": told["traffic"]["p50_seconds"],
        "#p99": told["traffic"]["p99_seconds"],
        "#errors": told["traffic"]["errors_per_second"],
        "#reads-total": told["traffic"]["requests"],
        "#hit-ratio": told["bytes"]["hit_ratio"],
        "#cache-memory": told["caches"]["memory_bytes"],
        "#cache-disk": told["caches"]["disk_bytes"],
        "#amplification": told["bytes"]["amplification"],
    }.items():
        assert value(page, selector) == expected, selector
    percent, sign = page.locator("#hit-ratio").text_content().split()
    digits = len(percent.partition(".")[2])
    # Half a unit of the last digit, for JavaScript rounds halves up.
    assert abs(float(percent) - told["bytes"]["hit_ratio"] * 100) <= 0.5 * 10**-digits + 1e-9, percent
    assert sign == "%"
    for device in told["devices"]:
        shown = row(page, device["name"])
        assert shown.locator(".mono").text_content() == device["image"]
        assert shown.locator(".chip").text_content() == device["state"]
        if device["size"] is not None:
            assert shown.locator("[data-label=Size]").text_content() == kibibytes(device["size"])
        assert shown.locator("[data-label=Served]").get_attribute("data-value") == str(device["served_bytes"])
        if device["error"]:
            assert (
                shown.locator(".trouble").text_content()
                == f"{device['error']['code']}: {device['error']['detail']}"
            )
    texts = page.locator("#events .text").all_text_contents()
    assert texts == [" ".join(filter(None, [event["device"], event["text"]])) for event in told["events"]]


def test_the_chart_tells_what_the_series_says(page):
    told = shown_statistics(page)["series"]
    chart = page.locator("#bytes-chart")
    chart.focus()
    chart.press("ArrowLeft")
    tip = chart.locator(".tip")
    expect(tip).to_be_visible()
    rows = tip.locator("div").all_text_contents()
    assert [text.rstrip("0123456789. KMiB/s") for text in rows] == [
        "memory",
        "this machine",
        "disk",
        "upstream",
    ]
    assert sum(told["memory"]) > 0


def test_the_map_tells_what_the_api_says(page, gateway):
    row(page, "base").scroll_into_view_if_needed()
    canvas = row(page, "base").locator("canvas")
    gateway.get("base", 0, 10)
    gateway.get("base", 0, 10)
    cells = gateway.http.get("/v1/devices/base/map").json()["cells"]
    assert (cells["reads"][0], cells["state"][0]) == (2, "memory")
    here = sum(state in ("memory", "disk") for state in cells["state"])
    expect(canvas).to_have_attribute(
        "aria-label", f"Map of base: {here} of {len(cells['state'])} cells are here"
    )
    canvas.focus()
    canvas.press("ArrowRight")
    readout = row(page, "base").locator(".readout")
    expect(readout).to_have_text(
        f"layer · gzip · {kibibytes(cells['length'][0])} at byte 0 · in memory · read 2 times"
    )


def test_registering_and_deleting_from_the_page(page, gateway, images):
    page.get_by_role("button", name="Register a device").click()
    form = page.locator("#register-form")
    form.get_by_label("Name").fill("from-the-page")
    form.get_by_label("Image").fill(f"oci:{images}:image")
    form.get_by_label("Layout").select_option("tar")
    form.get_by_label("Layer", exact=True).fill("1")
    form.get_by_role("button", name="Register").click()
    expect(page.locator("#register-dialog")).to_be_hidden()
    shown = row(page, "from-the-page")
    expect(shown.locator(".chip")).to_have_text("ready")
    device = gateway.show("from-the-page")
    assert (device["state"], device["layout"], device["segments"][0]["kind"]) == ("ready", "tar", "tar")

    page.get_by_role("button", name="Delete from-the-page").click()
    dialog = page.locator("#delete-dialog")
    expect(dialog.locator("#delete-name")).to_have_text("from-the-page")
    dialog.get_by_role("button", name="Keep it").click()
    assert gateway.show("from-the-page")["state"] == "ready"
    page.get_by_role("button", name="Delete from-the-page").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(shown).to_have_count(0)
    assert gateway.http.get("/v1/devices/from-the-page").status_code == 404


def test_what_others_say_is_shown_as_text(page, gateway):
    device = {"name": HOSTILE, "mountpoint": HOSTILE, "node_device": "/dev/nbd0"}
    report = {"version": HOSTILE[:50], "devices": [device]}
    gateway.http.post("/v1/nodes/hostile/report", json=report).raise_for_status()
    expect(page.locator("#nodes .mono")).to_contain_text(HOSTILE)
    gateway.put("hostile", {"source": {"image": f"oci:{gateway.folder}/<b>x:{'t'}"}})
    expect(row(page, "hostile").locator(".mono")).to_contain_text("<b>x")
    expect(row(page, "hostile").locator(".trouble")).to_contain_text("<b>x")
    gateway.http.delete("/v1/devices/hostile")
    expect(row(page, "hostile")).to_have_count(0)
    assert page.locator("main img, main b b, .mono b").count() == 0
    assert page.evaluate("window.hacked") is None


def test_live_numbers_do_not_move_the_page(page):
    new_statistics(page)
    for device in page.locator(".devices tbody").all():
        device.scroll_into_view_if_needed()
    new_statistics(page)
    page.evaluate(SHIFTS)
    for _ in range(3):
        new_statistics(page)
    assert page.evaluate("window.shifts") < 0.01


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_small_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    new_statistics(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_theme_follows_the_system_and_can_be_chosen(page):
    theme = page.locator("html")
    background = "getComputedStyle(document.body).backgroundColor"
    expect(theme).to_have_attribute("data-theme", "light")
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    expect(theme).to_have_attribute("data-theme", "dark")
    assert page.evaluate(background) != light
    page.locator("#theme").click()
    expect(theme).to_have_attribute("data-theme", "light")
    page.reload()
    assert page.evaluate(background) == light
    page.locator("#theme").click()
    expect(theme).to_have_attribute("data-theme", "dark")


def test_the_page_works_from_the_keyboard(page):
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to devices")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Register a device")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#register-dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Register a device")).to_be_focused()


def test_a_refused_registration_says_why(browser, gateway):
    page = browser.new_page()
    page.goto(gateway.url)
    page.get_by_role("button", name="Register a device").click()
    form = page.locator("#register-form")
    form.get_by_label("Name").fill("refused")
    form.get_by_label("Image").fill(HOSTILE)
    form.get_by_role("button", name="Register").click()
    with httpx.Client(base_url=gateway.url, trust_env=False) as http:
        body = {"source": {"image": HOSTILE, "insecure": False}, "layout": "filesystem"}
        told = http.put("/v1/devices/refused", json=body).json()["detail"]
    expect(page.locator("#register-problem")).to_have_text(told)
    assert page.evaluate("window.hacked") is None
    page.close()


def test_a_token_is_asked_for_and_a_gateway_that_is_gone_is_red_until_it_is_back(browser, tmp_path):
    settings = {"tokens": json.dumps(token_entries(**TOKENS))}
    with Gateway(tmp_path / "gateway", settings=settings) as gateway:
        page = browser.new_page()
        page.goto(gateway.url)
        form = page.locator("#token-form")
        form.get_by_label("Token").fill("wrong")
        form.get_by_role("button").click()
        expect(page.locator("#token-problem")).to_have_text("this token is not known here")
        form.get_by_label("Token").fill(TOKENS["admin"])
        form.get_by_role("button").click()
        expect(page.locator("#token-dialog")).to_be_hidden()
        expect(page.locator("#status")).to_have_attribute("data-level", "ok")
        expect(page.locator("#devices-empty")).to_be_visible()
        gateway.stop()
        expect(page.locator("#status-level")).to_have_text("No answer")
        expect(page.locator("#status")).to_have_attribute("data-level", "trouble")
        gateway.start()
        expect(page.locator("#status")).to_have_attribute("data-level", "ok")
        page.close()
