"""Bytes that may be kept for ever have an address that names them; a name that can be given anew is asked each time."""

import re

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import registered, small_image

_FOR_EVER = re.compile(r"(public|private), max-age=31536000, immutable, no-transform")


def test_the_data_url_of_a_ready_device_names_its_content_which_is_immutable(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    path = f"/v1/content/{kept.etag.strip(chr(34))}/data"
    assert kept.device["data_url"] == f"{gateway.url}{path}"
    whole = gateway.http.get(path)
    assert (whole.status_code, whole.headers["etag"]) == (200, kept.etag), whole.text[:500]
    assert whole.content == kept.content
    assert _FOR_EVER.fullmatch(whole.headers["cache-control"])
    part = gateway.http.get(path, headers={"Range": "bytes=1024-5000"})
    assert (part.status_code, part.headers["etag"]) == (206, kept.etag)
    assert part.content == kept.content[1024:5001]
    assert _FOR_EVER.fullmatch(part.headers["cache-control"])
    head = gateway.http.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(kept.content)))


def test_by_name_the_same_bytes_are_not_to_be_kept_and_say_where_they_may_be_kept(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "app", small_image(registry, "team/app"))
    for answer in (
        gateway.http.get("/v1/devices/app/data"),
        gateway.http.head("/v1/devices/app/data"),
        gateway.get("app", 0, 100),
    ):
        assert answer.headers["etag"] == kept.etag
        assert answer.headers["cache-control"] == "no-cache, no-transform"
        assert answer.headers["content-location"] == f"/v1/content/{kept.etag.strip(chr(34))}/data"


def test_a_name_given_to_other_content_is_never_a_mixture_of_both(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    old = registered(gateway, "app", small_image(registry, "team/app"))
    old_path = f"/v1/content/{old.etag.strip(chr(34))}/data"
    assert gateway.http.get(old_path).status_code == 200
    assert gateway.http.delete("/v1/devices/app").status_code == 204
    new = registered(gateway, "app", small_image(registry, "team/other", seed=2))
    gone = gateway.http.get(old_path)
    assert (gone.status_code, gone.json()["code"]) == (404, "content_not_found")
    answer = gateway.http.get(
        "/v1/devices/app/data", headers={"Range": "bytes=5000-9999", "If-Range": old.etag}
    )
    assert (answer.status_code, answer.headers["etag"]) == (200, new.etag)
    assert answer.content == new.content


def test_content_stays_at_its_address_for_as_long_as_any_device_has_it(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = small_image(registry, "team/app")
    kept = registered(gateway, "one", image)
    assert registered(gateway, "two", image).etag == kept.etag
    path = f"/v1/content/{kept.etag.strip(chr(34))}/data"
    for name in ("one", "two"):
        answer = gateway.http.get(path)
        assert answer.status_code == 200, answer.text[:500]
        assert answer.content == kept.content
        assert gateway.http.delete(f"/v1/devices/{name}").status_code == 204
    assert gateway.http.get(path).json()["code"] == "content_not_found"


def test_content_that_nobody_ever_had_is_not_found(gateway: Gateway) -> None:
    answer = gateway.http.get(f"/v1/content/{'0' * 40}/data")
    assert (answer.status_code, answer.json()["code"]) == (404, "content_not_found")
