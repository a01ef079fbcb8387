"""The dashboard of a gateway whose registry is slow, changes bytes, or goes away: what is wrong is seen, and is what the API says."""

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.support.browser import chromium, shown_statistics
from tests.support.faultregistry import corrupt, digest_of, reset
from tests.support.gateway import Gateway
from tests.support.gzips import member
from tests.support.layers import content, tar_of
from tests.support.processes import free_port
from tests.support.threadedregistry import Held, ThreadedRegistry

pytestmark = pytest.mark.real
expect.set_options(timeout=20_000)

LAYER = tar_of({"srv/data": content(400_000, 5)})
SLOW = tar_of({"srv/slow": content(3_000_000, 6)})


@pytest.fixture
def registry():
    with ThreadedRegistry() as registry:
        yield registry


@pytest.fixture
def images(registry):
    """References' sources by name."""
    tars = {"app": LAYER, "slow": SLOW}
    made = {
        name: registry.add_image(f"team/{name}", [member(tar)], diff_ids=[digest_of(tar)])
        for name, tar in tars.items()
    }
    return {
        name: {"source": {"image": f"{registry.host}/{each.repository}:{each.tag}", "insecure": True}}
        for name, each in made.items()
    }


@pytest.fixture
def gateway(tmp_path, images):
    settings = {"span_size": 65536, "registry_deadline_seconds": 2}
    with Gateway(tmp_path / "gateway", settings=settings) as gateway:
        gateway.register("app", {**images["app"], "layout": "tar", "layer": {"index": 0}})
        yield gateway


@pytest.fixture
def page(gateway):
    with sync_playwright() as playwright, chromium(playwright) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(gateway.url)
        expect(page.locator("#status")).not_to_have_attribute("data-level", "unknown")
        yield page
        assert all(url.startswith(f"{gateway.url}/") for url in asked)


def row(page, name):
    return page.locator(f'.devices tbody[data-key="{name}"]')


def test_a_registration_shows_its_progress_until_it_is_done(page, gateway, registry, images):
    with Held(registry, digest_of(member(SLOW)), seconds=0.5):
        gateway.put("slow", images["slow"])
        shown = row(page, "slow")
        expect(shown.locator(".chip")).to_have_text("indexing")
        bar = shown.get_by_role("progressbar", name="Progress of slow")
        expect(bar).not_to_have_attribute("aria-valuenow", "0")
        (told,) = [each for each in shown_statistics(page)["devices"] if each["name"] == "slow"]
        progress = told["progress"]
        assert bar.get_attribute("aria-valuenow") == str(round(100 * progress["done"] / progress["total"]))
        expect(shown.locator("small")).to_contain_text(progress["phase"])
        page.unroute("**/v1/stats")
    expect(shown.locator(".chip")).to_have_text("ready")
    expect(bar).to_be_hidden()


def test_bytes_that_changed_are_red_with_the_reason_and_the_span_that_failed(page, gateway, registry):
    assert gateway.get("app", 0, 10).content == LAYER[:10]
    registry.inject(corrupt, times=None)
    assert gateway.get("app", 200_000, 200_010).status_code == 502
    expect(page.locator("#status")).to_have_attribute("data-level", "trouble")
    told = shown_statistics(page)
    assert "integrity failure" in told["status"]["reason"]
    assert "degraded (app)" in told["status"]["reason"]
    assert page.locator("#status-reason").text_content() == told["status"]["reason"]
    (device,) = told["devices"]
    shown = row(page, "app")
    expect(shown.locator(".chip")).to_have_text("ready")
    expect(shown.locator(".health")).to_have_text("degraded")
    error = device["error"]
    assert shown.locator(".trouble").text_content() == f"{error['code']}: {error['detail']}"
    for label, name in (("Hit ratio", "hit_ratio"), ("Amplification", "amplification")):
        assert shown.locator(f'[data-label="{label}"]').get_attribute("data-value") == str(device[name] or 0)
    assert page.locator("#errors-tile").get_attribute("data-bad") == "true"
    states = gateway.http.get("/v1/devices/app/map").json()["cells"]["state"]
    assert (states.count("memory"), states.count("failed")) == (1, 1)
    expect(shown.locator("canvas")).to_have_attribute(
        "aria-label", f"Map of app: 1 of {len(states)} cells are here, 1 could not be read"
    )


def test_reads_that_fail_are_red_too(page, gateway, registry):
    registry.inject(reset(), times=None)
    while gateway.get("app", 300_000, 300_010).status_code == 206:
        gateway.drop_caches()
    expect(page.locator("#status-reason")).to_contain_text("failed in the last half minute")
    expect(page.locator("#status")).to_have_attribute("data-level", "trouble")


def test_registries_are_shown_as_the_api_has_them_and_one_that_does_not_answer_is_red(
    page, gateway, registry
):
    assert gateway.get("app", 0, 10).status_code == 206
    dead = f"127.0.0.1:{free_port()}"
    rows = page.locator("#upstream")
    for name in ("gone", "gone-too"):
        gateway.put(name, {"source": {"image": f"{dead}/team/app:latest", "insecure": True}})
    expect(rows.locator(f'tr[data-key="{dead}"] .chip')).to_have_text("not asked")
    told = shown_statistics(page)
    assert {each["registry"] for each in told["upstream"]} == {dead, registry.host}
    for each in told["upstream"]:
        shown = rows.locator(f'tr[data-key="{each["registry"]}"]').locator("td").all_text_contents()
        words = {"closed": "answers", "half_open": "being tried", "open": "not asked"}[each["breaker"]]
        counts = [str(each[name]) for name in ("attempts", "failures", "retries")]
        assert shown[:5] == [each["registry"], words, *counts]
    assert f"{dead} does not answer" in told["status"]["reason"]
    assert page.locator("#status-reason").text_content() == told["status"]["reason"]


def test_a_registration_that_waits_says_for_what_and_until_when(page, gateway):
    gateway.put("gone", {"source": {"image": f"127.0.0.1:{free_port()}/team/app:latest", "insecure": True}})
    shown = row(page, "gone")
    expect(shown.locator(".chip")).to_have_text("indexing")
    expect(shown.locator("small")).to_contain_text("waiting after attempt")
    (told,) = [each for each in shown_statistics(page)["devices"] if each["name"] == "gone"]
    progress = told["progress"]
    until = page.evaluate("at => new Date(at).toLocaleTimeString('en-GB')", progress["retry_at"])
    assert (
        shown.locator("small").text_content()
        == f"waiting after attempt {progress['attempt']}, next at {until}"
    )
    error = progress["error"]
    assert shown.locator(".trouble").text_content() == f"{error['code']}: {error['detail']}"
    expect(shown.locator(".trouble")).to_have_attribute("data-tone", "warn")
