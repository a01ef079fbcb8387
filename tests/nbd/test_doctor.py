"""What the doctor tells of a machine: made-up ones, and a gateway that really answers."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nbd_client import doctor
from nbd_client.kernel.sysfs import Sysfs
from nbd_client.recovery import Records, new_record
from nbd_client.source.response import Pin
from tests.support.programs import blockgate_nbd

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def machine(tmp_path):
    """One with an EROFS-less kernel, without modules and without NBD devices."""
    (tmp_path / "filesystems").write_text("nodev\tproc\n")
    (tmp_path / "sys").mkdir()
    return doctor.Machine(tmp_path / "filesystems", tmp_path / "6.1-cloud", Sysfs(tmp_path / "sys"))


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def nbd(machine, tmp_path, index, backend):
    """A device of the made-up kernel, in use."""
    folder = tmp_path / "sys" / f"nbd{index}"
    folder.mkdir()
    for name, text in (("size", "8\n"), ("pid", "1\n"), ("backend", f"{backend}\n")):
        (folder / name).write_text(text)


def found(run_dir, machine, url=NOBODY):
    findings = list(doctor.examine(run_dir, url, machine=machine))
    return {finding.subject: finding for finding in findings}, findings


def test_everything_that_is_needed_is_looked_at_and_judged(run_dir, machine):
    by_subject, findings = found(run_dir, machine)
    assert set(by_subject) == {
        *("privilege", "kernel NBD", "EROFS", "FUSE", "uvloop", "gateway", "clock", "agent")
    }
    assert not doctor.can_mount(findings)
    good = [doctor.Finding(subject, True, "") for subject in ("privilege", "EROFS", "FUSE")]
    assert doctor.can_mount(good)
    assert not doctor.can_mount(good[:2])


def test_a_missing_module_is_loaded_where_it_is_on_disk_and_installed_where_it_is_not(run_dir, machine):
    by_subject, _ = found(run_dir, machine)
    assert "6.1-cloud" in by_subject["EROFS"].advice
    assert "install" in by_subject["EROFS"].advice
    (machine.modules / "kernel/fs/erofs").mkdir(parents=True)
    (machine.modules / "kernel/fs/erofs/erofs.ko.xz").touch()
    by_subject, _ = found(run_dir, machine)
    assert by_subject["EROFS"].advice == "modprobe erofs"


def test_records_and_devices_that_lost_each_other_are_named_with_what_to_do(run_dir, machine, tmp_path):
    records = Records(run_dir)
    gone, parked = (
        replace(new_record(f"http://gateway/{name}", Pin(4096, b'"v"', None)), index=index)
        for name, index in (("gone", 3), ("parked", 4))
    )
    records.save(gone)
    records.save(parked)
    nbd(machine, tmp_path, 4, parked.backend)
    nbd(machine, tmp_path, 5, "blockgate-nbd-of-a-lost-record")
    nbd(machine, tmp_path, 6, "somebody else's")
    (run_dir / "blockgate-nbd-x.device.json").write_text("{")
    _, findings = found(run_dir, machine)
    told = [
        f"{finding.text} -> {finding.advice}"
        for finding in findings
        if finding.subject in ("record", "device")
    ]
    assert not any("nbd6" in text for text in told)
    for words in (
        ("blockgate-nbd-x.device.json", "remove the file"),
        ("http://gateway/gone was /dev/nbd3, which is gone", "reattach --all"),
        ("/dev/nbd4 is parked", "reattach --all"),
        ("/dev/nbd5", "nbd-client -d /dev/nbd5"),
    ):
        assert any(all(word in text for word in words) for text in told), (words, told)


def test_a_mount_that_is_gone_and_a_record_that_is_no_record_are_told(run_dir, machine, tmp_path):
    (run_dir / "a.mount.json").write_text(
        json.dumps({"mountpoint": str(tmp_path), "url": "http://gateway/x", "device": "/dev/nbd3"})
    )
    by_subject, _ = found(run_dir, machine)
    assert f"blockgate-nbd umount {tmp_path}" in by_subject["mount"].advice
    (run_dir / "a.mount.json").write_text("[]")
    by_subject, _ = found(run_dir, machine)
    assert "a.mount.json" in by_subject["mount"].text


def test_a_fuse_mount_whose_agent_was_killed_is_told_though_its_socket_is_left(run_dir, machine):
    socket_path = run_dir / "a.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_path))
    (run_dir / "a.mount.json").write_text(
        json.dumps({"mountpoint": "/proc", "url": "http://gateway/x", "socket": str(socket_path)})
    )
    by_subject, _ = found(run_dir, machine)
    assert "/proc lost its server" in by_subject["mount"].text
    assert "blockgate-nbd umount /proc" in by_subject["mount"].advice


@contextmanager
def answering(status=200, body=b'{"devices": []}', ahead_seconds=0.0):
    """Something like a gateway, with such a clock."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + ahead_seconds, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "token", "good", "words"),
    [
        ({}, None, True, "answers and lists its devices"),
        ({"status": 401}, None, False, "wants a token -> put the right one into BLOCKGATE_TOKEN"),
        ({"status": 401}, "old", False, "refuses the token"),
        ({"body": b"<html>"}, None, False, "is no gateway (status 200) -> say where it is"),
        ({"body": b"[]", "status": 404}, None, False, "is no gateway (status 404)"),
    ],
)
def test_a_gateway_is_judged_by_its_answer(answer, token, good, words):
    with answering(**answer) as url:
        finding = next(iter(doctor.ask_gateway(url, token)))
    assert finding.good is good
    assert words in f"{finding.text} -> {finding.advice}"


@pytest.mark.parametrize(("gateway_ahead", "word"), [(3600, "behind"), (-90, "ahead of")])
def test_a_clock_that_is_not_the_gateways_is_told_with_the_difference(gateway_ahead, word):
    with answering(ahead_seconds=gateway_ahead) as url:
        _, clock = doctor.ask_gateway(url, None)
    seconds, text = clock.text.split(" s ")
    assert abs(int(seconds) - abs(gateway_ahead)) <= 2
    assert text == f"{word} the gateway's"
    assert "NTP" in clock.advice


def test_a_clock_that_is_the_gateways_is_well():
    with answering() as url:
        _, clock = doctor.ask_gateway(url, None)
    assert clock.good


async def test_the_command_tells_all_of_it_and_starts_nothing(run_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = await blockgate_nbd("doctor", "--gateway", url, "--run-dir", run_dir)
    assert f"--  gateway: no gateway answers at {url}" in done.out
    assert "--gateway" in done.out
    assert "blockgate serve" in done.out
    assert "Traceback" not in done.err
    assert list(run_dir.iterdir()) == []
