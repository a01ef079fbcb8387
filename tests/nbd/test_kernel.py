"""The kernel's side: real devices in a throw-away guest."""

from __future__ import annotations

import compileall
import gzip
import random
import re
import socketserver
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.guest import HOST, run_in_guest
from tests.support.ocilayout import OciLayout, gzip_layer
from tests.support.programs import program
from tests.support.unpacked import Member, pack

HERE = Path(__file__).parent


@pytest.fixture
def image(tmp_path):
    """A folder with a tree, an EROFS image of it, and an OCI layout whose two gzip layers make it."""
    rng = random.Random(31)
    tree = tmp_path / "tree"
    base = []
    for number in range(40):
        name, size = f"folder {number % 5}/file{number}", rng.choice([0, 1, 4096, 70_000, 300_000])
        content = rng.randbytes(size // 2) + b"and the rest is easy" * (size // 40)
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
        base.append(Member(name.encode(), content=content))
    (tree / "link").symlink_to("folder 0/file0")
    base += [
        Member(b"link", stat.S_IFLNK, 0o777, target=b"folder 0/file0"),
        Member(b"folder 1/gone", content=b"gone" * 1000),
    ]
    (tree / "folder 0/file5").write_bytes(replaced := rng.randbytes(123_456))
    (tree / "folder 9").mkdir()
    (tree / "folder 9/new").write_bytes(new := rng.randbytes(1_000_000))
    upper = [
        Member(b"folder 1/.wh.gone"),
        Member(b"folder 0/file5", content=replaced),
        Member(b"folder 9/new", content=new),
    ]
    mkfs = program("mkfs.erofs", "erofs-utils")
    subprocess.run([mkfs, tmp_path / "image.erofs", tree], check=True, stdout=subprocess.DEVNULL)
    layers = [gzip_layer(gzip.compress(tar, 6, mtime=0), tar) for tar in (pack(base), pack(upper))]
    OciLayout(tmp_path / "layout").add_image(layers, tag="latest")
    return tmp_path


@contextmanager
def controlled(**calls: Callable[[], object]) -> Iterator[int]:
    """Listen on a port of the loopback; for each line that names a call, do it and then say done."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            calls[self.rfile.readline().decode().strip()]()
            self.wfile.write(b"done\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.real
@pytest.mark.timeout(600)
def test_devices_of_a_real_kernel(image, record_property):
    program_in_guest = HERE / "guest" / "guest_kernel.py"
    # The guest cannot write here: what is not compiled yet would be compiled in every process, emulated.
    for package in ("nbd_client", "tests/support"):
        compileall.compile_dir(HERE.parents[1] / package, quiet=2)
    environment = [f"PYTHONPATH={HERE.parents[1]}", "PYTHONDONTWRITEBYTECODE=1"]
    with Gateway(image / "gateway", oci_roots=[image / "layout"]) as gateway:
        body = {"source": {"image": f"oci:{image / 'layout'}:latest"}, "layout": "filesystem"}
        device = gateway.register("image", body)
        assert device["state"] == "ready", device
        kinds = [segment["kind"] for segment in device["segments"]]
        assert (kinds[0], kinds.count("gzip")) == ("metadata", 2), kinds
        with controlled(kill=gateway.kill, start=gateway.start) as port:
            url = gateway.data_url("image").replace("127.0.0.1", HOST)
            arguments = [url, str(device["size"]), HOST, str(port)]
            argv = ["env", *environment, sys.executable, program_in_guest, *arguments]
            ended = run_in_guest(argv, share=image, seconds=550)
        assert ended.returncode == 0, f"{ended.output}\n{gateway.log}"
        assert gateway.stop() == 0, gateway.log
    sys.stdout.write(ended.output)  # seconds of each scenario; shown by -rP
    for name, value in re.findall(r"FIGURE (.+): (.+)", ended.output):
        record_property(name, value)
    wanted = re.findall(r"async def (scenario_\w+)", program_in_guest.read_text())
    assert re.findall(r"PASSED (scenario_\w+)", ended.output) == wanted
