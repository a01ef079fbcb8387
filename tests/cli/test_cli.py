"""The command line: exit statuses, JSON, and errors that say what to do."""

from __future__ import annotations

import json
import sys

import pytest

from gateway.cli.main import main
from gateway.erofs import superblock
from tests.support import gzips
from tests.support.inprocess import BASE, BASE_BLOB, UPPER
from tests.support.layers import content
from tests.support.zinfo_tables import build as build_table
from tests.support.zinfo_tables import encode


class Ended:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Run a command line as a user does, and see that it never shows a traceback."""
    monkeypatch.chdir(tmp_path)
    for name in ("BLOCKGATE_URL", "BLOCKGATE_TOKEN", "BLOCKGATE_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["blockgate", *map(str, arguments)])
        status = main()
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Ended(status, out, err)

    return run


@pytest.fixture
def layer(tmp_path):
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(BASE_BLOB)
    return path


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["device", "nonsense"],
        ["device", "add"],
        ["device", "add", "name"],
        ["device", "add", "name", "image", "--layer", "x"],
        ["device", "add", "name", "image", "--layer", "0", "--blob", "sha256:" + "a" * 64],
        ["device", "add", "name", "image", "--blob", "sha256:1"],
        ["device", "add", "name", "image", "--metadata", "/none"],
        ["device", "show"],
        ["index", "build", "/none", "-o", "x"],
        ["index", "build"],
        ["index", "show", "/none"],
        ["metadata", "build", "/none", "-o", "x"],
        ["metadata", "build", "-o", "x"],
        ["serve", "--port", "x"],
        ["serve", "--port", "70000"],
        ["serve", "--config", "/none.toml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_says_what_is_wrong(run, arguments):
    ended = run(*arguments)
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.strip()


@pytest.mark.parametrize("arguments", [["--help"], ["device", "--help"], ["serve", "--help"], ["--version"]])
def test_help_and_version_are_0(run, arguments):
    ended = run(*arguments)
    assert ended.status == 0
    assert "blockgate" in ended.out


# Offline


def test_an_index_is_built_and_shown(run, layer, tmp_path):
    target = tmp_path / "layer.zinfo"
    built = run("index", "build", layer, "-o", target, "--span-size", "64KiB", "--json")
    assert built.status == 0
    reference = build_table(BASE_BLOB, 65536)
    assert target.read_bytes() == encode(zip(reference.points, reference.windows, strict=True), 65536)
    assert built.json == {
        "zinfo": str(target),
        "checkpoints": len(reference.points),
        "span_size": 65536,
        "compressed_size": len(BASE_BLOB),
        "uncompressed_size": len(BASE),
        "members": 1,
    }
    shown = run("index", "show", target, "--json")
    assert shown.status == 0
    assert shown.json["checkpoints"] == [
        {"in": p.in_offset, "out": p.out_offset, "bits": p.bits} for p in reference.points
    ]
    assert "checkpoints" in run("index", "show", target).out
    assert run("index", "build", layer, "-o", target).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer.tar.gz", "layer.zinfo"]


@pytest.mark.parametrize("size", ["x", "1", "-1", "65MiB", "0"])
def test_a_span_size_that_is_none_is_wrong_usage(run, layer, size):
    ended = run("index", "build", layer, "-o", "x", "--span-size", size)
    assert ended.status == 2
    assert "--span-size" in ended.err


@pytest.mark.parametrize("data", [b"", b"no gzip", BASE_BLOB[:-1], BASE_BLOB[:1000]], ids=range(4))
def test_an_index_of_what_is_no_gzip_fails_and_leaves_nothing(run, tmp_path, data):
    (tmp_path / "broken").write_bytes(data)
    ended = run("index", "build", "broken", "-o", "out")
    assert ended.status == 1
    assert ended.err.startswith(("error:", "indexing"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("data", [b"", b"x" * 100], ids=["nothing", "noise"])
def test_showing_what_is_no_index_fails(run, tmp_path, data):
    (tmp_path / "broken").write_bytes(data)
    ended = run("index", "show", "broken")
    assert ended.status == 1
    assert ended.err.startswith("error:")


@pytest.mark.parametrize("target", ["none/out", "layer.tar.gz/out"])
@pytest.mark.parametrize("command", ["index", "metadata"])
def test_a_target_that_cannot_be_written_fails_by_name(run, layer, command, target):
    ended = run(command, "build", layer, "-o", target)
    assert ended.status == 1
    assert target in ended.err


def test_metadata_is_built_of_layers_of_both_kinds(run, layer, tmp_path):
    (tmp_path / "upper.tar").write_bytes(UPPER)
    ended = run("metadata", "build", layer, "upper.tar", "-o", "out.erofs", "--json")
    assert ended.status == 0
    assert ended.json["files"] == 4
    data = (tmp_path / "out.erofs").read_bytes()
    assert len(data) == ended.json["size"]
    assert superblock.parse(data).block_size == 512
    assert len(ended.json["layer_offsets"]) == 2
    assert run("metadata", "build", layer, "-o", "out.erofs").status == 0


@pytest.mark.parametrize(
    "data", [content(5000, 2), gzips.member(content(5000, 2)), BASE_BLOB[:-4], BASE[:2000]], ids=range(4)
)
def test_metadata_of_what_is_no_layer_fails_by_name_and_leaves_what_was_there(run, tmp_path, data):
    (tmp_path / "broken").write_bytes(data)
    (tmp_path / "out").write_bytes(b"before")
    ended = run("metadata", "build", "broken", "-o", "out")
    assert ended.status == 1
    assert "broken" in ended.err
    assert (tmp_path / "out").read_bytes() == b"before"


# Without a gateway


@pytest.mark.parametrize(
    "command", [["device", "ls"], ["device", "show", "x"], ["cache", "stat"], ["cache", "prune"]]
)
@pytest.mark.parametrize("where", ["http://127.0.0.1:1", "127.0.0.1:1"])
def test_without_a_gateway_it_is_1_and_says_how_to_start_one(run, command, where):
    ended = run(*command, "--gateway", where)
    assert ended.status == 1
    assert where in ended.err
    assert "--gateway" in ended.err


# Doctor


def test_doctor_is_1_when_something_is_missing(run, tmp_path):
    (tmp_path / "broken.toml").write_text("nonsense = 1\n")
    ended = run("doctor", "--config", "broken.toml")
    assert ended.status == 1
    assert "nonsense" in ended.out
