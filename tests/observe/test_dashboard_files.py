"""The dashboard's files: headers, and rules that keep text text and the page alone with its gateway."""

import re
from pathlib import Path

import pytest

import gateway.api.dashboard

STATIC = Path(gateway.api.dashboard.__file__).parent / "static"
FILES = sorted(STATIC.iterdir())
PAGES = {"index.html": "/", "reference.html": "/docs"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg+xml"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
async def test_each_file_is_served_under_the_strict_policy(gateway, file):
    path = PAGES.get(file.name, f"/dashboard/{file.name}")
    answer = await gateway.client.get(path)
    assert answer.status_code == 200
    assert answer.content == file.read_bytes()
    assert TYPES[file.suffix] in answer.headers["content-type"]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_sets_markup_or_reaches_out(file):
    text = file.read_text()
    for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert banned not in text
    assert re.findall(r"https?://[^\s\"'`)]+", text) in ([], ["http://www.w3.org/2000/svg"])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_inline_script_or_style(name):
    page = (STATIC / name).read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))


async def test_nothing_outside_of_the_folder_is_served(gateway):
    for path in ("/dashboard/../__init__.py", "/dashboard/%2e%2e/__init__.py", "/dashboard/"):
        assert (await gateway.client.get(path)).status_code in (400, 404)
