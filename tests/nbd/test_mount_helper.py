"""The arguments that mount(8) and umount(8) hand to their helpers."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbd_client import mount_helper
from nbd_client.errors import GatewayError, InvalidOption
from nbd_client.mount import Via
from nbd_client.mount_helper import mount_main, umount_main
from nbd_client.options import helper_options


@pytest.fixture
def mounts(monkeypatch):
    """What would have been mounted, and how."""
    seen = []

    def record(*arguments, **named):
        seen.append((arguments, named))
        return "kernel"

    monkeypatch.setattr(mount_helper, "mount_source", record)
    return seen


def test_the_arguments_of_mount_become_a_mount(mounts, monkeypatch, capsys):
    monkeypatch.setenv("BLOCKGATE_NBD_RUN_DIR", "/run/elsewhere")
    text = "rw,_netdev,noatime,x-systemd.automount,gateway=http://g:1,oci.layer=0,comment=ours"
    assert mount_main(["image:tag", "/mnt/app", "-snv", "-o", text, "-t", "blockgate.nbd"]) == 0
    (((spec, mountpoint, options), named),) = mounts
    assert (spec, mountpoint) == ("image:tag", Path("/mnt/app"))
    assert (options.layer, options.kernel) == (0, ("noatime", "helper=blockgate"))
    assert named == {"via": Via.kernel, "gateway": "http://g:1", "run_dir": Path("/run/elsewhere")}
    assert capsys.readouterr().out == "mounted image:tag on /mnt/app (kernel)\n"


def test_nothing_is_mounted_by_a_fake_mount(mounts, capsys):
    assert mount_main(["image:tag", "/mnt/app", "-f", "-o", "rw"]) == 0
    assert mounts == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["image:tag"],
        ["image:tag", "/mnt", "-N", "1"],
        ["image:tag", "/mnt", "-t", "ext4"],
        ["image:tag", "/mnt", "-t", "blockgate.tape"],
        ["image:tag", "/mnt", "-o", "via=tape"],
        ["image:tag", "/mnt", "-o", "via=fuse", "-t", "blockgate.nbd"],
        ["image:tag", "/mnt", "-o", "gateway="],
        ["image:tag", "/mnt", "-o", "oci.tape=1"],
    ],
)
def test_wrong_usage_has_the_exit_status_that_mount_has_for_it(argv, mounts, capsys):
    assert mount_main(argv) == 1
    assert capsys.readouterr().err.startswith("mount.blockgate: ")
    assert mounts == []


def test_a_mount_that_fails_has_the_exit_status_that_mount_has_for_it(monkeypatch, capsys):
    def fail(*_arguments, **_named):
        raise GatewayError("no answer")

    monkeypatch.setattr(mount_helper, "mount_source", fail)
    assert mount_main(["image:tag", "/mnt"]) == 32
    assert capsys.readouterr().err == "mount.blockgate: no answer\n"


def test_the_arguments_of_umount_become_an_unmount(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(mount_helper, "umount", lambda path, run_dir: seen.append((path, run_dir)))
    monkeypatch.setenv("BLOCKGATE_NBD_RUN_DIR", "/run/elsewhere")
    assert umount_main(["/mnt/app", "-n", "-v", "-r", "-t", "erofs"]) == 0
    assert seen == [(Path("/mnt/app"), Path("/run/elsewhere"))]
    for flags in (["-l"], ["-f"], ["-N", "1"]):
        assert umount_main(["/mnt/app", *flags]) == 1
    assert "leave a device behind" in capsys.readouterr().err
    assert len(seen) == 1


def test_what_is_for_the_helper_is_taken_out_of_the_options():
    assert helper_options("") == ({}, [])
    assert helper_options("rw,via=fuse,ro,a=b=c") == ({"via": "fuse"}, ["ro", "a=b=c"])
    with pytest.raises(InvalidOption, match="gateway needs one value"):
        helper_options("gateway=a,gateway=b")
