"""Every example of docs/http-api.md, run against a live gateway in the order of the page."""

import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.gateway import Gateway
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.processes import require_program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/http-api.md").read_text()
PROGRAMS = {
    "curl": "curl",
    "nbdkit": "nbdkit",
    "nbdcopy": "libnbd-bin",
    "qemu-io": "qemu-utils",
    "qemu-img": "qemu-utils",
    "tar": "tar",
}

pytestmark = pytest.mark.real


class Example(NamedTuple):
    language: str
    code: str
    expected: str


def examples() -> list[Example]:
    blocks = re.findall(r"^```(\S[^\n]*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    pairs = zip(blocks, [*blocks[1:], ("", "")], strict=True)
    return [
        Example(language, code, answer if kind == "text" else "")
        for (language, code), (kind, answer) in pairs
        if language in ("sh", "python")
    ]


def matches(output: str, expected: str) -> bool:
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("…"))
    return re.fullmatch(pattern, output.strip(), flags=re.DOTALL) is not None


def layer_of(prefix: str, count: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(count):
            content = bytes((number * step) % 251 for step in range(4096))
            member = tarfile.TarInfo(f"{prefix}/{number:04}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    for name, package in PROGRAMS.items():
        require_program(name, package=package)
    folder = tmp_path_factory.mktemp("http-api")
    layout = OciLayout(folder / "image")
    tars = [layer_of("base", 300), layer_of("app", 40)]
    layout.add_image([gzip_layer(zlib.compress(tar, 6, wbits=31), tar) for tar in tars], tag="latest")
    programs = folder / "bin"
    programs.mkdir()
    for name, module in (("blockgate", "gateway"), ("blockgate-nbd", "nbd_client.cli")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        program.chmod(0o755)
    work = folder / "work"
    work.mkdir()
    with Gateway(folder / "gateway", oci_roots=[layout.folder]) as gateway:
        yield (
            work,
            os.environ
            | {
                "GATEWAY": gateway.url,
                "IMAGE": f"oci:{layout.folder}:latest",
                "PATH": f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
                "PYTHONPATH": str(ROOT),
                "no_proxy": "127.0.0.1",
            },
        )


def test_the_page_has_examples_with_answers():
    assert len(examples()) >= 12
    assert all(example.expected for example in examples())


@pytest.mark.parametrize("number", range(len(examples())))
def test_an_example_does_what_the_page_says(environment, number):
    folder, variables = environment
    example = examples()[number]
    argv = ["bash", "-euo", "pipefail"] if example.language == "sh" else [sys.executable, "-"]
    done = subprocess.run(
        argv,
        input=example.code,
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{example.code}\n{done.stdout}\n{done.stderr}"
    assert matches(done.stdout, example.expected), f"{example.code}\n{done.stdout}\n{done.stderr}"


def test_an_answer_that_differs_is_noticed():
    assert matches("206\n", "206\n")
    assert matches('{"a": 1, "b": 2}', '{"a": …}')
    assert not matches("206\n206\n", "206\n")
    assert not matches("201\n", "206\n")
