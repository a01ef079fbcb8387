"""Devices mounted by this machine's kernel, and the same layers unpacked by GNU tar, described alike. Needs root."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.unpacked import Member, pack

NS = 10**9
TIME = 1_700_000_000 * NS
DIR, LNK, CHR, BLK, FIFO = stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO


def need_kernel_mounts() -> None:
    """Skip, naming what is missing."""
    for tool in ("mount", "umount", "tar"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("the kernel has no EROFS")


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", str(image), str(where)], check=True, timeout=60)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True, timeout=60)


def base_layer() -> list[Member]:
    members = [
        Member(b"./", DIR, 0o755, mtime_ns=TIME + 1),
        Member(b"etc/", DIR, 0o750, uid=12, gid=3_000_000, mtime_ns=TIME),
        Member(b"etc/passwd", content=b"root\n", mtime_ns=TIME + 123_456_789),
        Member(b"etc/old", content=b"old"),
        Member(b"bin/su", permissions=0o4755, content=b"su" * 4000, mtime_ns=TIME),
        Member(b"bin/wall", permissions=0o2755, content=b"wall", gid=5),
        Member(b"tmp", DIR, 0o1777),
        Member(b"dev/null", CHR, 0o666, rdev=(1, 3), mtime_ns=TIME),
        Member(b"dev/far", BLK, 0o600, rdev=(259, 70_000), mtime_ns=TIME),
        Member(b"dev/pipe", FIFO, 0o622, mtime_ns=TIME),
        Member(b"big-owner", content=b"x", uid=3_000_000, gid=4_000_000_000),
        Member(b"n" * 200, content=b"long name"),
        Member(b"\xff\xfe\x80.bin", content=b"no text"),
        Member(b"link", LNK, 0o777, target=b"etc/passwd", mtime_ns=TIME + 5),
        Member(b"link-of-any-mode", LNK, 0o644, target=b"link", mtime_ns=TIME),
        Member(b"longlink", LNK, 0o777, target=b"t/" * 300, mtime_ns=TIME),
        Member(b"longestlink", LNK, 0o777, target=b"u" * 4000, mtime_ns=TIME),
        Member(
            b"attributes",
            content=b"xattr",
            xattrs={
                b"user.one": b"1",
                b"user.empty": b"",
                b"trusted.two": b"\x00\xff",
                b"user.big": b"B" * 1500,
            },
        ),
        Member(b"attributed-dir/", DIR, 0o755, xattrs={b"user.dir": b"yes" * 150}),
        Member(b"attributed-link", LNK, 0o777, target=b"w" * 100, xattrs={b"trusted.link": b"L" * 450}),
        Member(b"old-time", content=b"o", mtime_ns=-5 * NS),
        Member(b"shared", content=b"one inode" * 100),
        Member(b"shared-2", 0, target=b"shared"),
        Member(b"link-2", 0, target=b"link"),
        Member(b"gone/deep/file", content=b"gone"),
        Member(b"emptied/a", content=b"a"),
        Member(b"emptied/b/c", content=b"c"),
        Member(b"file-to-dir", content=b"f"),
        Member(b"dir-to-file/x", content=b"x"),
    ]
    members += [
        Member(b"sizes/%d" % size, content=os.urandom(size))
        for size in (0, 1, 511, 512, 513, 4095, 4096, 4097)
    ]
    members += [Member(b"many/%04d-%s" % (n, b"z" * (n % 60)), content=b"%d" % n) for n in range(400)]
    return members


def upper_layer() -> list[Member]:
    return [
        Member(b".wh.gone"),
        Member(b"emptied/.wh..wh..opq"),
        Member(b"emptied/new", content=b"n"),
        Member(b"etc/.wh.old"),
        Member(b"etc/", DIR, 0o711, mtime_ns=TIME + 7),
        Member(b"etc/passwd-hard", 0, target=b"etc/passwd"),
        Member(b"shared-3", 0, target=b"shared-2"),
        Member(b"bin/su", permissions=0o755, content=b"replaced"),
        Member(b".wh.file-to-dir"),
        Member(b"file-to-dir/", DIR, 0o700, mtime_ns=TIME),
        Member(b"file-to-dir/in", content=b"in"),
        Member(b".wh.dir-to-file"),
        Member(b"dir-to-file", content=b"now a file"),
        Member(b"link", content=b"no link any more"),
    ]


def unpack_with_tar(layers: list[list[Member]], where: Path) -> None:
    """GNU tar, layer by layer; whiteouts carried out before, and left out of, each."""
    where.mkdir(exist_ok=True)
    for index, layer in enumerate(layers):
        rest = []
        for member in layer:
            head, _, name = member.path.rpartition(b"/")
            if not name.startswith(b".wh."):
                rest.append(member)
            elif name == b".wh..wh..opq":
                for child in (where / os.fsdecode(head)).iterdir():
                    shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
            else:
                victim = where / os.fsdecode(head) / os.fsdecode(name[4:])
                shutil.rmtree(victim) if victim.is_dir() and not victim.is_symlink() else victim.unlink()
        tar = where.parent / f"rest{index}.tar"
        tar.write_bytes(pack(rest))
        subprocess.run(
            ["tar", "-C", str(where), "-xpf", str(tar), "--numeric-owner", "--xattrs", "--xattrs-include=*"],
            check=True,
            timeout=60,
        )


def describe(root: Path, made: set[str]) -> dict[str, tuple]:
    """Everything there is to compare. ``made``: directories without a member of their own, whose time is the clock's."""
    found = {}
    for folder, directories, files in os.walk(os.fsencode(root)):
        for name in [b".", *directories, *files]:
            path = folder + b"/" + name if name != b"." else folder
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            names = os.listxattr(path, follow_symlinks=False)
            found[key] = (
                oct(info.st_mode),
                info.st_uid,
                info.st_gid,
                None if key in made else info.st_mtime_ns,
                info.st_nlink,
                info.st_size if kind != stat.S_IFDIR else None,
                info.st_rdev if kind in (CHR, BLK) else None,
                hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
                if kind == stat.S_IFREG
                else None,
                os.readlink(path) if kind == stat.S_IFLNK else None,  # noqa: PTH115 - names are bytes
                {name: os.getxattr(path, name, follow_symlinks=False) for name in names},
            )
    return found


def made_directories(layers: list[list[Member]]) -> set[str]:
    """Directories whose time an unpacker leaves to the clock: no layer's last word is their own entry."""
    named, touched = set(), set()
    for layer in layers:
        for member in layer:
            path = os.fsdecode(member.path.rstrip(b"/"))
            parts = path.split("/")
            touched |= {"/".join(parts[:depth]) for depth in range(1, len(parts))} | {"."}
            if member.kind == DIR:
                named.add(path)
    return {path for path in touched if path not in named} | {"."}
