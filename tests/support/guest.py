"""A throw-away guest with a real nbd driver: a stock kernel under software emulation, on this machine's own files.

The guest's root is this machine's `/`, read-only, over virtiofs: there is no image to build, and virtual environments
work inside, as far as they lie on the root's own filesystem. There is one folder that it can write. It has a loopback
interface of its own and reaches what listens on this machine's, at `HOST`, but no other network: servers that need not
be emulated run out here, a dozen times as fast.
"""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.debianroot import cache_folder
from tests.support.processes import Process, require_program

# QEMU's part up to Debian 12, a package of its own since.
_VIRTIOFSD = (Path("/usr/libexec/virtiofsd"), Path("/usr/lib/qemu/virtiofsd"))

HOST = "10.0.2.2"
"""Where a server that listens on this machine's 127.0.0.1 is found from inside (QEMU's user networking)."""

_INIT = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
for folder in /run /mnt /var/tmp; do mount -t tmpfs tmpfs $folder; done
mkdir -p /run/home /run/share
mount -t virtiofs share /run/share
for module in nbd erofs overlay loop virtio_net; do modprobe -d {kernel} $module; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
cd {cwd}
SHARE=/run/share {command} </dev/null >/run/share/output 2>&1
echo $? >/run/share/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


@dataclass(frozen=True)
class Ended:
    """What a command in the guest left: its exit status, and its standard output and error."""

    returncode: int
    output: str


def run_in_guest(
    argv: Sequence[str | Path], *, share: Path, seconds: float = 100, memory: str = "1G"
) -> Ended:
    """Run a command as root in a new guest and wait for its end; booting takes some 5 seconds of it.

    Args:
        argv: the command; it starts in this process' working directory.
        share: a folder that the guest can write, there `/run/share` and `$SHARE`; /run, /mnt and /var/tmp are
            writable too, and gone with the guest.
        seconds: after which the guest is ended and TimeoutError raised.
        memory: the guest's, in QEMU's notation.
    """
    qemu = require_program("qemu-system-x86_64", package="qemu-system-x86")
    kernel, release = _kernel()
    virtiofsd = next((path for path in _VIRTIOFSD if path.exists()), None)
    if virtiofsd is None:
        pytest.skip(
            "the program virtiofsd is missing: install the Debian package virtiofsd (Debian 12: qemu-system-x86)"
        )
    if os.geteuid() != 0:
        pytest.skip("sharing this machine's files with a guest needs root")
    with _sandbox() as state:
        init = state / "init"
        command = shlex.join(str(argument) for argument in argv)
        init.write_text(_INIT.format(kernel=kernel, cwd=shlex.quote(str(Path.cwd())), command=command))
        init.chmod(0o755)
        root = state / "root"
        root.mkdir()
        with ExitStack() as stack:
            # In a mount namespace of its own: this machine sees nothing of the read-only view.
            view = f"mount --bind / {root} && mount -o remount,bind,ro {root} && exec "
            served = shlex.join(_share_argv(virtiofsd, state / "root.socket", root, "cache=always"))
            for name, server in (
                ("root", ["unshare", "--mount", "sh", "-c", view + served]),
                ("share", _share_argv(virtiofsd, state / "share.socket", share, "cache=auto")),
            ):
                # virtiofsd serves one connection and ends: asking whether it answers would use it up.
                exists = (state / f"{name}.socket").is_socket
                stack.enter_context(Process(server, log=state / f"{name}.log", ready=exists))
            machine = [qemu, *_machine(state, memory)]
            machine += ["-kernel", str(kernel / f"boot/vmlinuz-{release}"), "-append"]
            # An emulated timer on a busy machine fails the kernel's check of it, which ends in a panic. An emulated
            # processor has nothing to mitigate, and mitigations are emulated dearly.
            options = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off"
            machine += [f"{options} root=hostroot rootfstype=virtiofs ro init={init}"]
            try:
                console = subprocess.run(
                    machine,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    check=False,
                ).stdout.decode(errors="replace")
            except subprocess.TimeoutExpired as error:
                output = share / "output"
                said = output.read_text(errors="replace") if output.exists() else ""
                console = (error.output or b"").decode(errors="replace")
                text = f"the guest did not end within {seconds:g} s"
                raise TimeoutError(f"{text}; console:\n{console[-4000:]}\noutput:\n{said}") from error
    status = share / "status"
    if not status.exists():
        raise RuntimeError(f"the guest ended without running the command:\n{console[-4000:]}")
    return Ended(int(status.read_text()), (share / "output").read_text(errors="replace"))


@contextmanager
def _sandbox() -> Iterator[Path]:
    # On the disk of the caches, since /tmp may be a filesystem of its own, which the guest's root would not hold.
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="guest-", dir=cache_folder()) as folder:
        yield Path(folder)


def _kernel() -> tuple[Path, str]:
    folder = Path(os.environ.get("GUEST_KERNEL", cache_folder() / "kernel"))
    if not (folder / "release").exists():
        pytest.skip(f"the guest's kernel is missing: scripts/fetch-kernel.sh {folder}")
    return folder / "kernel", (folder / "release").read_text().strip()


def _share_argv(virtiofsd: Path, socket: Path, source: Path, cache: str) -> list[str]:
    options = (f"source={source}", "sandbox=chroot", cache, "xattr")
    return [
        str(virtiofsd),
        f"--socket-path={socket}",
        *(part for option in options for part in ("-o", option)),
    ]


def _machine(state: Path, memory: str) -> list[str]:
    # QEMU 7.2 offers a cmpxchg16b that it cannot emulate in threads: without it, recent kernels boot.
    arguments = [
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,-cx16",
        "-machine",
        "q35",
        "-smp",
        "2",
        "-m",
        memory,
    ]
    arguments += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
    arguments += [
        "-object",
        f"memory-backend-memfd,id=mem,size={memory},share=on",
        "-numa",
        "node,memdev=mem",
    ]
    arguments += ["-device", "virtio-rng-pci"]
    # No boot ROM: it is in a package of its own. No route leads beyond HOST.
    arguments += ["-netdev", "user,id=host,ipv6=off", "-device", "virtio-net-pci,netdev=host,romfile="]
    for tag, name in (("hostroot", "root"), ("share", "share")):
        arguments += ["-chardev", f"socket,id={name},path={state / name}.socket"]
        arguments += ["-device", f"vhost-user-fs-pci,chardev={name},tag={tag}"]
    return arguments
