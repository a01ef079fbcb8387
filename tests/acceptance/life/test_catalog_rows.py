"""The catalog: rows that this version does not understand, images with much to say, pages of many devices."""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support.faultregistry import FaultRegistry
from tests.support.gateway import Gateway
from tests.support.life import SETTINGS, heals, put_image, registered, small_image

_MIB = 1 << 20


def with_more_keys(value: Any) -> Any:
    """A document as a later version may write it."""
    if isinstance(value, list):
        return [with_more_keys(part) for part in value]
    if isinstance(value, dict):
        return {name: with_more_keys(part) for name, part in value.items()} | {
            "of_a_later_version": {"x": [1]}
        }
    return value


def rewrite_row(gateway: Gateway, name: str, how: Any) -> int:
    """Change each JSON document in a device's row; returns how many there are."""
    changed = 0
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "catalog.sqlite")) as catalog, catalog:
        catalog.row_factory = sqlite3.Row
        row = catalog.execute("SELECT * FROM devices WHERE name = ?", (name,)).fetchone()
        for column in row.keys():  # noqa: SIM118 - a Row's own iteration gives its values
            text = row[column]
            if isinstance(text, str) and text[:1] in ("{", "["):
                new = json.dumps(how(json.loads(text)))
                catalog.execute(f"UPDATE devices SET {column} = ? WHERE name = ?", (new, name))
                changed += 1
    return changed


@pytest.mark.parametrize("understood", [True, False], ids=["more keys", "not understood at all"])
def test_a_row_of_a_later_version_stops_nothing_but_its_own_device(
    understood: bool, gateway: Gateway, registry: FaultRegistry
) -> None:
    kept = registered(gateway, "old", small_image(registry, "team/old"))
    other = registered(gateway, "new", small_image(registry, "team/new", 2))
    gateway.stop()
    assert rewrite_row(
        gateway, "new", with_more_keys if understood else lambda _: {"recipe": {"version": 99}}
    )
    gateway.start()
    heals(gateway, kept)
    listed = {device["name"] for device in gateway.http.get("/v1/devices").json()["devices"]}
    assert listed == {"old", "new"}
    device = gateway.show("new")
    answer = gateway.http.get("/v1/devices/new/data")
    if answer.status_code == 200:
        assert understood, "a row that cannot be understood was served"
        assert answer.content == other.content
    else:
        assert answer.json()["code"]
        assert device["error"] is not None, "the device does not say what is wrong with it"
    assert gateway.http.delete("/v1/devices/new").status_code == 204


def test_text_that_is_no_unicode_in_an_images_configuration_is_shown_all_the_same(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    config = {"Env": ["BAD=\ud800"], "Cmd": ["\udfff"], "Labels": {"\ud83d": "x"}}
    image = put_image(registry, "team/app", [{"one": b"1"}], config=config)
    registered(gateway, "app", image)
    for path in ("/v1/devices/app", "/v1/devices", "/v1/stats"):
        answer = gateway.http.get(path)
        assert answer.status_code == 200, f"{path}: {answer.text[:300]}"
    shown = gateway.show("app")["image_config"]
    assert shown["Env"][0].startswith("BAD=")


@pytest.mark.timeout(240)
def test_large_image_configurations_cost_a_list_nothing(tmp_path: Path, registry: FaultRegistry) -> None:
    with Gateway(tmp_path / "empty", settings=SETTINGS) as empty:
        assert empty.http.get("/v1/devices").json()["devices"] == []
        base = empty.peak_bytes()
    with Gateway(tmp_path / "gateway", settings=SETTINGS) as gateway:
        for number in range(10):
            config = {"Labels": {"text": f"{number}" * (4 * _MIB)}}
            image = put_image(registry, f"team/app{number}", [{"one": b"%d" % number}], config=config)
            device = gateway.register(f"app{number}", image.spec())
            assert device["state"] == "ready", device
        gateway.restart()
        for _ in range(5):
            answer = gateway.http.get("/v1/devices")
            assert len(answer.json()["devices"]) == 10
            assert len(answer.content) < 50_000
            assert gateway.http.get("/metrics").status_code == 200
            assert gateway.http.get("/v1/stats").status_code == 200
        grown = gateway.peak_bytes() - base
    assert grown < 24 * _MIB, f"listing took {grown / _MIB:.0f} MiB"


def test_the_list_has_pages_of_summaries_that_can_be_filtered(
    gateway: Gateway, registry: FaultRegistry
) -> None:
    image = put_image(registry, "team/app", [{"one": b"1"}], config={"Cmd": ["/x"]})
    names = [f"{kind}-{number}" for kind in ("blue", "red") for number in range(5)]
    for name in names:
        gateway.put(name, image.spec())
    for name in names:
        assert gateway.settled(name)["state"] == "ready"
    nothing = {"source": {"image": f"{registry.host}/team/nothing:latest", "insecure": True}}
    assert gateway.register("failed", nothing)["state"] == "failed"

    def page(**query: Any) -> Any:
        answer = gateway.http.get("/v1/devices", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    found: list[str] = []
    cursor = None
    pages = 0
    while cursor is not None or pages == 0:
        pages += 1
        got = page(limit=3, **({"cursor": cursor} if cursor else {}))
        assert len(got["devices"]) <= 3
        found += [device["name"] for device in got["devices"]]
        cursor = got["next"]
    assert pages == 4
    assert sorted(found) == sorted([*names, "failed"])
    assert [d["name"] for d in page(state="failed")["devices"]] == ["failed"]
    assert {d["name"] for d in page(name="red", state="ready")["devices"]} == set(names[5:])
    for summary in page()["devices"]:
        assert not {"segments", "image_config", "contents"} & summary.keys()
        assert summary["health"] == "ok"
    assert gateway.show("red-1")["segments"]
    assert gateway.http.get("/v1/devices", params={"limit": 1001}).status_code == 400
