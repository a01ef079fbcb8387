"""Mount an image, or a URL as EROFS: through the kernel's NBD driver, or through nbdfuse and a loop device.

What a mount consists of is recorded beside the agent's records, so that ``umount`` can undo it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from blockgate import connect, durable
from nbd_client.control import ask, ensure_agent, spawn
from nbd_client.errors import (
    DeviceUnknown,
    InvalidOption,
    KernelUnsupported,
    MountFailed,
    RecordInvalid,
    ToolMissing,
)
from nbd_client.kernel.netlink import NbdNetlink
from nbd_client.options import MountOptions

_SUFFIX = ".mount.json"
_FUSE_SECONDS = 20.0
PATIENCE_SECONDS = 60.0
_PACKAGES = {"nbdfuse": "libnbd-bin", "fusermount3": "fuse3", "mount": "mount"}


class Via(Enum):
    """Ways of mounting."""

    auto = "auto"
    kernel = "kernel"
    fuse = "fuse"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount. ``device`` for the kernel; ``folder`` and ``socket`` for FUSE. Absolute paths."""

    mountpoint: str
    url: str
    device: str | None = None
    folder: str | None = None
    socket: str | None = None
    version: int = 1


def mount_source(
    source: str,
    mountpoint: Path,
    options: MountOptions,
    *,
    via: Via,
    gateway: str | None,
    run_dir: Path,
    patience_seconds: float = PATIENCE_SECONDS,
) -> str:
    """Mount a URL, or an image that ``gateway`` reads (None: ``BLOCKGATE_URL``); return how.

    Raises ``BlockgateError``; ``GatewayWaits`` when a fault kept the gateway for ``patience_seconds`` from getting further.
    """
    url = source
    if "://" not in source:
        from nbd_client.registration import register_image  # noqa: PLC0415  httpx is slow to import

        with connect(gateway) as client:
            url = register_image(source, options, client, patience_seconds=patience_seconds)
    elif options.oci:
        raise InvalidOption("oci.* options are about an image; this source is a URL")
    return mount_url(url, mountpoint, via=via.value, options=options.kernel, run_dir=run_dir)


def subtype(kind: str, via: Via) -> Via:
    """The way of mounting that ``-t`` names; ``via`` where it names none. Raises ``InvalidOption``."""
    ways = {"erofs": via, "erofs.nbd": Via.kernel, "erofs.fuse": Via.fuse}
    if kind not in ways:
        raise InvalidOption(f"-t {kind}: there are {', '.join(ways)}")
    if via is not Via.auto and ways[kind] is not via:
        raise InvalidOption(f"-t {kind} and --via {via.value} contradict each other")
    return ways[kind]


def mount_url(url: str, mountpoint: Path, *, via: str, options: tuple[str, ...], run_dir: Path) -> str:
    """Mount ``url`` on ``mountpoint``; return "kernel" or "fuse". Raises ``BlockgateError``."""
    if not mountpoint.is_dir():
        raise InvalidOption(f"{mountpoint} is not a folder")
    mountpoint = mountpoint.resolve()
    way = via if via != "auto" else choose_way()
    ensure_agent(run_dir)
    if way == "kernel":
        mounted = _mount_kernel(url, mountpoint, options, run_dir)
    else:
        mounted = _mount_fuse(url, mountpoint, options, run_dir)
    path = run_dir / f"{secrets.token_hex(8)}{_SUFFIX}"
    durable.replace(path, (json.dumps(asdict(mounted)) + "\n").encode())
    return way


def umount(mountpoint: Path, *, run_dir: Path) -> None:
    """Undo :func:`mount_url`. Raises ``BlockgateError``; while something uses the mount, nothing is undone."""
    path, mounted = _recorded(mountpoint.resolve(), run_dir)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mounted.mountpoint), 0):
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # EINVAL: not mounted any more, the rest is still to be undone
            raise MountFailed(f"cannot unmount {mounted.mountpoint}: {os.strerror(number)}")
    ensure_agent(run_dir)
    # What an agent that was killed or forgot no longer has needs no undoing.
    if mounted.device is not None:
        with suppress(DeviceUnknown):
            ask(run_dir, "detach", device=mounted.device)
    elif mounted.folder is not None and mounted.socket is not None:
        _leave_fuse(Path(mounted.folder))
        with suppress(DeviceUnknown):
            ask(run_dir, "unexport", path=mounted.socket)
        Path(mounted.socket).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def choose_way() -> str:
    """Pick ``kernel`` where its driver answers, else ``fuse``. Raises ``ToolMissing``: what to install."""
    try:
        NbdNetlink.open().close()
    except KernelUnsupported as error:
        missing = missing_for_fuse()
        if missing:
            raise ToolMissing(f"{error}. Without it, {'; '.join(missing)}") from error
        return "fuse"
    return "kernel"


def missing_for_fuse() -> list[str]:
    """What to install, for mounting without the kernel's NBD driver."""
    missing = [
        f"{name} is needed (package {package})"
        for name, package in _PACKAGES.items()
        if shutil.which(name) is None
    ]
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing.append("/dev/fuse must be there and writable (modprobe fuse)")
    return missing


def _mount_kernel(url: str, mountpoint: Path, options: tuple[str, ...], run_dir: Path) -> Mounted:
    device = ask(run_dir, "attach", url=url)
    try:
        _mount_erofs(device, mountpoint, options)
    except BaseException:
        ask(run_dir, "detach", device=device)
        raise
    return Mounted(str(mountpoint), url, device=device)


def _mount_fuse(url: str, mountpoint: Path, options: tuple[str, ...], run_dir: Path) -> Mounted:
    missing = missing_for_fuse()
    if missing:
        raise ToolMissing("; ".join(missing))
    identifier = secrets.token_hex(8)
    socket, folder = run_dir / f"{identifier}.sock", run_dir / f"{identifier}.fuse"
    ask(run_dir, "export", url=url, path=str(socket))
    try:
        folder.mkdir(mode=0o700)
        disk = folder / "disk"
        with Path(os.devnull).open("w") as nowhere:
            spawn([_program("nbdfuse"), "-r", str(disk), "--unix", str(socket)], nowhere.fileno(), {})
        _wait_for(disk)
        _mount_erofs(str(disk), mountpoint, ("loop", *options))
    except BaseException:
        _leave_fuse(folder)
        ask(run_dir, "unexport", path=str(socket))
        raise
    return Mounted(str(mountpoint), url, folder=str(folder), socket=str(socket))


def _mount_erofs(device: str, mountpoint: Path, options: tuple[str, ...]) -> None:
    """mount(8) rather than mount(2): it knows which options are flags, and makes the loop device."""
    words = ",".join(("ro", "nosuid", "nodev", *options))
    done = subprocess.run(  # noqa: S603  no shell, words of our own making
        [_program("mount"), "-t", "erofs", "-o", words, "--", device, str(mountpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MountFailed(
            f"{done.stderr.strip()} (is it an EROFS image, and the kernel's erofs module loaded?)"
        )


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"{name} is needed (package {_PACKAGES[name]})")
    return found


def _wait_for(disk: Path) -> None:
    end = time.monotonic() + _FUSE_SECONDS
    while not disk.exists():
        if time.monotonic() > end:
            raise MountFailed(f"nbdfuse did not come up in {disk.parent}")
        time.sleep(0.02)


def _leave_fuse(folder: Path) -> None:
    """The loop device lets go of the file a moment after the unmount: busy is tried again."""
    end = time.monotonic() + _FUSE_SECONDS
    while os.path.ismount(folder):
        done = subprocess.run(  # noqa: S603
            [_program("fusermount3"), "-u", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode and time.monotonic() > end:
            raise MountFailed(f"cannot end nbdfuse in {folder}: {done.stderr.strip()}")
        time.sleep(0.05)
    if folder.exists():
        folder.rmdir()


def fuse_mountpoints(run_dir: Path) -> dict[str, str]:
    """Where the FUSE mounts of this program are, by the socket that each reads from. Raises ``RecordInvalid``."""
    return {
        mounted.socket: mounted.mountpoint for _, mounted in recorded(run_dir) if mounted.socket is not None
    }


def recorded(run_dir: Path) -> Iterator[tuple[Path, Mounted]]:
    """Every mount that was recorded, with its record. Raises ``RecordInvalid`` for what cannot be understood."""
    for path in sorted(run_dir.glob(f"*{_SUFFIX}")):
        try:
            mounted = Mounted(**json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise RecordInvalid(f"{path} cannot be understood; remove it if its mount is gone") from error
        yield path, mounted


def _recorded(mountpoint: Path, run_dir: Path) -> tuple[Path, Mounted]:
    for path, mounted in recorded(run_dir):
        if mounted.mountpoint == str(mountpoint):
            return path, mounted
    raise InvalidOption(f"{mountpoint} was not mounted by this program")
